"""Perceptual fidelity optimisation: a search for the tokens that make the decoder draw the original (Ke et al., ResULIC, ICML 2025,
section 4.2, algorithm 1, appendix C.2; after PEZ, Wen et al. 2023).

    P --nearest of CLIP's token embeddings--> P' --text encoder--> context
    loss = |eps - eps_theta(z_n, n, z_c, context)|^2 + clip_weight (1 - cos(CLIP text of P', CLIP image))    n: of the sampler's
    P <- AdamW(P, dloss / dP')                every so often: decode with P', keep the tokens of the least perceptual distance
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
from icmbench.codecs.diffusion.prompts.captions import VOCABULARY
from icmbench.codecs.diffusion.prompts.guides import named
from icmbench.codecs.diffusion.sampling import samplers
from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAware

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone
    from icmbench.codecs.diffusion.engine import Draft

Ids: TypeAlias = tuple[int, ...]
Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # two (1, 3, H, W) in [0, 1] -> one number
WORDS = VOCABULARY - 2  # CLIP's tokens but those of beginning and end
LEAST_SIDE = 64  # pixels that perceptual networks need


@dataclass(frozen=True)
class PerceptualFidelity:
    """The search. Defaults are the paper's, where it says; else the authors' code's.

    iterations: of AdamW, with `weight_decay`. rate: its learning rate, 0.3 in the paper, 0.1 in the authors' code. every: the
        iterations between two decodings.
    projection: the nearest token by "unit" vectors, as in the authors' code, or "euclidean", as the paper has it.
    perceptual: what decodings are judged by: a name of training.perceptual, or a function; where a side is below LEAST_SIDE, with
        the padding.
    clip: a CLIP model of transformers, by folder or hub repository, whose text encoder is the backbone's (OpenCLIP ViT-H/14 for
        Stable Diffusion 2.1); its term of the loss weighs `clip_weight`, and is left out without a model.
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
        """JSON of all that decides the tokens."""
        numbers = [self.iterations, self.rate, self.weight_decay, self.clip_weight, self.every, self.projection]
        judged = self.perceptual if isinstance(self.perceptual, str) else named(self.perceptual)
        folder = None if self.clip is None else Path(self.clip)
        files = sorted(folder.glob("*.safetensors")) if folder and folder.is_dir() else []
        return ["pfo", *numbers, judged, [file_sha256(path) for path in files] or (self.clip and str(self.clip))]

    def __call__(self, ids: Ids, image: Image, draft: Draft, complete: Callable[[Ids], Ids], seed: int) -> Ids:
        """Better tokens than `ids`, as many. image: the original, uint8 (H, W, 3). complete: tokens to the decoder's prompt. seed:
        of its noise. CodecError for a sampler other than CompressionAware, and where a model cannot be had."""
        model, decoding, hint = draft.model, draft.decoding, draft.hint
        sampler, backbone = decoding.sampler, model.backbone
        if not isinstance(sampler, CompressionAware):
            raise CodecError("pfo searches along the compression-aware sampler: set cdm: true")
        distance, pixels, (height, width) = self._distance(str(hint.device)), model.pixels(image), image.shape[:2]
        with torch.no_grad():
            z_0 = backbone.encode(pixels, decoding.tile, decoding.overlap)
        similarity = None if self.clip is None else _Similarity(self.clip, backbone, pixels[..., :height, :width])
        seen = (..., slice(height), slice(width)) if min(height, width) >= LEAST_SIDE else ...
        random, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        embeddings = _embeddings(backbone)
        words = nn.Parameter(embeddings[list(ids)].clone())
        optimiser = torch.optim.AdamW([words], lr=self.rate, weight_decay=self.weight_decay)
        best, least = ids, float("inf")
        for iteration in range(self.iterations + 1):
            chosen = self._nearest(words.detach(), embeddings) if iteration else ids
            if iteration % self.every == 0 or iteration == self.iterations:
                decoded = model.render(hint, decoding, [complete(chosen)], [seed])
                with torch.no_grad():
                    judged = float(distance(decoded[seen], pixels[seen]))
                if judged < least:
                    best, least = chosen, judged
            if iteration == self.iterations:
                break
            n = int(random.choice(sampler.times[:-1]))
            eps = torch.randn(hint.shape, generator=draws).to(hint.device)
            with torch.enable_grad():
                projected = embeddings[list(chosen)].requires_grad_()
                context = _encode(backbone.text, backbone.tokenize([chosen]), projected).last_hidden_state
                z_n = sampler.diffuse(backbone.abar, n, z_0, hint, eps).float()
                predict = samplers.Guided(backbone, model.control, hint, context, tile=decoding.tile, overlap=decoding.overlap)
                loss = F.mse_loss(predict(z_n, n), eps)
                if similarity is not None:
                    loss = loss + self.clip_weight * (1 - similarity(backbone.tokenize([chosen]), projected))
                (words.grad,) = torch.autograd.grad(loss, [projected])
            optimiser.step()
        return best

    def _nearest(self, words: Tensor, embeddings: Tensor) -> Ids:
        """The token ids whose embeddings (V, D) are nearest to each of words (M, D)."""
        if self.projection == "unit":
            return tuple((F.normalize(words) @ F.normalize(embeddings).T).argmax(1).tolist())
        return tuple(torch.cdist(words, embeddings).argmin(1).tolist())

    def _distance(self, device: str) -> Distance:
        return _perceptual(self.perceptual, device) if isinstance(self.perceptual, str) else self.perceptual


@functools.lru_cache(maxsize=1)
def _perceptual(name: str, device: str) -> Distance:
    from icmbench.codecs.perceptual import perceptual_distance

    return perceptual_distance(name, device)


@functools.lru_cache(maxsize=1)
def _clip(source: str, device: torch.device) -> Any:
    from transformers import CLIPModel

    try:
        model: Any = CLIPModel.from_pretrained(source, local_files_only=Path(source).is_dir())
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise CodecError(f"the CLIP model {source!r} cannot be had ({reason}): name a folder with one") from error
    return model.to(device).float().eval().requires_grad_(False)


class _Similarity:
    """Cosine similarity of CLIP's features of tokens, given by their embeddings, to those of pixels (1, 3, H, W) in [0, 1]."""

    def __init__(self, source: str | Path, backbone: DiffusionBackbone, pixels: Tensor) -> None:
        self._model = _clip(str(source), backbone.device)
        ours, theirs = (text.get_input_embeddings().weight.shape for text in (backbone.text, self._model.text_model))
        if ours != theirs:
            raise CodecError(f"the CLIP model {str(source)!r} has other tokens than the backbone: name the one it is made with")
        with torch.no_grad():
            features = self._model.visual_projection(self._model.vision_model(self._view(pixels)).pooler_output)
        self._image = F.normalize(features)

    def __call__(self, ids: Tensor, embeddings: Tensor) -> Tensor:
        pooled = _encode(self._model.text_model, ids, embeddings).pooler_output
        return (F.normalize(self._model.text_projection(pooled)) * self._image).sum()

    def _view(self, pixels: Tensor) -> Tensor:
        """CLIP's own view: the short side resized, the centre, normalised."""
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        side = self._model.config.vision_config.image_size
        height, width = pixels.shape[-2:]
        scale = side / min(height, width)
        shape = [max(side, round(height * scale)), max(side, round(width * scale))]
        resized = F.interpolate(pixels, shape, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((length - side) // 2 for length in shape)
        mean, deviation = (pixels.new_tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        return (resized[..., top : top + side, left : left + side] - mean) / deviation


def _embeddings(backbone: DiffusionBackbone) -> Tensor:
    """What the text encoder sees of each of CLIP's tokens (WORDS, D) float32."""
    own = torch.tensor(backbone.split(tuple(range(WORDS))), device=backbone.device)
    return backbone.text.get_input_embeddings().weight.detach()[own].float()


def _encode(text: Any, ids: Tensor, embeddings: Tensor) -> Any:
    """The text encoder's outputs for ids (1, 77) whose words, after the beginning, have embeddings (M, D) instead of their own."""
    with _words_of(text.get_input_embeddings(), embeddings):
        return text(input_ids=ids.to(embeddings.device))


@contextlib.contextmanager
def _words_of(table: nn.Module, embeddings: Tensor) -> Iterator[None]:
    def replaced(_module: nn.Module, _ids: Any, rows: Tensor) -> Tensor:
        end = 1 + len(embeddings)
        return torch.cat([rows[:, :1], embeddings[None].to(rows.dtype), rows[:, end:]], 1)

    handle = table.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()
