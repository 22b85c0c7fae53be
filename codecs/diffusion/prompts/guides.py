"""The contract of text guidance: what of an image is said in words, in how many bits, and what the decoder reads.

    image, draft --encode--> Text --stream--> prompt --> text encoder

TagGuide (Diff-ICMH) is one; a guide imports nothing heavy before it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from icmbench.codecs.base import Image
from icmbench.codecs.bitstream import Text

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.backbone.stable_diffusion import Prompt
    from icmbench.codecs.diffusion.engine import Draft


class Guide(Protocol):
    """Codes the words of an image. facts: JSON of all that decides them; checksum: 32 bits both encoder and decoder must have."""

    @property
    def facts(self) -> Any: ...

    @property
    def checksum(self) -> int: ...

    def encode(self, image: Image, image_id: str | None, draft: Draft) -> Text | None:
        """The words of an image, uint8 (H, W, 3); None, which costs nothing, for none. draft: what a decoder has. CodecError."""

    def prompt(self, text: Text | None) -> Prompt:
        """What the text encoder reads. BitstreamError for text that this guide did not code."""


def named(function: Any) -> str:
    """What a function or object is called in fingerprints: its attribute `fingerprint`, or its name."""
    return str(getattr(function, "fingerprint", None) or getattr(function, "__qualname__", type(function).__qualname__))
