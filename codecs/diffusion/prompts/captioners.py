"""Who describes images: a transformers model, a model served in OpenAI's chat protocol, or a function. Imports nothing heavy.

    image --captioner--> caption        Transformers, Endpoint: also `ask(prompt, images)`, for models that follow instructions

Captions are remembered by image, so that the rate points of a codec pay for them once.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image as Pictures

from icmbench.codecs.base import CodecError, Image, file_sha256
from icmbench.codecs.diffusion.prompts.guides import named

MAX_TOKENS = 48  # of a caption
REMEMBERED = 20_000
LARGEST_ANSWER = 2**22  # bytes
BUSY = (408, 409, 429, 500, 502, 503, 504)  # worth another try
_WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".jinja")


class Captioner(Protocol):
    """Describes images. facts: JSON of all that decides the captions, for fingerprints."""

    @property
    def facts(self) -> Any: ...

    def caption(self, image: Image) -> str:
        """One sentence on an image, uint8 (H, W, 3); may be empty. CodecError where the model fails."""


class Transformers:
    """An image-to-text model of transformers, decoding greedily: BLIP, BLIP-2, GIT; LLaVA, Qwen-VL and others that chat.

    source: a folder, or a hub repository, at `revision`. prompt: what a caption starts with (BLIP), or the request (models that
    chat). dtype: of the weights; by default bfloat16 on CUDA, float32 on the CPU. max_tokens: of an answer.
    """

    def __init__(
        self,
        source: str | Path,
        device: str = "cpu",
        prompt: str = "",
        revision: str | None = None,
        dtype: str | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self._source, self._device, self._prompt, self._revision = str(source), device, prompt, revision
        self._dtype, self._max_tokens = dtype or ("float32" if device == "cpu" else "bfloat16"), max_tokens

    @functools.cached_property
    def facts(self) -> Any:
        folder = Path(self._source)
        if not folder.is_dir():
            return ["transformers", self._source, self._revision, self._prompt, self._dtype, self._max_tokens]
        files = [path for path in sorted(folder.iterdir()) if path.suffix in _WEIGHTS]
        return ["transformers", [[path.name, file_sha256(path)] for path in files], self._prompt, self._dtype, self._max_tokens]

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch
        import transformers

        local = {"local_files_only": True} if Path(self._source).is_dir() else {"revision": self._revision or "main"}
        try:
            processor = transformers.AutoProcessor.from_pretrained(self._source, **local)
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                self._source, dtype=getattr(torch, self._dtype), **local
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise CodecError(
                f"the captioner {self._source!r} cannot be had ({reason}): name a folder with a transformers model and its "
                "processor, such as a copy of Salesforce/blip2-opt-2.7b, or a hub repository where there is a network"
            ) from error
        return processor, model.eval().to(self._device)

    def caption(self, image: Image) -> str:
        return self.ask(self._prompt, [image])

    def ask(self, prompt: str, images: Sequence[Image] = ()) -> str:
        """What the model says to a prompt and images, uint8 (H, W, 3). CodecError where it takes no prompt without an image."""
        import torch

        processor, model = self._loaded
        pictures = [Pictures.fromarray(image) for image in images]
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}] * len(pictures) + [
                {"type": "text", "text": prompt or "Describe the image in one sentence."}
            ]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        elif len(pictures) != 1:
            raise CodecError(f"the captioner {self._source!r} describes one image at a time: name a model that chats")
        inputs = processor(images=pictures or None, text=prompt or None, return_tensors="pt").to(self._device)
        inputs = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=self._max_tokens, do_sample=False, num_beams=1)
        given = inputs["input_ids"] if "input_ids" in inputs else ids[:, :0]
        if ids.shape[1] > given.shape[1] and torch.equal(ids[:, : given.shape[1]], given):  # some repeat what they were told
            ids = ids[:, given.shape[1] :]
        return " ".join(processor.batch_decode(ids, skip_special_tokens=True)[0].split())


class Endpoint:
    """A multimodal model served over HTTP in OpenAI's chat protocol: vLLM, SGLang, llama.cpp, hosted services.

    url: up to the version, such as http://localhost:8000/v1. model: as the server lists it. prompt: the request for a caption.
    key: the environment variable that holds the server's key; none is sent where it is unset. timeout: seconds for an answer.
    revision: what decides the answers but is not reported by the server. parameters: more keys of the request.
    """

    def __init__(
        self,
        url: str,
        model: str,
        prompt: str = "Describe the image in one short sentence.",
        key: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        retries: int = 6,
        revision: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise CodecError(f"the captioner's url {url!r} is no http or https address, such as http://localhost:8000/v1")
        self._url, self._prompt, self._key = f"{url.rstrip('/')}/chat/completions", prompt, key
        self._timeout, self._retries = timeout, retries
        self._request = {"model": model, "temperature": 0, "max_tokens": 2 * MAX_TOKENS, "seed": 0} | dict(parameters or {})
        self.facts: Any = ["endpoint", self._request, prompt, revision]  # not the address: it may be served elsewhere tomorrow

    def caption(self, image: Image) -> str:
        return self.ask(self._prompt, [image])

    def ask(self, prompt: str, images: Sequence[Image] = ()) -> str:
        """What the model says to a prompt and images, uint8 (H, W, 3), which are sent as PNG."""
        import urllib3

        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
        body = self._request | {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]}
        key = os.environ.get(self._key)
        try:
            response = self._client.request(
                "POST",
                self._url,
                json=body,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=self._timeout,
                preload_content=False,
            )
            answer = response.read(LARGEST_ANSWER, decode_content=True)
            response.close()
        except urllib3.exceptions.HTTPError as error:
            raise CodecError(f"the captioner at {self._url} gave no answer ({error}); is the server up?") from error
        shown = answer[:200].decode(errors="replace")
        if response.status in (401, 403):
            raise CodecError(f"the captioner at {self._url} wants a key ({response.status}): put it into the variable {self._key}")
        if response.status != 200:
            raise CodecError(f"the captioner at {self._url} refused the request ({response.status}): {shown}")
        try:
            said = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise CodecError(f"the captioner at {self._url} does not speak OpenAI's chat protocol; it said: {shown}") from error
        return " ".join(said.split()) if isinstance(said, str) else ""

    @functools.cached_property
    def _client(self) -> Any:
        try:
            import urllib3
        except ImportError as error:
            raise CodecError("a served captioner needs urllib3: pip install 'icmbench[endpoint]'") from error
        retry = urllib3.Retry(
            total=self._retries, allowed_methods=None, status_forcelist=BUSY, raise_on_status=False, backoff_factor=1
        )
        return urllib3.PoolManager(retries=retry)


class Function:
    """A function from image to text, known in fingerprints by its attribute `fingerprint` or its name."""

    def __init__(self, function: Callable[[Image], str]) -> None:
        self._function = function
        self.facts: Any = ["function", named(function)]

    def caption(self, image: Image) -> str:
        said = self._function(image)
        if not isinstance(said, str):
            raise CodecError(f"the captioner {self.facts[1]} gave {type(said).__name__}, not text")
        return said


class Remembered:
    """A model that describes an image once."""

    def __init__(self, captioner: Transformers | Endpoint) -> None:
        self.captioner = captioner
        self._said: dict[bytes, str] = {}

    @property
    def facts(self) -> Any:
        return self.captioner.facts

    def caption(self, image: Image) -> str:
        key = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
        if key not in self._said:
            if len(self._said) >= REMEMBERED:
                self._said.clear()
            self._said[key] = self.captioner.caption(image)
        return self._said[key]


def captioner_of(option: str | Path | Mapping[str, Any] | Callable[[Image], str] | None, device: str = "cpu") -> Captioner | None:
    """The captioner that an option names: a model's folder or hub repository; {source: ...}, Transformers' arguments; {url: ...},
    Endpoint's; a function; None for none. The same option gives the same captioner. CodecError."""
    if option is None or callable(option):
        return None if option is None else Function(option)
    arguments = dict(option) if isinstance(option, Mapping) else {"source": str(option)}
    return _named(json.dumps(arguments, sort_keys=True), device)


@functools.lru_cache(maxsize=4)
def _named(arguments: str, device: str) -> Remembered:
    given = json.loads(arguments)
    try:
        return Remembered(Endpoint(**given) if "url" in given else Transformers(**{"device": device} | given))
    except TypeError as error:
        raise CodecError(f"the captioner takes a source or a url and a model ({error})") from error


def _data_url(image: Image) -> str:
    buffer = io.BytesIO()
    Pictures.fromarray(image).save(buffer, "png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
