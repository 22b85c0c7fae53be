"""A guide that sends no words: every image has the same prompt (CADC)."""

from __future__ import annotations

from typing import Any

from icmbench.codecs.base import BitstreamError, Image
from icmbench.codecs.bitstream import Text


class FixedPrompt:
    """A guide whose prompt is the same for all images and known to the decoder, which may put words of its own before it.

    Args:
        prompt: The prompt.
        captioner: Facts of the captioner that writes the decoder's own words, as JSON; None without one.
    """

    checksum = 0

    def __init__(self, prompt: str, captioner: Any = None) -> None:
        self._prompt = prompt
        self.facts: Any = [prompt, captioner]

    def image_facts(self, image_id: str) -> None:
        """None, because the prompt is the same for all images."""

    def encode(self, image: Image, image_id: str | None = None, draft: object = None) -> Text | None:
        """None for every image: no words are sent."""
        return None

    def prompt(self, text: Text | None) -> str:
        """The prompt.

        Raises:
            BitstreamError: the stream holds text.
        """
        if text is not None:
            raise BitstreamError("the stream holds text, but its codec sends none: it is damaged")
        return self._prompt
