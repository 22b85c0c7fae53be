"""Frozen networks that losses look through, each named in the recipe: CLIP, a classifier, DINOv2 under a trained discriminator.

A source is a folder or hub repository of Transformers, or "random": a small instance of the same classes with random weights (seed
0), for tests; it means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.prompts import roi

CLIP_MOMENTS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINO_LAYERS = (0.25, 0.5, 0.75, 1.0)  # depths, as shares, whose tokens are judged


def clip_distance(source: str, device: str) -> nn.Module:
    """(B, 3, H, W) twice, in [0, 1] -> mean of 1 - cosine of CLIP's image embeddings. source: e.g. openai/clip-vit-base-patch32."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    config = CLIPVisionConfig(**small, image_size=32, patch_size=8)  # type: ignore[arg-type]  # of a dictionary of numbers
    return (
        _ClipDistance(_transformer(CLIPVisionModelWithProjection, config, source, "CLIP")).to(device).eval().requires_grad_(False)
    )


class _ClipDistance(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self._side = network, network.config.image_size

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = (self.network(_inputs(x, self._side, CLIP_MOMENTS)).image_embeds for x in (first, second))
        return 1 - F.cosine_similarity(a.float(), b.float(), dim=1).mean()


class Discriminator(nn.Module):
    """Judges patches by tokens of a frozen DINOv2 with registers, one trained head a depth; hinge loss (StableCodec's "GAN").

    source: e.g. facebook/dinov2-with-registers-base. Heads and depths are guesses: the papers name the network only.
    """

    def __init__(self, source: str, device: str, width: int = 64) -> None:
        super().__init__()
        from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

        config = Dinov2WithRegistersConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
        )
        network = _transformer(Dinov2WithRegistersModel, config, source, "DINOv2").to(device).eval().requires_grad_(False)
        self._network = [network]  # in a list: neither trained nor saved
        self._depths = [max(1, round(share * network.config.num_hidden_layers)) for share in DINO_LAYERS]
        inside = network.config.hidden_size
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(inside), nn.Linear(inside, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
            for _ in DINO_LAYERS
        ).to(device)

    def tokens(self, pixels: Tensor) -> list[Tensor]:
        """Patch tokens (B, n, C) of each depth, of pixels (B, 3, H, W) in [0, 1], cut to whole patches."""
        network = self._network[0]
        patch = network.config.patch_size
        height, width = (side // patch * patch for side in pixels.shape[-2:])
        x = _normalised(pixels[..., :height, :width].float(), roi.IMAGENET)
        states = network(x, output_hidden_states=True).hidden_states
        skipped = 1 + network.config.num_register_tokens
        return [states[depth][:, skipped:] for depth in self._depths]

    def forward(self, tokens: list[Tensor], trained: bool = True) -> Tensor:
        """One logit a patch and depth. trained: False passes gradients to the tokens alone."""
        logits = []
        for head, token in zip(self.heads, tokens):
            weights: dict[str, Tensor] = dict(head.named_parameters())
            own = weights if trained else {name: weight.detach() for name, weight in weights.items()}
            logits.append(torch.func.functional_call(head, own, (token.float(),)))
        return torch.cat(logits, 1)


class TaskLoss(nn.Module):
    """Cross-entropy of a frozen ImageNet classifier on reconstructions against the true classes (SLIM, eq. 6).

    source: "resnet50" (torchvision's weights), a file of such weights, or "efficientnet-lite0" (a package's); "random" for tests.
    """

    def __init__(self, source: str, device: str) -> None:
        super().__init__()
        if source == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                layer = nn.Conv2d(3, 8, 3, 4)
                network = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))
            network = network.to(device).eval().requires_grad_(False)
            self._classifier = roi.Classifier(network, layer, "random", 64)
        elif source == "efficientnet-lite0":
            self._classifier = roi.efficientnet_lite0(device)
        else:
            self._classifier = roi.resnet50(source, device)

    def forward(self, pixels: Tensor, classes: Tensor) -> Tensor:
        one = self._classifier
        return F.cross_entropy(one.network(_inputs(pixels, one.side, (one.mean, one.deviation))).float(), classes)


def _transformer(kind: Any, small: Any, source: str, what: str) -> Any:
    if source == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return kind(small)
    try:
        return kind.from_pretrained(Path(source).expanduser() if Path(source).expanduser().exists() else source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CodecError(f"{what} cannot be had from {source!r} ({reason}): name a folder with its weights") from error


def _normalised(pixels: Tensor, moments: tuple[Any, Any]) -> Tensor:
    mean, deviation = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in moments)
    return (pixels - mean) / deviation


def _inputs(pixels: Tensor, side: int, moments: tuple[Any, Any]) -> Tensor:
    """Pixels as a network of square inputs takes them: the whole image, squeezed."""
    resized = F.interpolate(pixels.float(), (side, side), mode="bicubic", align_corners=False, antialias=True)
    return _normalised(resized, moments)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def frozen_terms(sources: Mapping[str, str | None], device: str) -> dict[str, nn.Module]:
    """The networks of the terms that a recipe asks for, loaded before the first step. sources: by "lpips", "clip", "task"."""
    from icmbench.codecs.perceptual import perceptual_distance

    makers: dict[str, Any] = {"lpips": perceptual_distance, "clip": clip_distance, "task": TaskLoss}
    return {term: makers[term](source, device) for term, source in sources.items() if source is not None}
