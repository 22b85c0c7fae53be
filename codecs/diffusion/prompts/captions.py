"""Captions in a stream: text, or CLIP's tokens, in as few bits as each coder can.

    image --the user or a captioner--> caption --pack_caption--> Text --unpack_caption--> prompt, as text or as token ids

The coders by their names in options; a stream says which one it used:

    utf8, deflate, zlib     the text as it is, raw deflate, zlib (SLIM's own choice), both at level 9
    smallest                the one of these three that takes the fewest bytes for this caption
    clip16                  CLIP's tokens, 16 bits each
    prior                   CLIP's tokens under the static prior of prior.py: 11.2 bits each on COCO's captions, everything counted

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
from icmbench.codecs.diffusion.prompts import clip_tokens
from icmbench.codecs.diffusion.prompts.captioners import Captioner
from icmbench.codecs.diffusion.prompts.sources import read_json

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.backbone.stable_diffusion import Prompt

CODERS = {"utf8": 2, "deflate": 3, "zlib": 4, "clip16": 5, "prior": 6}  # Their numbers in a stream; 1 is the number of tags.
SMALLEST = "smallest"
BYTE_CODERS, TOKEN_CODERS = ("utf8", "deflate", "zlib"), ("clip16", "prior")
MAX_BYTES = 1024  # Bytes of a caption in UTF-8. The text encoder reads 75 tokens, which are usually fewer bytes.


def pack_caption(text: str, coder: str = SMALLEST) -> Text | None:
    """A caption as text of a stream, cut to what a stream may hold.

    Args:
        text: The caption. Runs of white space become one space.
        coder: A name of CODERS, or "smallest".

    Returns:
        The coded caption, or None if it is empty.

    Raises:
        CodecError: there is no such coder.
    """
    text = " ".join(text.split())
    if coder in TOKEN_CODERS:
        return pack_tokens(clip_tokens.tokenize(text), coder)
    data = text.encode("utf-8", "replace")[:MAX_BYTES].decode("utf-8", "ignore").encode()
    if not data:
        return None
    names = BYTE_CODERS if coder == SMALLEST else [_check_coder(coder)]
    compressed, name = min(((_COMPRESS[name](data), name) for name in names), key=lambda pair: len(pair[0]))
    return Text(CODERS[name], 0, 8 * len(compressed), compressed)


def pack_tokens(ids: Sequence[int], coder: str = "prior") -> Text | None:
    """CLIP's token ids as text of a stream. Needed beside `pack_caption` because tokens need not be those of any text.

    Args:
        ids: Without the marks of beginning and end. Ids after the first 75 are dropped.
        coder: "prior" or "clip16".

    Returns:
        The coded ids, or None if there are none.

    Raises:
        CodecError: an id is not one of CLIP's, or the coder is one of texts.
    """
    ids = [int(token) for token in ids[: clip_tokens.MAX_TOKENS]]
    if _check_coder(coder) not in TOKEN_CODERS:
        raise CodecError(f"token ids are coded by {' or '.join(TOKEN_CODERS)}, not by {coder}")
    if not all(0 <= token < clip_tokens.VOCABULARY_SIZE for token in ids):
        raise CodecError(f"a token id is not among CLIP's {clip_tokens.VOCABULARY_SIZE}")
    if not ids:
        return None
    if coder == "clip16":
        return Text(CODERS[coder], len(ids), 16 * len(ids), np.array(ids, "<u2").tobytes())
    from icmbench.codecs.diffusion.prompts import prior

    data = prior.load_prior().encode(ids)
    return Text(CODERS[coder], len(ids), 8 * len(data), data)


def unpack_caption(text: Text | None) -> Prompt:
    """The prompt in a stream's text: a string, or token ids if a token coder made it. Empty if there is no text.

    Raises:
        BitstreamError: no coder of captions made the text, or it is damaged.
    """
    if text is None:
        return ""
    name = next((name for name, number in CODERS.items() if number == text.mode), None)
    if name is None:
        raise BitstreamError(f"the stream's text was coded in way {text.mode}, which this codec does not know")
    if name in BYTE_CODERS:
        if text.count or text.bits != 8 * len(text.data):
            raise BitstreamError("the stream's caption is damaged: its length is not its own")
        return _decode_text(text.data, name)
    if not 1 <= text.count <= clip_tokens.MAX_TOKENS:
        raise BitstreamError(f"the stream claims {text.count} tokens of text, not 1 to {clip_tokens.MAX_TOKENS}")
    if text.bits != (16 * text.count if name == "clip16" else 8 * len(text.data)):
        raise BitstreamError("the stream's caption is damaged: its length is not its own")
    if name == "prior":
        from icmbench.codecs.diffusion.prompts import prior

        return prior.load_prior().decode(text.data, text.count)
    ids = tuple(np.frombuffer(text.data, "<u2").tolist())
    if max(ids) >= clip_tokens.VOCABULARY_SIZE:
        raise BitstreamError("the stream's text is damaged: it names a token that CLIP lacks")
    return ids


def _check_coder(coder: str) -> str:
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


def _decode_text(data: bytes, coder: str) -> str:
    if coder != "utf8":
        decompressor = zlib.decompressobj(-zlib.MAX_WBITS if coder == "deflate" else zlib.MAX_WBITS)
        try:
            text = decompressor.decompress(data, MAX_BYTES + 1)  # The limit keeps a damaged stream from filling the memory.
        except zlib.error as error:
            raise BitstreamError(f"the stream's caption is damaged ({error})") from error
        if not decompressor.eof or decompressor.unused_data:
            raise BitstreamError("the stream's caption is damaged: it does not end where it should")
        data = text
    if not 1 <= len(data) <= MAX_BYTES:
        raise BitstreamError(f"the stream's caption has {len(data)} bytes, not 1 to {MAX_BYTES}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BitstreamError("the stream's caption is damaged: it is no UTF-8") from error


class CaptionGuide:
    """A guide by captions.

    Args:
        captions: A caption for all images, a mapping from image id to caption, or a JSON file {image id: caption}. Empty for none.
        captioner: Describes the images for which no caption is given. Without a captioner and given captions, no image has text.
        coder: How captions are coded: a name of CODERS, or "smallest".

    Attributes:
        checksum: 0, because a stream names its coder and the tables of a coder never change.
        coder: The coder's name.
        facts: Everything that decides the captions of all images and their bits, as JSON. Of captions that are given by image id it
            says only that they are; `image_facts` has them.

    Raises:
        CodecError: there is no such coder, or the file cannot be read or holds something else.
    """

    checksum = 0

    def __init__(
        self, captions: str | Mapping[str, str] | Path = "", captioner: Captioner | None = None, coder: str = SMALLEST
    ) -> None:
        if coder != SMALLEST:
            _check_coder(coder)
        self.coder, self._captioner = coder, captioner
        self._given_captions = _read_captions(captions) if isinstance(captions, Path) else captions
        for_all = zlib.crc32(json.dumps(self._given_captions).encode()) if isinstance(self._given_captions, str) else None
        self.facts = [coder, for_all, captioner and captioner.facts]

    def image_facts(self, image_id: str) -> str | None:
        """The caption that is given by this image id; None if there is none, or one for all images."""
        return None if isinstance(self._given_captions, str) else self._given_captions.get(image_id)

    def encode(self, image: Image, image_id: str | None = None, draft: object = None) -> Text | None:
        """The caption of an image as text of a stream.

        Args:
            image: uint8 RGB, (H, W, 3).
            image_id: The image's id, for captions that are given by image id.
            draft: Not used.

        Raises:
            CodecError: captions are given by image id, but not for this image, and there is no captioner; or the captioner fails.
        """
        return pack_caption(self.caption(image, image_id), self.coder)

    def prompt(self, text: Text | None) -> Prompt:
        """What the text encoder reads; see `unpack_caption`."""
        return unpack_caption(text)

    def caption(self, image: Image, image_id: str | None = None) -> str:
        """The caption before coding, with the arguments and errors of `encode`."""
        if isinstance(self._given_captions, str):
            return self._given_captions or (self._captioner.caption(image) if self._captioner else "")
        if (caption := self._given_captions.get(image_id or "")) is not None:
            return caption
        if self._captioner is None:
            raise CodecError(f"there is no caption for image {image_id!r}: add it to the file, with an empty one for none")
        return self._captioner.caption(image)


def _read_captions(path: Path) -> Mapping[str, str]:
    captions = read_json(path, "{image id: caption}")
    if not isinstance(captions, dict) or not all(isinstance(caption, str) for caption in captions.values()):
        raise CodecError(f"{path} is no file of captions: write {{image id: caption}}, in JSON")
    return captions
