"""Semantic residual retrieval: say only what the decoded preview does not show (Ke et al., ResULIC, ICML 2025, section 4, eq. 5).

    image   --captioner--> "a red barn by a pond"  --+
                                                     +-- reasoner --> "barn, pond" --tokens [-- pfo --]--> Text
    preview --captioner--> "a red house"           --+
    Text --> tokens + suffix --> text encoder

The prompts are the paper's (appendix C.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from icmbench.codecs.base import CodecError, Image
from icmbench.codecs.bitstream import Text
from icmbench.codecs.diffusion.prompts import captions
from icmbench.codecs.diffusion.prompts.captioners import Captioner, Remembered, captioner_of
from icmbench.codecs.diffusion.prompts.captions import CaptionGuide
from icmbench.codecs.diffusion.prompts.guides import named

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.engine import Draft
    from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity

ModelOption: TypeAlias = str | Path | Mapping[str, Any] | None  # what an option says of one
CAPTION_PROMPT = "Please describe this picture in detail with 40 words. Do not provide any description about feelings."
RESIDUAL_PROMPT = (
    "Original Image: '{original}'; Compressed Image: '{compressed}'. Provide information that is in the original image but not "
    "included in or mismatch with the compressed image. Don't include information that is already in the compressed image. Please "
    "use most compact words. Do not include the description for the compressed image. For example: if input is Original Image: A "
    "red barn surrounded by trees, reflected in a pond. Compressed Image: red house surrounded by trees. Residual caption is : A "
    "barn reflected in a pond. Please refer to this to output. Do not appear words like 'compressed image', 'original image' and "
    "'The semantic residual is'. If you think that the two descriptions mean almost the same thing, please output an empty string. "
)
_QUOTES = "\"'`\u201c\u201d\u2018\u2019"


class Reasoner(Protocol):
    """A language model, such as captioners.Endpoint. facts: JSON of all that decides its answers, for fingerprints."""

    @property
    def facts(self) -> Any: ...

    def ask(self, prompt: str) -> str:
        """CodecError where the model fails."""


class _Function:
    def __init__(self, function: Callable[[str], str]) -> None:
        self._function = function
        self.facts: Any = ["function", named(function)]

    def ask(self, prompt: str) -> str:
        said = self._function(prompt)
        if not isinstance(said, str):
            raise CodecError(f"the language model {self.facts[1]} gave {type(said).__name__}, not text")
        return said


def models_of(
    captioner: ModelOption | Callable[[Image], str], llm: ModelOption | Callable[[str], str], device: str
) -> tuple[Captioner | None, Reasoner | None]:
    """The captioner and the reasoner that options name, see captioners.captioner_of. CodecError.

    A captioner given by arguments is one that chats: it is asked with the paper's prompt, and reasons where no `llm` is given.
    """
    chats = isinstance(captioner, Mapping)
    writes = captioner_of({"prompt": CAPTION_PROMPT, **captioner} if isinstance(captioner, Mapping) else captioner, device)
    if callable(llm):
        return writes, _Function(llm)
    thinks = writes if llm is None else captioner_of(llm if isinstance(llm, Mapping) else {"source": str(llm)}, device)
    if not isinstance(thinks, Remembered) or not (chats or llm is not None):
        return writes, None
    return writes, cast(Reasoner, thinks.captioner)


class ResidualGuide:
    """A guide by residual captions. Prompts are token ids, never strings: the tiny profile embeds the two differently.

    residuals: what to say, for all images, by image id, or a JSON file {image id: text}; nothing is retrieved then.
    given: what the originals show, likewise. captioner: describes the other originals, and the previews. reasoner: subtracts the
    two; without it or without captioner, the caption of the original is said in full (the paper's ablation without Srr).
    optimiser: makes the tokens better ones. seed: of the stream's noise, for it.
    suffix: words that every prompt ends in; they take no bits. negative: words to lead away from.
    coder: of the tokens, "prior" or "clip16"; or one of texts, see captions.py.
    """

    checksum = 0  # a stream names its coder, and a coder's tables never change

    def __init__(
        self,
        residuals: str | Mapping[str, str] | Path | None = None,
        given: str | Mapping[str, str] | Path = "",
        captioner: Captioner | None = None,
        reasoner: Reasoner | None = None,
        optimiser: PerceptualFidelity | None = None,
        *,
        suffix: str = "",
        negative: str = "",
        coder: str = "prior",
        seed: int = 0,
    ) -> None:
        if optimiser is not None and coder not in captions.TOKEN_CODERS:
            raise CodecError(f"optimised tokens are no text: code them by {' or '.join(captions.TOKEN_CODERS)}, not by {coder}")
        self._negative, self._suffix, self._coder, self._seed = negative, suffix, coder, seed
        self._residuals = None if residuals is None else CaptionGuide(residuals, None, coder)
        self._originals = CaptionGuide(given, captioner, coder)
        self._captioner, self._reasoner, self._optimiser = captioner, reasoner, optimiser
        words = [suffix, negative, coder]
        models = [reasoner and reasoner.facts, optimiser and optimiser.facts]
        self.facts = [*words, self._residuals and self._residuals.facts, self._originals.facts, *models]

    def encode(self, image: Image, image_id: str | None, draft: Draft) -> Text | None:
        """The residual as text of a stream. CodecError where a caption lacks and nobody writes one."""
        words = self.residual(image, image_id, draft)
        if self._coder not in captions.TOKEN_CODERS:
            return captions.pack(words, self._coder)
        ids = tuple(captions.tokens(words)[: captions.MAX_TOKENS - len(self._ending(True))])
        if ids and self._optimiser is not None:
            ids = self._optimiser(ids, image, draft, self._complete, self._seed)
        return captions.pack_tokens(ids, self._coder)

    def residual(self, image: Image, image_id: str | None, draft: Draft) -> str:
        """What to say of an image, before coding; may be empty."""
        if self._residuals is not None:
            return self._residuals.caption(image, image_id)
        original = self._originals.caption(image, image_id)
        if not original or self._captioner is None or self._reasoner is None:
            return original
        prompt = RESIDUAL_PROMPT.format(original=original, compressed=self._captioner.caption(draft.pixels))
        return self._reasoner.ask(prompt).strip().strip(_QUOTES).strip()

    def prompt(self, text: Text | None) -> tuple[int, ...]:
        """The words and the suffix, as token ids whatever the coder. BitstreamError for bad text."""
        words = captions.unpack(text)
        return self._complete(tuple(captions.tokens(words)) if isinstance(words, str) else words)

    @property
    def negative(self) -> tuple[int, ...]:
        """The prompt to lead away from."""
        return tuple(captions.tokens(self._negative))

    def _complete(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return (*ids, *self._ending(bool(ids)))

    def _ending(self, words: bool) -> list[int]:
        return captions.tokens((", " if words else "") + self._suffix) if self._suffix else []
