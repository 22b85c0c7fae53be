"""Tags from a fixed vocabulary, a fixed number of bits each.

    image --the user or a tagger--> tags --TagGuide.encode--> Text (13 bits a tag) --TagGuide.prompt--> "tag, tag, tag"

Diff-ICMH's vocabulary is RAM++'s list of 4,585 tags, `ram_tag_list.txt`, with one tag per line.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from icmbench.codecs.base import BitstreamError, CodecError, Image
from icmbench.codecs.bitstream import Text
from icmbench.codecs.diffusion.prompts.sources import function_name

TAGS = 1  # The number of this text coder in a stream; those of the caption coders follow in captions.CODERS.
MAX_TAGS = 255
RAM_TAG_LIST = "ram_tag_list.txt"

Tagger: TypeAlias = Callable[[Image], Sequence[int]]  # An image -> its tags as indexes into the vocabulary, in the order to send.


class TagGuide:
    """A guide by tags of one vocabulary.

    Args:
        vocabulary: The tags, by index. An index takes as many bits as the largest one needs. Empty: no image has text.
        tags: Tags for all images, or a mapping from image id to tags.
        tagger: Recognises the tags of images for which none are given.

    Attributes:
        vocabulary: The tags, by index.
        bits: Bits per tag.
        checksum: CRC-32 of the vocabulary, on which encoder and decoder must agree.
        facts: Everything that decides the tags of all images, as JSON. Of tags that are given by image id it says only that they
            are; `image_facts` has them.

    Raises:
        CodecError: tags or a tagger are given without a vocabulary, or a given tag is not in it.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] = (),
        tags: Sequence[str] | Mapping[str, Sequence[str]] = (),
        tagger: Tagger | None = None,
    ) -> None:
        if not vocabulary and (tags or tagger is not None):
            raise CodecError(
                f"tags are coded by their place in a vocabulary: set `vocabulary` to RAM++'s {RAM_TAG_LIST} or one like it"
            )
        self.vocabulary = tuple(vocabulary)
        self.bits = max(1, (len(vocabulary) - 1).bit_length())
        self.checksum = zlib.crc32("\n".join(self.vocabulary).encode())
        self._index_of_tag = {tag: index for index, tag in enumerate(self.vocabulary)}
        self._tagger = tagger
        self._given_tags: Mapping[str, list[int]] | list[int]
        if isinstance(tags, Mapping) and tags:
            self._given_tags = {image_id: self.indexes(image_tags) for image_id, image_tags in tags.items()}
        else:
            self._given_tags = self.indexes(list(tags))
        for_all = zlib.crc32(json.dumps(self._given_tags).encode()) if isinstance(self._given_tags, list) else None
        self.facts = [self.checksum, for_all, function_name(tagger) if tagger else None]

    def image_facts(self, image_id: str) -> list[int] | None:
        """The tags that are given by this image id, as indexes into the vocabulary; None if there are none, or tags for all."""
        return None if isinstance(self._given_tags, list) else self._given_tags.get(image_id)

    def indexes(self, tags: Sequence[str]) -> list[int]:
        """The indexes of tags in the vocabulary.

        Raises:
            CodecError: the vocabulary lacks a tag.
        """
        if unknown := [tag for tag in tags if tag not in self._index_of_tag]:
            raise CodecError(
                f"the vocabulary of {len(self.vocabulary)} tags has no {', '.join(map(repr, unknown))}: choose from it"
            )
        return [self._index_of_tag[tag] for tag in tags]

    def encode(self, image: Image, image_id: str | None = None, draft: object = None) -> Text | None:
        """The tags of an image as text of a stream, at most MAX_TAGS; None, which costs no bits, if the image has no tags.

        Raises:
            CodecError: tags are given by image id, but not for this image, and there is no tagger.
        """
        return self.pack(self._tags(image, image_id))

    def prompt(self, text: Text | None) -> str:
        """What the text encoder reads: "tag, tag, tag".

        Raises:
            BitstreamError: the text was not coded with this vocabulary.
        """
        return ", ".join(self.vocabulary[index] for index in self.unpack(text))

    def pack(self, tags: Sequence[int]) -> Text | None:
        """Tag indexes as text of a stream, `bits` bits each, most significant bit first; None if there are none."""
        if not len(tags):
            return None
        sent = np.asarray(tags[:MAX_TAGS], np.int64)
        digits = sent[:, None] >> np.arange(self.bits - 1, -1, -1) & 1
        return Text(TAGS, len(sent), digits.size, np.packbits(digits.astype(np.uint8)).tobytes())

    def unpack(self, text: Text | None) -> list[int]:
        """The tag indexes in a stream's text.

        Raises:
            BitstreamError: the text was not coded with this vocabulary.
        """
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
        if isinstance(self._given_tags, list):
            tags: list[int] | None = self._given_tags or None
        else:
            tags = self._given_tags.get(image_id or "")
        if tags is not None or not (self._tagger or self._given_tags):
            return tags or []
        if self._tagger is None:
            raise CodecError(f"there are no tags for image {image_id!r}: add it to the file, with an empty list for none")
        return self._tagger(image)
