"""Multimodal models that a server such as vLLM, SGLang, llama.cpp or a hosted service offers in OpenAI's chat protocol."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.models.batches import picture
from icmbench.tasks.models.coordinates import BoxConvention, smart_resize
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import require

RETRIED_STATUSES = (408, 409, 429, 500, 502, 503, 504)  # HTTP statuses of troubles that may pass.
CONNECT_SECONDS = 10.0
MAX_PAUSE_SECONDS = 60.0
MAX_ANSWER_BYTES = 2**22


class OpenAIEndpoint:
    """Any multimodal model behind an OpenAI-compatible chat endpoint, asked with one image and one prompt at a time.

    Images are sent as PNG, so that the server sees the pixels that the codec decoded. A request is repeated after a growing pause,
    or after the pause in the answer's Retry-After, if the connection fails, the answer breaks off, or its status is one of
    RETRIED_STATUSES.

    Args:
        url: address up to the version, such as http://localhost:8000/v1.
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
        parameters: further keys of the request, such as {top_p: 1, mm_processor_kwargs: {...}}.
        api_key_variable: environment variable that holds the key; if it is unset, no key is sent.
        concurrency: number of requests in flight at a time.
        timeout: longest wait for data from the server, in seconds.
        retries: how often a failed request is repeated.
        backoff: scale of the pauses between tries, in seconds. The first repetition follows at once, the next ones after 2, 4, 8
            and so on times `backoff`, at most 60 s.

    Raises:
        ModelError: `url` is not an http or https address.
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
    ) -> None:
        require("urllib3")
        if urlsplit(url).scheme not in ("http", "https"):
            raise ModelError(f"url: {url!r} is no http or https address, such as http://localhost:8000/v1")
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.box_convention = box_convention
        self._resizing = (factor, min_pixels, max_pixels)
        self.revision, self.system = revision, system
        self.request: dict[str, Any] = {"model": model_id, "temperature": temperature, "max_tokens": max_tokens}
        self.request |= ({} if seed is None else {"seed": seed}) | (parameters or {})
        self._api_key_variable, self.concurrency = api_key_variable, concurrency
        self._timeout, self._retries, self._backoff = timeout, retries, backoff

    @property
    def fingerprint(self) -> str:
        """Everything that decides an answer, but not the address, because the same model may move to another server."""
        return fingerprint(
            model="openai-endpoint",
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
            ModelError: every try failed, the server refused the request, or it answered in another protocol.
        """
        with ThreadPoolExecutor(self.concurrency) as threads:
            return list(threads.map(self._ask, images, prompts))

    @cached_property
    def _client(self) -> Any:
        return _http_client(self.url, self._retries, self._backoff, self._timeout, self.concurrency)

    def _ask(self, image: Image, prompt: str) -> str:
        import urllib3

        content = [{"type": "image_url", "image_url": {"url": _data_url(image)}}, {"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": content})
        key = os.environ.get(self._api_key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # urllib3 repeats a request whose connection or status fails, but not one whose answer breaks off.
        for retries_left in range(self._retries, -1, -1):
            try:
                return self._read(*self._post({**self.request, "messages": messages}, headers))
            except urllib3.exceptions.HTTPError as error:
                if retries_left and not isinstance(error, urllib3.exceptions.MaxRetryError):
                    continue
                reason = getattr(error, "reason", None) or error
                raise ModelError(f"{self.url} gave no answer in {self._retries + 1} tries ({reason}); is the server up?") from error
        raise AssertionError("unreachable")

    def _post(self, body: Any, headers: dict[str, str]) -> tuple[int, bytes]:
        """Send a request; return the status and at most MAX_ANSWER_BYTES of the answer."""
        response = self._client.request("POST", self.url, json=body, headers=headers, preload_content=False)
        try:
            return response.status, response.read(MAX_ANSWER_BYTES, decode_content=True)
        finally:
            response.close()

    def _read(self, status: int, body: bytes) -> str:
        """The text of an answer; empty if the model refused to answer."""
        excerpt = body[:200].decode(errors="replace")
        if status in (401, 403):
            raise ModelError(f"{self.url} wants a key ({status}); put it into the environment variable {self._api_key_variable}")
        if status != 200:
            raise ModelError(f"{self.url} refused the request for {self.request['model']!r} ({status}): {excerpt}")
        try:
            text = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ModelError(f"{self.url} does not speak OpenAI's chat protocol; it said: {excerpt}") from error
        return text if isinstance(text, str) else ""


def _http_client(url: str, retries: int, backoff: float, timeout: float, connections: int) -> Any:
    """A urllib3 pool that repeats failed requests and goes through the proxy that the environment names for `url`."""
    import urllib3

    retry = urllib3.Retry(
        total=retries,
        allowed_methods=None,  # Repeats POST requests too, which is safe because an answer changes nothing on the server.
        status_forcelist=RETRIED_STATUSES,
        raise_on_status=False,
        backoff_factor=backoff,
        backoff_max=MAX_PAUSE_SECONDS,
        backoff_jitter=backoff / 4,
    )
    options: dict[str, Any] = {
        "retries": retry,
        "timeout": urllib3.Timeout(connect=CONNECT_SECONDS, read=timeout),
        "maxsize": connections,
    }
    address = urlsplit(url)
    proxy = None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


def _data_url(image: Image) -> str:
    """The image as a PNG in a data URL."""
    buffer = io.BytesIO()
    picture(image).save(buffer, "png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
