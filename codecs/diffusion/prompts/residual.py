"""Semantic residual retrieval: send only the words that the decoded preview does not show.

Ke et al., ResULIC, ICML 2025, section 4, eq. 5; the prompts to the models are the paper's (appendix C.4).

    image   --captioner--> "a red barn by a pond"  --+
                                                     +-- reasoner --> "barn, pond" --tokens [-- pfo --]--> Text
    preview --captioner--> "a red house"           --+
    Text --> tokens + suffix --> text encoder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from icmbench.codecs.base import CodecError, Image
from icmbench.codecs.bitstream import Text
from icmbench.codecs.diffusion.prompts import clip_tokens
from icmbench.codecs.diffusion.prompts.captioners import CachedCaptioner, Captioner, build_captioner
from icmbench.codecs.diffusion.prompts.captions import TOKEN_CODERS, CaptionGuide, pack_caption, pack_tokens, unpack_caption
from icmbench.codecs.diffusion.prompts.guides import Draft
from icmbench.codecs.diffusion.prompts.sources import function_name

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity

# How an option names a model: hub name, path or arguments.
ModelOption: TypeAlias = str | Path | Mapping[str, Any] | None
CAPTION_PROMPT = "Please describe this picture in detail with 40 words. Do not provide any description about feelings."
RESIDUAL_PROMPT = (
    "Original Image: '{original}'; Compressed Image: '{compressed}'. Provide information that is in the original image but not "
    "included in or mismatch with the compressed image. Don't include information that is already in the compressed image. Please "
    "use most compact words. Do not include the description for the compressed image. For example: if input is Original Image: A "
    "red barn surrounded by trees, reflected in a pond. Compressed Image: red house surrounded by trees. Residual caption is : A "
    "barn reflected in a pond. Please refer to this to output. Do not appear words like 'compressed image', 'original image' and "
    "'The semantic residual is'. If you think that the two descriptions mean almost the same thing, please output an empty string. "
)
NO_REASONER = "none"  # The option `llm` of experiments without semantic residual retrieval.
_QUOTES = "\"'`\u201c\u201d\u2018\u2019"


class Reasoner(Protocol):
    """A language model that answers prompts, such as captioners.Endpoint."""

    @property
    def facts(self) -> Any:
        """Everything that decides its answers, as JSON for fingerprints."""

    def ask(self, prompt: str) -> str:
        """The answer to a prompt.

        Raises:
            CodecError: the model fails.
        """


class FunctionReasoner:
    """A function from prompt to answer.

    Args:
        function: A prompt -> the answer.

    Attributes:
        facts: The function's name in fingerprints, see `sources.function_name`, as JSON.
    """

    def __init__(self, function: Callable[[str], str]) -> None:
        self._function = function
        self.facts: Any = ["function", function_name(function)]

    def ask(self, prompt: str) -> str:
        """The function's value.

        Raises:
            CodecError: it is not text.
        """
        answer = self._function(prompt)
        if not isinstance(answer, str):
            raise CodecError(f"the language model {self.facts[1]} gave {type(answer).__name__}, not text")
        return answer


def build_captioner_and_reasoner(
    captioner: ModelOption | Callable[[Image], str], llm: ModelOption | Callable[[str], str], device: str
) -> tuple[Captioner | None, Reasoner | None]:
    """The captioner and the reasoner that two options name.

    Args:
        captioner: See `captioners.build_captioner`. Arguments in a mapping describe a chat model: it is asked with the paper's
            prompt, and also reasons if no `llm` is given.
        llm: The reasoner: a model like the captioner, or a function from prompt to answer. "none" switches it off, so that the
            captions of the originals are sent in full: the paper's ablation without Srr.
        device: Where transformers models run, as torch names it.

    Raises:
        CodecError: the arguments of a model are wrong.
    """
    chats = isinstance(captioner, Mapping)
    describer = build_captioner({"prompt": CAPTION_PROMPT, **captioner} if isinstance(captioner, Mapping) else captioner, device)
    if callable(llm):
        return describer, FunctionReasoner(llm)
    if llm == NO_REASONER:
        return describer, None
    reasoner = describer if llm is None else build_captioner(llm if isinstance(llm, Mapping) else {"source": str(llm)}, device)
    if not isinstance(reasoner, CachedCaptioner) or not (chats or llm is not None):
        return describer, None
    return describer, cast(Reasoner, reasoner.captioner)


class ResidualGuide:
    """A guide by residual captions.

    Prompts are always token ids, never strings, because the tiny profile embeds the two differently.

    Args:
        residuals: Ready-made residuals: one for all images, by image id, or a JSON file {image id: text}. With them, no model is
            asked.
        captions: What the originals show, in the same three forms.
        captioner: Describes the originals for which no caption is given, and the previews.
        reasoner: Finds what the preview's caption lacks of the original's. Without it, or without a captioner, the caption of the
            original is sent in full, which is the paper's ablation without Srr.
        optimiser: Searches for better tokens, which need not be those of any text.
        suffix: Words that end every prompt. The decoder adds them, so they take no bits.
        negative: Words that guidance leads away from.
        coder: Coder of the tokens, "prior" or "clip16", or one of texts, see captions.py.
        seed: Seed of the stream's noise, for the optimiser.

    Attributes:
        checksum: 0, because a stream names its coder and the tables of a coder never change.
        facts: Everything that decides the words of all images and their bits, as JSON; see `CaptionGuide`.

    Raises:
        CodecError: an optimiser is given with a coder of texts, there is no such coder, or a file cannot be read.
    """

    checksum = 0

    def __init__(
        self,
        residuals: str | Mapping[str, str] | Path | None = None,
        captions: str | Mapping[str, str] | Path = "",
        captioner: Captioner | None = None,
        reasoner: Reasoner | None = None,
        optimiser: PerceptualFidelity | None = None,
        *,
        suffix: str = "",
        negative: str = "",
        coder: str = "prior",
        seed: int = 0,
    ) -> None:
        if optimiser is not None and coder not in TOKEN_CODERS:
            raise CodecError(f"optimised tokens are no text: code them by {' or '.join(TOKEN_CODERS)}, not by {coder}")
        self._negative, self._suffix, self._coder, self._seed = negative, suffix, coder, seed
        self._residuals = None if residuals is None else CaptionGuide(residuals, None, coder)
        self._originals = CaptionGuide(captions, captioner, coder)
        self._captioner, self._reasoner, self._optimiser = captioner, reasoner, optimiser
        words = [suffix, negative, coder]
        models = [reasoner and reasoner.facts, optimiser and optimiser.facts]
        self.facts = [*words, self._residuals and self._residuals.facts, self._originals.facts, *models]

    def image_facts(self, image_id: str) -> str | None:
        """The residual that is given by this image id, or with no residuals the caption; None if there is none by image id."""
        return (self._originals if self._residuals is None else self._residuals).image_facts(image_id)

    def encode(self, image: Image, image_id: str | None, draft: Draft) -> Text | None:
        """The residual of an image as text of a stream, cut so that the suffix still fits into the text encoder.

        Args:
            image: uint8 RGB, (H, W, 3).
            image_id: The image's id, for captions and residuals that are given by image id.
            draft: Shows the preview, and what a search for better tokens needs.

        Raises:
            CodecError: no caption is given for this image and there is no captioner, or a model fails.
        """
        residual = self.residual(image, image_id, draft)
        if self._coder not in TOKEN_CODERS:
            return pack_caption(residual, self._coder)
        ids = tuple(clip_tokens.tokenize(residual)[: clip_tokens.MAX_TOKENS - len(self._suffix_ids(after_words=True))])
        if ids and self._optimiser is not None:
            ids = self._optimiser(ids, image, draft, self._add_suffix, self._seed)
        return pack_tokens(ids, self._coder)

    def residual(self, image: Image, image_id: str | None, draft: Draft) -> str:
        """The residual before coding, which may be empty, with the arguments and errors of `encode`."""
        if self._residuals is not None:
            return self._residuals.caption(image, image_id)
        original = self._originals.caption(image, image_id)
        if not original or self._captioner is None or self._reasoner is None:
            return original
        prompt = RESIDUAL_PROMPT.format(original=original, compressed=self._captioner.caption(draft.preview))
        return self._reasoner.ask(prompt).strip().strip(_QUOTES).strip()

    def prompt(self, text: Text | None) -> tuple[int, ...]:
        """The token ids of the words in a stream's text and of the suffix.

        Raises:
            BitstreamError: the text is damaged, or no coder of captions made it.
        """
        words = unpack_caption(text)
        return self._add_suffix(tuple(clip_tokens.tokenize(words)) if isinstance(words, str) else words)

    @property
    def negative(self) -> tuple[int, ...]:
        """The token ids that guidance leads away from."""
        return tuple(clip_tokens.tokenize(self._negative))

    def _add_suffix(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return (*ids, *self._suffix_ids(after_words=bool(ids)))

    def _suffix_ids(self, *, after_words: bool) -> list[int]:
        return clip_tokens.tokenize((", " if after_words else "") + self._suffix) if self._suffix else []
