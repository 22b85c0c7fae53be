"""Multimodal models that a server such as vLLM, SGLang, llama.cpp or a hosted service offers in OpenAI's chat protocol."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal

from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.models.batches import picture
from icmbench.tasks.models.chat_server import ChatServer
from icmbench.tasks.models.coordinates import BoxConvention, smart_resize
from icmbench.tasks.models.hub import require


class OpenAIEndpoint:
    """Any multimodal model behind an OpenAI-compatible chat endpoint, asked with one image and one prompt at a time.

    Images are sent as PNG, so that the server sees the pixels that the codec decoded. A request is repeated after a growing pause,
    or after the pause in the answer's Retry-After, if the connection fails, the answer breaks off or is late, or its status is one
    of `chat_server.RETRIED_STATUSES`. A redirect to another server is refused. What a server declares as reasoning is not the
    answer.

    Args:
        url: address up to the version, such as http://localhost:8000/v1; part of the fingerprint, because another server may hold
            other weights under the same name.
        model_id: name of the model as the server lists it.
        box_convention: how the model writes boxes, which the task `referring` must know: `absolute_resized` for Qwen2.5-VL,
            `norm1000` for Qwen2-VL and Qwen3-VL.
        factor: number of pixels that divides both sides of the resized image, with `absolute_resized`; Qwen2.5-VL's by default.
        min_pixels: smallest area of the resized image in pixels, with `absolute_resized`; Qwen2.5-VL's by default.
        max_pixels: largest area of the resized image in pixels, with `absolute_resized`; Qwen2.5-VL's by default.
        revision: what else decides the answers but the server does not report, such as a commit or a quantisation. It is only
            written to the fingerprint.
        system: text of the system message; none by default.
        temperature: temperature of sampling; 0, the default, asks for the likeliest tokens.
        max_tokens: largest number of tokens in an answer.
        seed: seed of sampling, for servers that support one; None sends none.
        parameters: further keys of the request, such as {top_p: 1, mm_processor_kwargs: {...}}, but no secrets.
        api_key_variable: environment variable that holds the key; if it is unset, no key is sent.
        concurrency: number of requests in flight at a time.
        timeout: seconds in which an answer must be complete.
        retries: how often a failed request is repeated.
        backoff: scale of the pauses between tries, in seconds. The first repetition follows at once, the next ones after 2, 4, 8
            and so on times `backoff`, at most 60 s.
        box_choice: which box counts in `referring` if an answer holds several: the last, with which an argument ends, or the first,
            for models that list the best one first.

    Raises:
        ModelError: `url` is not an http or https address, or it or `parameters` or `api_key_variable` hold a key.
        ModuleNotFoundError: urllib3 is not installed.
    """

    task: ClassVar[tuple[str, ...]] = ("referring", "openset_marked")
    extra: ClassVar[str] = "endpoint"
    weights: ClassVar[str] = "none here: the server holds them"

    def __init__(
        self,
        url: str,
        model_id: str,
        box_convention: BoxConvention | None = None,
        factor: int = 28,
        min_pixels: int = 56 * 56,
        max_pixels: int = 28 * 28 * 16384,
        revision: str | None = None,
        system: str | None = None,
        temperature: float = 0.0,
        max_tokens: int = 256,
        seed: int | None = 0,
        parameters: dict[str, Any] | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 300.0,
        retries: int = 6,
        backoff: float = 1.0,
        box_choice: Literal["last", "first"] = "last",
    ) -> None:
        require("urllib3")
        self._server = ChatServer(
            url,
            parameters or {},
            role="",
            key_option="api_key_variable",
            key_variable=api_key_variable,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            connections=concurrency,
        )
        self.url, self.concurrency = self._server.url, concurrency
        self.box_convention, self.box_choice = box_convention, box_choice
        self._resizing = (factor, min_pixels, max_pixels)
        self.revision, self.system = revision, system
        self.request: dict[str, Any] = {"model": model_id, "temperature": temperature, "max_tokens": max_tokens}
        self.request |= ({} if seed is None else {"seed": seed}) | (parameters or {})

    @property
    def fingerprint(self) -> str:
        """Everything that decides an answer as far as it is known here: the address stands for the weights behind it."""
        return fingerprint(
            model="openai-endpoint",
            url=self.url,
            request=self.request,
            revision=self.revision,
            system=self.system,
            box_convention=self.box_convention,
            resizing=self._resizing if self.box_convention == "absolute_resized" else None,
        )

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels to which the server resizes an image, for boxes that are `absolute_resized`."""
        return smart_resize(height, width, *self._resizing)

    def answer(self, images: Sequence[Image], prompts: Sequence[str]) -> list[str]:
        """Answer each prompt about its image.

        Args:
            images: uint8 (height, width, 3) each.
            prompts: one per image.

        Returns:
            One text per pair, in order; empty if the model refused to answer.

        Raises:
            ModelError: every try failed, the server refused or redirected the request, or it answered in another protocol.
        """
        with ThreadPoolExecutor(self.concurrency) as threads:
            return list(threads.map(self._ask, images, prompts))

    def _ask(self, image: Image, prompt: str) -> str:
        content = [{"type": "image_url", "image_url": {"url": _data_url(image)}}, {"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": content})
        return self._server.ask({**self.request, "messages": messages})


def _data_url(image: Image) -> str:
    """The image as a PNG in a data URL."""
    buffer = io.BytesIO()
    picture(image).save(buffer, "png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
