"""Who describes images: a transformers model, a model served in OpenAI's chat protocol, or a function. Imports nothing heavy.

    image --caption--> one sentence

Transformers and Endpoint also have `ask(prompt, images)`, for models that follow instructions. Captions are remembered by image, so
that the rate points of a codec pay for them once.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image as Pictures

from icmbench.codecs.base import CodecError, Image
from icmbench.codecs.diffusion.prompts.answers import final_answer
from icmbench.codecs.diffusion.prompts.chat_server import ChatServer
from icmbench.codecs.diffusion.prompts.model_files import commit_of, folder_sha256
from icmbench.codecs.diffusion.prompts.sources import function_name

MAX_TOKENS = 48  # Tokens of a caption.
MAX_REMEMBERED = 20_000  # Captions. When there are more, all are forgotten.


class Captioner(Protocol):
    """Describes images."""

    @property
    def facts(self) -> Any:
        """Everything that decides the captions, as JSON for fingerprints."""

    def caption(self, image: Image) -> str:
        """One sentence on an image, uint8 RGB (H, W, 3). It may be empty.

        Raises:
            CodecError: the model fails.
        """


class Transformers:
    """An image-to-text model of transformers that decodes greedily: BLIP, BLIP-2, GIT; LLaVA, Qwen-VL and other chat models.

    Args:
        source: A folder with the model and its processor, or a hub repository.
        device: Where the model runs, as torch names it.
        prompt: How a caption begins (BLIP), or the request for one (chat models). By default empty: BLIP then captions freely, and
            a chat model is asked for one sentence.
        revision: Branch, tag or commit of the hub repository; "main" by default.
        dtype: Name of the torch dtype of the weights. By default float32 on the CPU and bfloat16 elsewhere.
        max_tokens: The most tokens of an answer. 48 are enough for a sentence.

    Attributes:
        facts: Everything that decides the captions, as JSON.
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
        weights = list(map(list, folder_sha256(folder).items())) if folder.is_dir() else [self._source, self._commit]
        return ["transformers", weights, self._prompt, self._dtype, self._max_tokens]

    @functools.cached_property
    def _commit(self) -> str:
        """The commit that the revision stands for when this is first read.

        Raises:
            CodecError: neither the hub nor its cache on this disk has the repository.
        """
        return commit_of(self._source, self._revision)

    @functools.cached_property
    def _processor_and_model(self) -> tuple[Any, Any]:
        import torch
        import transformers

        location = {"local_files_only": True} if Path(self._source).is_dir() else {"revision": self._commit}
        try:
            processor = transformers.AutoProcessor.from_pretrained(self._source, **location)
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                self._source, dtype=getattr(torch, self._dtype), **location
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise CodecError(
                f"the captioner {self._source!r} cannot be had ({reason}): name a folder with a transformers model and its "
                "processor, such as a copy of Salesforce/blip2-opt-2.7b, or a hub repository where there is a network"
            ) from error
        return processor, model.eval().to(self._device)

    def caption(self, image: Image) -> str:
        """One sentence on an image, uint8 RGB (H, W, 3); see `ask`."""
        return self.ask(self._prompt, [image])

    def ask(self, prompt: str, images: Sequence[Image] = ()) -> str:
        """The model's answer to a prompt and images, as one line, without what it thinks before.

        Args:
            prompt: The request, or the words that a captioning model continues.
            images: uint8 RGB, (H, W, 3) each. A model that does not chat takes exactly one.

        Raises:
            CodecError: the model cannot be loaded, or does not take this number of images.
        """
        import torch

        processor, model = self._processor_and_model
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
        prompt_ids = inputs["input_ids"] if "input_ids" in inputs else ids[:, :0]
        length = prompt_ids.shape[1]
        if ids.shape[1] > length and torch.equal(ids[:, :length], prompt_ids):  # Some models repeat the prompt before the answer.
            ids = ids[:, length:]
        return " ".join(final_answer(processor.batch_decode(ids, skip_special_tokens=True)[0]).split())


class Endpoint:
    """A multimodal model served over HTTP in OpenAI's chat protocol: vLLM, SGLang, llama.cpp, hosted services.

    Args:
        url: The server's address up to the version, such as http://localhost:8000/v1.
        model: The model's name as the server lists it.
        prompt: The request for a caption.
        key: Name of the environment variable that holds the server's key. If it is unset, no key is sent.
        timeout: Seconds in which an answer must be complete.
        retries: Further requests, with growing pauses, if the server is busy or does not answer.
        revision: Names what decides the answers but is not sent to the server, such as a version of the weights. It enters the
            fingerprint.
        parameters: More keys of the request, or other values than the usual temperature of 0, seed of 0 and 96 tokens; no secrets.

    Attributes:
        facts: Everything that decides the captions as far as it is known here, as JSON. The address stands for the weights behind
            it.

    Raises:
        CodecError: the url is not an http or https address, or it or `parameters` or `key` hold a key.
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
        self._server = ChatServer(
            url,
            parameters or {},
            role="the captioner at ",
            key_option="key",
            key_variable=key,
            timeout=timeout,
            retries=retries,
            backoff=1.0,
            connections=1,
        )
        self._prompt = prompt
        self._request = {"model": model, "temperature": 0, "max_tokens": 2 * MAX_TOKENS, "seed": 0} | dict(parameters or {})
        self.facts: Any = ["endpoint", self._server.url, self._request, prompt, revision]

    def caption(self, image: Image) -> str:
        """One sentence on an image, uint8 RGB (H, W, 3); see `ask`."""
        return self.ask(self._prompt, [image])

    def ask(self, prompt: str, images: Sequence[Image] = ()) -> str:
        """The model's answer to a prompt and images, as one line, without what it thinks before; empty if it holds no text.

        Args:
            prompt: The request.
            images: uint8 RGB, (H, W, 3) each. They are sent as PNG before the prompt.

        Raises:
            CodecError: the server does not answer, refuses the request, or speaks another protocol.
        """
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
        body = self._request | {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]}
        try:
            return " ".join(final_answer(self._server.ask(body)).split())
        except ImportError as error:
            raise CodecError("a served captioner needs urllib3: pip install 'icmbench[endpoint]'") from error


class FunctionCaptioner:
    """A function from image to text.

    Args:
        function: uint8 RGB (H, W, 3) -> a sentence.

    Attributes:
        facts: The function's name in fingerprints, see `sources.function_name`, as JSON.
    """

    def __init__(self, function: Callable[[Image], str]) -> None:
        self._function = function
        self.facts: Any = ["function", function_name(function)]

    def caption(self, image: Image) -> str:
        """The function's value.

        Raises:
            CodecError: it is not text.
        """
        caption = self._function(image)
        if not isinstance(caption, str):
            raise CodecError(f"the captioner {self.facts[1]} gave {type(caption).__name__}, not text")
        return caption


class CachedCaptioner:
    """A captioner that describes an image once and remembers the caption by the image's pixels.

    Args:
        captioner: Describes the images that are not remembered.
    """

    def __init__(self, captioner: Transformers | Endpoint) -> None:
        self.captioner = captioner
        self._captions: dict[bytes, str] = {}

    @property
    def facts(self) -> Any:
        """Those of the captioner."""
        return self.captioner.facts

    def caption(self, image: Image) -> str:
        """The caption of an image, uint8 RGB (H, W, 3), from memory if it was described before."""
        key = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
        if key not in self._captions:
            if len(self._captions) >= MAX_REMEMBERED:
                self._captions.clear()
            self._captions[key] = self.captioner.caption(image)
        return self._captions[key]


def build_captioner(
    option: str | Path | Mapping[str, Any] | Callable[[Image], str] | None, device: str = "cpu"
) -> Captioner | None:
    """The captioner that an option names. Equal options share one captioner, with its weights and captions.

    Args:
        option: A model's folder or hub repository; arguments of `Transformers`, {source: ...}, or of `Endpoint`, {url: ...}; a
            function from image to text; or None for no captioner.
        device: Where a transformers model runs, as torch names it.

    Raises:
        CodecError: the arguments are neither those of `Transformers` nor of `Endpoint`.
    """
    if option is None or callable(option):
        return None if option is None else FunctionCaptioner(option)
    arguments = dict(option) if isinstance(option, Mapping) else {"source": str(option)}
    return _shared_captioner(json.dumps(arguments, sort_keys=True), device)


@functools.lru_cache(maxsize=4)
def _shared_captioner(arguments_json: str, device: str) -> CachedCaptioner:
    arguments = json.loads(arguments_json)
    try:
        return CachedCaptioner(Endpoint(**arguments) if "url" in arguments else Transformers(**{"device": device} | arguments))
    except TypeError as error:
        raise CodecError(f"the captioner takes a source or a url and a model ({error})") from error


def _data_url(image: Image) -> str:
    buffer = io.BytesIO()
    Pictures.fromarray(image).save(buffer, "png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
