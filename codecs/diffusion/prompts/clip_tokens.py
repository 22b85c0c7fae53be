"""CLIP's tokens: the numbered pieces of words that Stable Diffusion's text encoder reads."""

from __future__ import annotations

VOCABULARY_SIZE = 49408
WORD_TOKENS = VOCABULARY_SIZE - 2  # Ids below this stand for pieces of words; the two others mark where a text begins and ends.
START = WORD_TOKENS
MAX_TOKENS = 75  # The text encoder reads 77 tokens, of which the marks take two.


def tokenize(text: str) -> list[int]:
    """CLIP's token ids of a text, without the marks of beginning and end."""
    from icmbench.codecs.diffusion.backbone.stable_diffusion import clip_tokenizer

    return clip_tokenizer().encode(text)
