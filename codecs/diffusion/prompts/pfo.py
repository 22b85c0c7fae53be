"""Perceptual fidelity optimisation: a search for tokens that make the decoder draw the original.

Ke et al., ResULIC, ICML 2025, section 4.2, algorithm 1, appendix C.2; after PEZ, Wen et al. 2023.

    P --nearest of CLIP's token embeddings--> P' --text encoder--> context
    loss = |eps - eps_theta(z_n, n, z_c, context)|^2 + clip_weight (1 - cos(CLIP text of P', CLIP image))
    P <- AdamW(P, dloss / dP')

n is one of the sampler's times. Every so often the decoder draws with P', and the tokens of the least perceptual distance are kept.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icmbench.codecs.base import CodecError, Image, file_sha256
from icmbench.codecs.diffusion.prompts import clip_tokens
from icmbench.codecs.diffusion.prompts.guides import Draft
from icmbench.codecs.diffusion.prompts.sources import function_name
from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAwareSampler

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone

Ids: TypeAlias = tuple[int, ...]
Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # Two images (1, 3, H, W) in [0, 1] -> one number.
MIN_SIDE = 64  # Pixels along a side that perceptual networks need.


@dataclass(frozen=True)
class PerceptualFidelity:
    """The search. Its defaults are the paper's or, if the paper does not say, those of the authors' code.

    Args:
        iterations: Steps of AdamW.
        rate: Learning rate of AdamW: 0.3 in the paper, 0.1 in the authors' code.
        weight_decay: Weight decay of AdamW.
        clip_weight: Weight of CLIP's term in the loss.
        every: Iterations between two decodings, which take most of the time.
        projection: The nearest token by "unit" vectors, as in the authors' code, or by "euclidean" distance, as in the paper.
        perceptual: How decodings are judged: a name of `codecs.perceptual`, or a function. An image with a side below MIN_SIDE is
            judged with its padding.
        clip: A CLIP model of transformers, by folder or hub repository. Its text encoder must be the backbone's: OpenCLIP ViT-H/14
            for Stable Diffusion 2.1. Without a model the loss has no CLIP term.

    Raises:
        CodecError: an argument is out of its range.
    """

    iterations: int = 500
    rate: float = 0.3
    weight_decay: float = 0.1
    clip_weight: float = 0.1
    every: int = 50
    projection: Literal["unit", "euclidean"] = "unit"
    perceptual: str | Distance = "lpips-alex"
    clip: str | Path | None = None

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.every < 1 or self.rate <= 0 or self.projection not in ("unit", "euclidean"):
            raise CodecError("pfo takes iterations and every from 1, a positive rate, and projection unit or euclidean")

    @property
    def facts(self) -> Any:
        """Everything that decides the tokens, as JSON for fingerprints."""
        numbers = [self.iterations, self.rate, self.weight_decay, self.clip_weight, self.every, self.projection]
        judge = self.perceptual if isinstance(self.perceptual, str) else function_name(self.perceptual)
        folder = None if self.clip is None else Path(self.clip)
        files = sorted(folder.glob("*.safetensors")) if folder and folder.is_dir() else []
        return ["pfo", *numbers, judge, [file_sha256(path) for path in files] or (self.clip and str(self.clip))]

    def __call__(self, ids: Ids, image: Image, draft: Draft, complete: Callable[[Ids], Ids], seed: int) -> Ids:
        """Search for better tokens.

        Args:
            ids: CLIP's token ids from which the search starts.
            image: The original, uint8 RGB (H, W, 3).
            draft: What the decoder will have apart from the words.
            complete: Token ids -> the decoder's whole prompt.
            seed: Seed of the decoder's noise, and of the search.

        Returns:
            As many token ids as `ids` has, of those whose decodings were judged; `ids` if none is better.

        Raises:
            CodecError: the sampler is not CompressionAwareSampler, or a model cannot be had.
        """
        sampler, backbone, hint = draft.sampler, draft.backbone, draft.hint
        if not isinstance(sampler, CompressionAwareSampler):
            raise CodecError("pfo searches along the compression-aware sampler: set cdm: true")
        distance, pixels, (height, width) = self._distance(str(hint.device)), draft.pixels(image), image.shape[:2]
        with torch.no_grad():
            z_0 = draft.encode(pixels)
        similarity = None if self.clip is None else _Similarity(self.clip, backbone, pixels[..., :height, :width])
        judged_area = (..., slice(height), slice(width)) if min(height, width) >= MIN_SIDE else ...
        time_generator, noise_generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        embeddings = _embeddings(backbone)
        words = nn.Parameter(embeddings[list(ids)].clone())
        optimiser = torch.optim.AdamW([words], lr=self.rate, weight_decay=self.weight_decay)
        best_ids, least_distance = ids, float("inf")
        for iteration in range(self.iterations + 1):
            projected_ids = self._nearest(words.detach(), embeddings) if iteration else ids
            if iteration % self.every == 0 or iteration == self.iterations:
                decoded = draft.render(complete(projected_ids), seed)
                with torch.no_grad():
                    current_distance = float(distance(decoded[judged_area], pixels[judged_area]))
                if current_distance < least_distance:
                    best_ids, least_distance = projected_ids, current_distance
            if iteration == self.iterations:
                break
            n = int(time_generator.choice(sampler.times[:-1]))
            eps = torch.randn(hint.shape, generator=noise_generator).to(hint.device)
            z_n = sampler.diffuse(backbone.abar, n, z_0, hint, eps).float()
            words.grad = self._gradient(draft, projected_ids, embeddings[list(projected_ids)], z_n, n, eps, similarity)
            optimiser.step()
        return best_ids

    def _gradient(
        self, draft: Draft, ids: Ids, embeddings: Tensor, z_n: Tensor, n: int, eps: Tensor, similarity: _Similarity | None
    ) -> Tensor:
        """The gradient of the loss by the embeddings (M, D) of M tokens."""
        text_ids = draft.backbone.tokenize([ids])
        with torch.enable_grad():
            embeddings.requires_grad_()
            context = _encode(draft.backbone.text, text_ids, embeddings).last_hidden_state
            loss = F.mse_loss(draft.predictor(context)(z_n, n), eps)
            if similarity is not None:
                loss = loss + self.clip_weight * (1 - similarity(text_ids, embeddings))
            (gradient,) = torch.autograd.grad(loss, [embeddings])
        return gradient

    def _nearest(self, words: Tensor, embeddings: Tensor) -> Ids:
        """The token ids whose embeddings (V, D) are nearest to each of words (M, D)."""
        if self.projection == "unit":
            return tuple((F.normalize(words) @ F.normalize(embeddings).T).argmax(1).tolist())
        return tuple(torch.cdist(words, embeddings).argmin(1).tolist())

    def _distance(self, device: str) -> Distance:
        return _perceptual_distance(self.perceptual, device) if isinstance(self.perceptual, str) else self.perceptual


@functools.lru_cache(maxsize=1)
def _perceptual_distance(name: str, device: str) -> Distance:
    from icmbench.codecs.perceptual import perceptual_distance

    return perceptual_distance(name, device)


@functools.lru_cache(maxsize=1)
def _clip_model(source: str, device: torch.device) -> Any:
    from transformers import CLIPModel

    try:
        model: Any = CLIPModel.from_pretrained(source, local_files_only=Path(source).is_dir())
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise CodecError(f"the CLIP model {source!r} cannot be had ({reason}): name a folder with one") from error
    return model.to(device).float().eval().requires_grad_(False)


class _Similarity:
    """Cosine similarity of CLIP's features of words to those of an image.

    Args:
        source: Folder or hub repository of a CLIP model of transformers.
        backbone: Its text encoder must have the tokens of the CLIP model.
        pixels: The image, (1, 3, H, W) in [0, 1].
    """

    def __init__(self, source: str | Path, backbone: DiffusionBackbone, pixels: Tensor) -> None:
        self._model = _clip_model(str(source), backbone.device)
        ours, theirs = (text.get_input_embeddings().weight.shape for text in (backbone.text, self._model.text_model))
        if ours != theirs:
            raise CodecError(f"the CLIP model {str(source)!r} has other tokens than the backbone: name the one it is made with")
        with torch.no_grad():
            features = self._model.visual_projection(self._model.vision_model(self._preprocess(pixels)).pooler_output)
        self._image = F.normalize(features)

    def __call__(self, ids: Tensor, embeddings: Tensor) -> Tensor:
        """The similarity, for ids (1, 77) whose words have these embeddings (M, D)."""
        pooled = _encode(self._model.text_model, ids, embeddings).pooler_output
        return (F.normalize(self._model.text_projection(pooled)) * self._image).sum()

    def _preprocess(self, pixels: Tensor) -> Tensor:
        """CLIP's input: the short side resized, the centre cropped, the values normalised."""
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        side = self._model.config.vision_config.image_size
        height, width = pixels.shape[-2:]
        scale = side / min(height, width)
        shape = [max(side, round(height * scale)), max(side, round(width * scale))]
        resized = F.interpolate(pixels, shape, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((length - side) // 2 for length in shape)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        return (resized[..., top : top + side, left : left + side] - mean) / std


def _embeddings(backbone: DiffusionBackbone) -> Tensor:
    """The text encoder's embedding of each of CLIP's tokens for pieces of words, (clip_tokens.WORD_TOKENS, D) float32."""
    encoder_ids = torch.tensor(backbone.token_ids(tuple(range(clip_tokens.WORD_TOKENS))), device=backbone.device)
    return backbone.text.get_input_embeddings().weight.detach()[encoder_ids].float()


def _encode(text_encoder: Any, ids: Tensor, embeddings: Tensor) -> Any:
    """A text encoder's outputs for ids (1, 77), where embeddings (M, D) replace those of the M tokens after the beginning."""
    with _replaced_embeddings(text_encoder.get_input_embeddings(), embeddings):
        return text_encoder(input_ids=ids.to(embeddings.device))


@contextlib.contextmanager
def _replaced_embeddings(table: nn.Module, embeddings: Tensor) -> Iterator[None]:
    def replace(_module: nn.Module, _ids: Any, rows: Tensor) -> Tensor:
        end = 1 + len(embeddings)
        return torch.cat([rows[:, :1], embeddings[None].to(rows.dtype), rows[:, end:]], 1)

    handle = table.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
