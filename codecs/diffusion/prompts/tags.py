"""What of an image is said in words: tags from a fixed vocabulary, a fixed number of bits each.

    image --the user or a tagger--> tags --TagGuide.encode--> Text (13 bits a tag) --TagGuide.prompt--> "tag, tag, tag"

The vocabulary is a file of one tag a line; Diff-ICMH's is RAM++'s list of 4,585, `ram_tag_list.txt`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from icmbench.codecs.base import BitstreamError, CodecError, Image
from icmbench.codecs.bitstream import Text
from icmbench.codecs.diffusion.prompts.guides import named

TAGS = 1  # this text coder's number in the stream
MAX_TAGS = 255
VOCABULARY = "ram_tag_list.txt"

Tagger: TypeAlias = Callable[[Image], Sequence[int]]  # an image's tags as indexes into the vocabulary, in order


class TagGuide:
    """Codes tags of one vocabulary.

    vocabulary: tags by index; an index takes as many bits as the largest needs. Empty: no image has text.
    given: tags for all images, or by image id. tagger: recognises the tags of images that were given none.
    `checksum` is that of the vocabulary, on which encoder and decoder must agree; `facts` all that decides an image's tags.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] = (),
        given: Sequence[str] | Mapping[str, Sequence[str]] = (),
        tagger: Tagger | None = None,
    ) -> None:
        if not vocabulary and (given or tagger is not None):
            raise CodecError(
                f"tags are coded by their place in a vocabulary: set `vocabulary` to RAM++'s {VOCABULARY} or one like it"
            )
        self.vocabulary = tuple(vocabulary)
        self.bits = max(1, (len(vocabulary) - 1).bit_length())
        self.checksum = zlib.crc32("\n".join(self.vocabulary).encode())
        self._index = {tag: index for index, tag in enumerate(self.vocabulary)}
        self._tagger = tagger
        self._given: Mapping[str, list[int]] | list[int]
        if isinstance(given, Mapping):
            self._given = {image_id: self.indexes(tags) for image_id, tags in given.items()}
        else:
            self._given = self.indexes(given)
        listed = json.dumps(self._given, sort_keys=True)
        self.facts = [self.checksum, zlib.crc32(listed.encode()), named(tagger) if tagger else None]

    @classmethod
    def from_files(
        cls,
        vocabulary: Path | None,
        given: Sequence[str] | Path | None = None,
        tagger: Tagger | Path | None = None,
        device: str = "cpu",
    ) -> TagGuide:
        """vocabulary: one tag a line. given: tags, or a JSON file {image id: [tag, ...]}. tagger: RAM++'s folder, whose tag list is
        then the default vocabulary. CodecError where a file cannot be read."""
        if isinstance(tagger, Path):
            from icmbench.codecs.diffusion.prompts.ram import RamPlus

            vocabulary, tagger = vocabulary or tagger / VOCABULARY, RamPlus(tagger, device)
        words = [] if vocabulary is None else [line.strip() for line in read(vocabulary).rstrip().splitlines()]
        if isinstance(given, Path):
            try:
                given = json.loads(read(given))
            except json.JSONDecodeError as error:
                raise CodecError(f"{given} is no JSON ({error}): write {{image id: [tag, ...]}}") from error
            if not isinstance(given, dict) or not all(isinstance(tags, list) for tags in given.values()):
                raise CodecError("a file of tags holds {image id: [tag, ...]}, in JSON")
        return cls(words, given or (), tagger)

    def indexes(self, tags: Sequence[str]) -> list[int]:
        """The places of tags in the vocabulary. CodecError for one that it lacks."""
        if unknown := [tag for tag in tags if tag not in self._index]:
            raise CodecError(
                f"the vocabulary of {len(self.vocabulary)} tags has no {', '.join(map(repr, unknown))}: choose from it"
            )
        return [self._index[tag] for tag in tags]

    def encode(self, image: Image, image_id: str | None = None, draft: object = None) -> Text | None:
        """The tags of an image, at most MAX_TAGS, most significant bits first; None, which costs nothing, where there are none.

        CodecError where tags are given by image id and this id has none, and no tagger either.
        """
        return self.pack(self._tags(image, image_id))

    def prompt(self, text: Text | None) -> str:
        """What the text encoder reads: "tag, tag, tag". BitstreamError for text that this vocabulary did not code."""
        return ", ".join(self.vocabulary[index] for index in self.unpack(text))

    def pack(self, tags: Sequence[int]) -> Text | None:
        """Indexes as text of a stream."""
        if not len(tags):
            return None
        kept = np.asarray(tags[:MAX_TAGS], np.int64)
        digits = kept[:, None] >> np.arange(self.bits - 1, -1, -1) & 1
        return Text(TAGS, len(kept), digits.size, np.packbits(digits.astype(np.uint8)).tobytes())

    def unpack(self, text: Text | None) -> list[int]:
        """Text of a stream as indexes. BitstreamError where it is none of this vocabulary's."""
        if text is None:
            return []
        if not self.vocabulary:
            raise BitstreamError("the stream holds tags: set `vocabulary` to the list that they were coded with")
        if text.mode != TAGS or text.count * self.bits != text.bits:
            raise BitstreamError("the stream's text was coded with another vocabulary: decode with the one it was made with")
        digits = np.unpackbits(np.frombuffer(text.data, np.uint8), count=text.bits).reshape(text.count, self.bits)
        indexes = (digits.astype(np.int64) << np.arange(self.bits - 1, -1, -1)).sum(1)
        if (indexes >= len(self.vocabulary)).any():
            raise BitstreamError("the stream names a tag that the vocabulary lacks: it is damaged")
        return indexes.tolist()

    def _tags(self, image: Image, image_id: str | None) -> Sequence[int]:
        if isinstance(self._given, list):
            given: list[int] | None = self._given or None
        else:
            given = self._given.get(image_id or "")
        if given is not None or not (self._tagger or self._given):
            return given or []
        if self._tagger is None:
            raise CodecError(f"there are no tags for image {image_id!r}: add it to the file, with an empty list for none")
        return self._tagger(image)


def read(path: Path) -> str:
    """A text file in UTF-8. CodecError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CodecError(f"{path} cannot be read ({error}): name a text file in UTF-8") from error
