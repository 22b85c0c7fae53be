"""Captions in a stream: text, or CLIP's tokens, in as few bits as each coder can; and who writes them.

    image --the user or a captioner--> caption --pack--> Text --unpack--> prompt, as text or as token ids

Coders, by their names in options; a stream says which it used:

    utf8, deflate, zlib     the text as it is, raw deflate, zlib (SLIM's own choice), both at level 9
    smallest                whichever of these three is the smallest for this caption
    clip16                  CLIP's tokens, 16 bits each
    prior                   CLIP's tokens under the static prior of prior.py; on COCO's captions 11.2 bits each, all counted

A stream also spends 3 bytes, or 4 for long texts, on coder, count and length. An empty caption is no text and costs nothing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from icmbench.codecs.base import BitstreamError, CodecError, Image
from icmbench.codecs.bitstream import Text
from icmbench.codecs.diffusion.prompts.captioners import Captioner
from icmbench.codecs.diffusion.prompts.tags import read

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.backbone.stable_diffusion import Prompt

CODERS = {"utf8": 2, "deflate": 3, "zlib": 4, "clip16": 5, "prior": 6}  # their numbers in a stream; 1 is that of tags
SMALLEST = "smallest"
BYTE_CODERS, TOKEN_CODERS = ("utf8", "deflate", "zlib"), ("clip16", "prior")
MAX_BYTES = 1024  # of a caption in UTF-8; the text encoder reads 75 tokens, which are fewer
MAX_TOKENS = 75
VOCABULARY = 49408  # CLIP's


def pack(text: str, coder: str = SMALLEST) -> Text | None:
    """A caption as text of a stream; None where it is empty. What the text encoder would not read is cut."""
    text = " ".join(text.split())
    if coder in TOKEN_CODERS:
        return pack_tokens(tokens(text), coder)
    whole = text.encode("utf-8", "replace")[:MAX_BYTES].decode("utf-8", "ignore").encode()
    if not whole:
        return None
    names = BYTE_CODERS if coder == SMALLEST else [_known(coder)]
    data, name = min(((_COMPRESS[name](whole), name) for name in names), key=lambda pair: len(pair[0]))
    return Text(CODERS[name], 0, 8 * len(data), data)


def pack_tokens(ids: Sequence[int], coder: str = "prior") -> Text | None:
    """CLIP's token ids, without those of beginning and end, as text of a stream: the first 75; None where there are none.

    CodecError for an id that CLIP lacks, and for a coder of texts: ids -> text -> ids is not the identity.
    """
    ids = [int(token) for token in ids[:MAX_TOKENS]]
    if _known(coder) not in TOKEN_CODERS:
        raise CodecError(f"token ids are coded by {' or '.join(TOKEN_CODERS)}, not by {coder}")
    if not all(0 <= token < VOCABULARY for token in ids):
        raise CodecError(f"a token id is not among CLIP's {VOCABULARY}")
    if not ids:
        return None
    if coder == "clip16":
        return Text(CODERS[coder], len(ids), 16 * len(ids), np.array(ids, "<u2").tobytes())
    from icmbench.codecs.diffusion.prompts import prior

    data = prior.load().encode(ids)
    return Text(CODERS[coder], len(ids), 8 * len(data), data)


def unpack(text: Text | None) -> Prompt:
    """The prompt of a stream's text: a string, or token ids where it was coded as such. BitstreamError for anything else."""
    if text is None:
        return ""
    name = next((name for name, number in CODERS.items() if number == text.mode), None)
    if name is None:
        raise BitstreamError(f"the stream's text was coded in way {text.mode}, which this codec does not know")
    if name in BYTE_CODERS:
        if text.count or text.bits != 8 * len(text.data):
            raise BitstreamError("the stream's caption is damaged: its length is not its own")
        return _string(text.data, name)
    if not 1 <= text.count <= MAX_TOKENS:
        raise BitstreamError(f"the stream claims {text.count} tokens of text, not 1 to {MAX_TOKENS}")
    if text.bits != (16 * text.count if name == "clip16" else 8 * len(text.data)):
        raise BitstreamError("the stream's caption is damaged: its length is not its own")
    if name == "prior":
        from icmbench.codecs.diffusion.prompts import prior

        return prior.load().decode(text.data, text.count)
    ids = tuple(np.frombuffer(text.data, "<u2").tolist())
    if max(ids) >= VOCABULARY:
        raise BitstreamError("the stream's text is damaged: it names a token that CLIP lacks")
    return ids


def tokens(text: str) -> list[int]:
    """CLIP's token ids of a text, without those of beginning and end."""
    from icmbench.codecs.diffusion.backbone.stable_diffusion import clip_tokenizer

    return clip_tokenizer().encode(text)


def _known(coder: str) -> str:
    if coder not in CODERS:
        raise CodecError(f"there is no coder of captions {coder!r}: choose from {', '.join([*CODERS, SMALLEST])}")
    return coder


def _deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "utf8": lambda data: data,
    "deflate": _deflate,
    "zlib": lambda data: zlib.compress(data, 9),
}


def _string(data: bytes, name: str) -> str:
    if name != "utf8":
        expander = zlib.decompressobj(-zlib.MAX_WBITS if name == "deflate" else zlib.MAX_WBITS)
        try:
            whole = expander.decompress(data, MAX_BYTES + 1)  # never more, whatever the bytes promise
        except zlib.error as error:
            raise BitstreamError(f"the stream's caption is damaged ({error})") from error
        if not expander.eof or expander.unused_data:
            raise BitstreamError("the stream's caption is damaged: it does not end where it should")
        data = whole
    if not 1 <= len(data) <= MAX_BYTES:
        raise BitstreamError(f"the stream's caption has {len(data)} bytes, not 1 to {MAX_BYTES}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BitstreamError("the stream's caption is damaged: it is no UTF-8") from error


class CaptionGuide:
    """A guide by captions.

    given: a caption for all images, or by image id, or a JSON file {image id: caption}. captioner: describes the images that were
    given none; without it these have no text where nothing is given at all. coder: see above.
    """

    checksum = 0  # a stream names its coder, and a coder's tables never change

    def __init__(
        self, given: str | Mapping[str, str] | Path = "", captioner: Captioner | None = None, coder: str = SMALLEST
    ) -> None:
        if coder != SMALLEST:
            _known(coder)
        self.coder, self._captioner = coder, captioner
        self._given = _captions_of(given) if isinstance(given, Path) else given
        listed = json.dumps(self._given if isinstance(self._given, str) else dict(self._given), sort_keys=True)
        self.facts = [coder, zlib.crc32(listed.encode()), captioner and captioner.facts]

    def encode(self, image: Image, image_id: str | None = None, draft: object = None) -> Text | None:
        """The caption of an image as text of a stream. CodecError where the given captions lack this id and nobody writes one."""
        return pack(self.caption(image, image_id), self.coder)

    def prompt(self, text: Text | None) -> Prompt:
        """What the text encoder reads. BitstreamError for bad text."""
        return unpack(text)

    def caption(self, image: Image, image_id: str | None = None) -> str:
        """The caption before coding."""
        if isinstance(self._given, str):
            return self._given or (self._captioner.caption(image) if self._captioner else "")
        if (given := self._given.get(image_id or "")) is not None:
            return given
        if self._captioner is None:
            raise CodecError(f"there is no caption for image {image_id!r}: add it to the file, with an empty one for none")
        return self._captioner.caption(image)


def _captions_of(path: Path) -> Mapping[str, str]:
    try:
        captions = json.loads(read(path))
    except json.JSONDecodeError as error:
        raise CodecError(f"{path} is no JSON ({error}): write {{image id: caption}}") from error
    if not isinstance(captions, dict) or not all(isinstance(caption, str) for caption in captions.values()):
        raise CodecError(f"{path} is no file of captions: write {{image id: caption}}, in JSON")
    return captions
