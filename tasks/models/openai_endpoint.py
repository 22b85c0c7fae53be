"""A multimodal model served over HTTP in OpenAI's chat protocol: vLLM, SGLang, llama.cpp, hosted services."""

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

BUSY = (408, 409, 429, 500, 502, 503, 504)  # worth another try
CONNECT_SECONDS = 10.0
LONGEST_PAUSE = 60.0
LARGEST_ANSWER = 2**22  # bytes


class OpenAIEndpoint:
    """Any multimodal model behind an OpenAI-compatible chat endpoint, asked with one image and one prompt at a time.

    Images are sent as PNG, so that the server sees the pixels that the codec decoded. Refused and failed requests are repeated
    with growing pauses, or as long as the server's Retry-After says; what still fails raises ModelError.

    url: up to the version, such as http://localhost:8000/v1. model_id: as the server lists it.
    box_convention: how this model writes boxes, which `referring` must know; Qwen2.5-VL `absolute_resized`, Qwen2-VL and Qwen3-VL
    `norm1000`.
    factor, min_pixels, max_pixels: with `absolute_resized`, the server's resizing; the defaults are Qwen2.5-VL's own.
    revision: what the server does not report but decides its answers, such as a commit or a quantisation.
    parameters: more keys of the request, such as {top_p: 1, mm_processor_kwargs: {...}}.
    api_key_variable: the environment variable that holds the key; none is sent where it is unset.
    timeout: seconds for one answer. backoff: the first pause in seconds, which doubles.
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
        """The address is not in it: the same model may be served from elsewhere tomorrow."""
        return fingerprint(
            model="openai-endpoint",
            request=self.request,
            revision=self.revision,
            system=self.system,
            box_convention=self.box_convention,
            resizing=self._resizing if self.box_convention == "absolute_resized" else None,
        )

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the image as the model sees it, where its boxes are `absolute_resized`."""
        return smart_resize(height, width, *self._resizing)

    def answer(self, images: Sequence[Image], prompts: Sequence[str]) -> list[str]:
        """One text for each image and prompt, in order; several requests are in flight at a time."""
        with ThreadPoolExecutor(self.concurrency) as threads:
            return list(threads.map(self._ask, images, prompts))

    @cached_property
    def _client(self) -> Any:
        import urllib3

        retry = urllib3.Retry(
            total=self._retries,
            allowed_methods=None,  # asking twice does no harm
            status_forcelist=BUSY,
            raise_on_status=False,
            backoff_factor=self._backoff,
            backoff_max=LONGEST_PAUSE,
            backoff_jitter=self._backoff / 4,
        )
        options: dict[str, Any] = {
            "retries": retry,
            "timeout": urllib3.Timeout(connect=CONNECT_SECONDS, read=self._timeout),
            "maxsize": self.concurrency,
        }
        address = urlsplit(self.url)
        proxy = None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)
        return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    def _ask(self, image: Image, prompt: str) -> str:
        import urllib3

        content = [{"type": "image_url", "image_url": {"url": _data_url(image)}}, {"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": content})
        key = os.environ.get(self._api_key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        for left in range(self._retries, -1, -1):  # answers that break off; the client itself tries the request again
            try:
                return self._read(*self._post({**self.request, "messages": messages}, headers))
            except urllib3.exceptions.HTTPError as error:
                if left and not isinstance(error, urllib3.exceptions.MaxRetryError):
                    continue
                reason = getattr(error, "reason", None) or error
                raise ModelError(f"{self.url} gave no answer in {self._retries + 1} tries ({reason}); is the server up?") from error
        raise AssertionError("unreachable")

    def _post(self, body: Any, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and answer, of which no more is read than any model says."""
        response = self._client.request("POST", self.url, json=body, headers=headers, preload_content=False)
        try:
            return response.status, response.read(LARGEST_ANSWER, decode_content=True)
        finally:
            response.close()

    def _read(self, status: int, body: bytes) -> str:
        """The text of an answer; a refusal to speak is an empty one."""
        shown = body[:200].decode(errors="replace")
        if status in (401, 403):
            raise ModelError(f"{self.url} wants a key ({status}); put it into the environment variable {self._api_key_variable}")
        if status != 200:
            raise ModelError(f"{self.url} refused the request for {self.request['model']!r} ({status}): {shown}")
        try:
            text = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ModelError(f"{self.url} does not speak OpenAI's chat protocol; it said: {shown}") from error
        return text if isinstance(text, str) else ""


def _data_url(image: Image) -> str:
    buffer = io.BytesIO()
    picture(image).save(buffer, "png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
