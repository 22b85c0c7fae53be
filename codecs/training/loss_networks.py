"""Networks that losses look through, each named in the recipe: CLIP, an ImageNet classifier, and DINOv2 with trained heads.

A source names the weights of a Transformers model: a folder, or a hub repository. The source "random" makes a small instance of the
same class with random weights (seed 0), for tests; its values have no meaning.
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

CLIP_MOMENTS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # Mean and std of pixels in [0, 1].
DINO_LAYERS = (0.25, 0.5, 0.75, 1.0)  # The layers whose tokens the discriminator sees, as shares of the network's depth.


def clip_distance(source: str, device: str) -> nn.Module:
    """Load a distance between pictures: the l2 distance of CLIP's image embeddings, which are scaled to length 1.

    CADC's paper (section 7.2) says "l2-distance between CLIP embeddings" and refers to StableCodec, whose code scales the
    embeddings and takes the distance itself, not its square. It is sqrt(2 - 2 cos), so its gradient does not vanish as the pictures
    become alike, as that of 1 - cos does.

    Args:
        source: weights, such as "openai/clip-vit-base-patch32".
        device: PyTorch device.

    Returns:
        A frozen module that takes two batches (B, 3, H, W) in [0, 1] and returns their mean distance, a scalar.

    Raises:
        CodecError: the weights cannot be loaded.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    config = CLIPVisionConfig(**small, image_size=32, patch_size=8)  # type: ignore[arg-type]  # mypy cannot see into the dictionary.
    network = _load_transformer(CLIPVisionModelWithProjection, config, source, "CLIP")
    return _ClipDistance(network).to(device).eval().requires_grad_(False)


class _ClipDistance(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self._side = network, network.config.image_size

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = (self.network(_square_inputs(x, self._side, CLIP_MOMENTS)).image_embeds for x in (first, second))
        return torch.linalg.vector_norm(F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1), dim=1).mean()


class Discriminator(nn.Module):
    """Tells real patches from decoded ones by tokens of a frozen DINOv2 with registers (StableCodec's "GAN").

    One trained head sees the tokens of each of four layers. Heads and layers are guesses, because the papers name only the network.

    Args:
        source: weights, such as "facebook/dinov2-with-registers-base".
        device: PyTorch device.
        width: hidden channels of the heads.

    Raises:
        CodecError: the weights cannot be loaded.
    """

    def __init__(self, source: str, device: str, width: int = 64) -> None:
        super().__init__()
        from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

        config = Dinov2WithRegistersConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
        )
        network = _load_transformer(Dinov2WithRegistersModel, config, source, "DINOv2").to(device).eval().requires_grad_(False)
        self._network = [network]  # In a list, so that PyTorch neither trains nor saves it.
        self._layers = [max(1, round(share * network.config.num_hidden_layers)) for share in DINO_LAYERS]
        channels = network.config.hidden_size
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
            for _ in DINO_LAYERS
        ).to(device)

    def tokens(self, pixels: Tensor) -> list[Tensor]:
        """Compute the patch tokens of each layer.

        Args:
            pixels: (B, 3, H, W) in [0, 1]; rows and columns beyond the last whole patch are not seen.

        Returns:
            One tensor (B, n, C) per layer, for n patches.
        """
        network = self._network[0]
        patch = network.config.patch_size
        height, width = (side // patch * patch for side in pixels.shape[-2:])
        x = _standardise(pixels[..., :height, :width].float(), roi.IMAGENET)
        states = network(x, output_hidden_states=True).hidden_states
        first_patch = 1 + network.config.num_register_tokens
        return [states[layer][:, first_patch:] for layer in self._layers]

    def forward(self, tokens: list[Tensor], train_heads: bool = True) -> Tensor:
        """Judge tokens.

        Args:
            tokens: one tensor (B, n, C) per layer, from `tokens`.
            train_heads: False passes gradients to the tokens only, not to the heads.

        Returns:
            One logit per patch and layer (B, n * layers, 1), high for real patches.
        """
        logits = []
        for head, layer_tokens in zip(self.heads, tokens):
            weights: dict[str, Tensor] = dict(head.named_parameters())
            used = weights if train_heads else {name: weight.detach() for name, weight in weights.items()}
            logits.append(torch.func.functional_call(head, used, (layer_tokens.float(),)))
        return torch.cat(logits, 1)


class TaskLoss(nn.Module):
    """Cross-entropy of a frozen ImageNet classifier on reconstructions against the true classes (SLIM, eq. 6).

    Args:
        source: "resnet50" (torchvision's weights), a file of such weights, "efficientnet-lite0" (weights of a package), or
            "random", for tests.
        device: PyTorch device.

    Raises:
        CodecError: the weights cannot be loaded.
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
        """The mean cross-entropy, a scalar, of pixels (B, 3, H, W) in [0, 1] and classes (B,) int64 from 0 to 999."""
        classifier = self._classifier
        inputs = _square_inputs(pixels, classifier.side, (classifier.mean, classifier.std))
        return F.cross_entropy(classifier.network(inputs).float(), classes)


def _load_transformer(model_class: Any, small_config: Any, source: str, name: str) -> Any:
    """Load a Transformers model, or make a random one of the small configuration; errors call it `name`."""
    if source == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return model_class(small_config)
    try:
        return model_class.from_pretrained(Path(source).expanduser() if Path(source).expanduser().exists() else source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CodecError(f"{name} cannot be had from {source!r} ({reason}): name a folder with its weights") from error


def _standardise(pixels: Tensor, moments: tuple[Any, Any]) -> Tensor:
    """Subtract each channel's mean and divide by its standard deviation."""
    mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in moments)
    return (pixels - mean) / std


def _square_inputs(pixels: Tensor, side: int, moments: tuple[Any, Any]) -> Tensor:
    """Resize whole images (B, 3, H, W) to (B, 3, side, side), whatever their aspect ratio, and standardise them."""
    resized = F.interpolate(pixels.float(), (side, side), mode="bicubic", align_corners=False, antialias=True)
    return _standardise(resized, moments)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss, a scalar, from logits of any shape for real and decoded patches (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def load_loss_networks(sources: Mapping[str, str | None], device: str) -> dict[str, nn.Module]:
    """Load the networks of the terms that a recipe asks for.

    Args:
        sources: the network of each of the terms "lpips", "clip" and "task"; None leaves a term out.
        device: PyTorch device.

    Raises:
        CodecError: a network cannot be loaded.
    """
    from icmbench.codecs.perceptual import perceptual_distance

    loaders: dict[str, Any] = {"lpips": perceptual_distance, "clip": clip_distance, "task": TaskLoss}
    return {term: loaders[term](source, device) for term, source in sources.items() if source is not None}
