"""Perceptual distances to the original: LPIPS, ST-LPIPS and DISTS, averaged over images.

    original ------> network -> features --+
    reconstruction > network -> features --+-> distance of the pair -> mean

Images enter at their coded size, without resizing. The originals' features are computed once for all codecs and rate points.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, Image, MetricSpec, Prediction, Target, Task, file_sha256, fingerprint
from icmbench.tasks.models.devices import Device
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import versions
from icmbench.tasks.originals import OriginalFeatures
from icmbench.tasks.outputs import ModelOutput

if TYPE_CHECKING:
    import pyarrow as pa

    from icmbench.tasks.perceptual_networks import FeatureDistance

ARCHITECTURES = {"alex": "alexnet", "vgg": "vgg16"}


class PerceptualDistance(Task):
    """What the distances share: features of both images, a distance of the two, a mean over images.

    Args:
        dataset: any dataset.
        device: where the network runs.
        keep_mib: MiB of the originals' features that are kept on the device for the next codec.
    """

    needs_originals = True
    keeps_originals = True
    extra: ClassVar[str] = "perceptual"

    def __init__(self, dataset: Dataset, device: Device, keep_mib: int) -> None:
        super().__init__(dataset)
        self.device = device
        self._originals = OriginalFeatures(
            self._features, lambda kept: sum(x.element_size() * x.nelement() for x in kept), keep_mib * 2**20
        )

    @property
    def metrics(self) -> Sequence[MetricSpec]:
        """The distance, named after the task."""
        return (MetricSpec(self.name, higher_is_better=False, primary=True, ceiling=0.0),)

    @cached_property
    @abstractmethod
    def network(self) -> FeatureDistance:
        """The network, loaded at the first call.

        Raises:
            ModelError: its weights cannot be downloaded or read.
        """

    @property
    def schema(self) -> pa.Schema:
        """`distance`."""
        import pyarrow as pa

        return pa.schema([("distance", pa.float64())])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`distance` of each image to its original; 0 if they are equal.

        Raises:
            ModelError: a distance is not finite.
        """
        assert originals is not None
        predictions: list[Prediction] = []
        for image, image_id, original in zip(images, ids, originals, strict=True):
            original_features = self._originals.get(image_id, original, ids)
            distance = self.network.distance(original_features, self._features(image))
            predictions.append({"distance": ModelOutput(self.name).finite("distance", distance, image_id)})
        return predictions

    def _features(self, image: Image) -> Any:
        import torch

        with torch.inference_mode():
            return self.network.features(torch.tensor(image, device=self.device).permute(2, 0, 1)[None].float() / 255)

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> npt.NDArray[np.float64]:
        """float64 (images,)."""
        return np.array([prediction["distance"] for prediction in predictions], dtype=np.float64)

    def aggregate(self, statistics: npt.NDArray[np.float64], weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """The mean distance."""
        return {self.name: float(np.average(statistics, weights=weights))}


class Lpips(PerceptualDistance):
    """LPIPS to the original (Zhang et al. 2018), version 0.1, by AlexNet or VGG-16.

    Args:
        dataset: any dataset.
        net: the backbone; its authors recommend "alex" as a metric.
        path: a file with torchvision's state dict of alexnet or vgg16, instead of a download.
        device: where the network runs.
        keep_mib: MiB of the originals' features that are kept on the device for the next codec.
    """

    name = "lpips"
    weights: ClassVar[str] = (
        "linear layers in the package lpips (BSD-2); torchvision's AlexNet or VGG-16 (BSD-3 code; trained on ImageNet), "
        "downloaded, or `path`"
    )

    def __init__(
        self,
        dataset: Dataset,
        net: Literal["alex", "vgg"] = "alex",
        path: Path | None = None,
        device: Device = "cpu",
        keep_mib: int = 2048,
    ) -> None:
        super().__init__(dataset, device, keep_mib)
        self.net, self.path = net, path

    @cached_property
    def network(self) -> FeatureDistance:
        """LPIPS on torchvision's backbone, loaded at the first call."""
        from icmbench.tasks.perceptual_networks import backbone, lpips_network

        return lpips_network(self.net, backbone(ARCHITECTURES[self.net], self.path, self.device), self.device)

    @property
    def fingerprint(self) -> str:
        """Task, version, backbone, its weights and library versions."""
        facts = _backbone_facts(self.path, "lpips", "torch", "torchvision")
        return fingerprint(task=self.name, version=self.version, net=self.net, **facts)


class StLpips(PerceptualDistance):
    """ST-LPIPS to the original (Ghildyal and Liu 2022), the shift-tolerant LPIPS; not comparable with LPIPS.

    Args:
        dataset: any dataset.
        net: the backbone; "alex" as in `Lpips`.
        device: where the network runs.
        keep_mib: MiB of the originals' features that are kept on the device for the next codec.
    """

    name = "stlpips"
    weights: ClassVar[str] = "AlexNet or VGG-16 with linear layers, in the package stlpips_pytorch (BSD-2)"

    def __init__(
        self, dataset: Dataset, net: Literal["alex", "vgg"] = "alex", device: Device = "cpu", keep_mib: int = 2048
    ) -> None:
        super().__init__(dataset, device, keep_mib)
        self.net = net

    @cached_property
    def network(self) -> FeatureDistance:
        """ST-LPIPS with the package's weights, loaded at the first call."""
        from icmbench.tasks.perceptual_networks import stlpips_network

        return stlpips_network(self.net, self.device)

    @property
    def fingerprint(self) -> str:
        """Task, version, backbone and library versions."""
        return fingerprint(task=self.name, version=self.version, net=self.net, **versions("stlpips_pytorch", "torch"))


class Dists(PerceptualDistance):
    """DISTS to the original (Ding et al. 2020), on the image as it is, not resized to 256 pixels.

    Args:
        dataset: any dataset.
        path: a file with torchvision's state dict of vgg16, instead of a download.
        device: where the network runs.
        keep_mib: MiB of the originals' features that are kept on the device for the next codec.
    """

    name = "dists"
    weights: ClassVar[str] = (
        "alpha and beta in the package DISTS-pytorch (MIT); torchvision's VGG-16 (BSD-3 code; trained on ImageNet), "
        "downloaded, or `path`"
    )

    def __init__(self, dataset: Dataset, path: Path | None = None, device: Device = "cpu", keep_mib: int = 2048) -> None:
        super().__init__(dataset, device, keep_mib)
        self.path = path

    @cached_property
    def network(self) -> FeatureDistance:
        """DISTS on torchvision's VGG-16, loaded at the first call."""
        from icmbench.tasks.perceptual_networks import DistsNetwork, backbone

        # Only the weights are taken from the package, because its own network always downloads its backbone.
        package = find_spec("DISTS_pytorch")
        if package is None or package.origin is None:
            raise ModelError("dists needs the package DISTS-pytorch for its weights: python -m pip install 'icmbench[perceptual]'")
        return DistsNetwork(backbone("vgg16", self.path, self.device), Path(package.origin).parent / "weights.pt", self.device)

    @property
    def fingerprint(self) -> str:
        """Task, version, the backbone's weights and library versions."""
        facts = _backbone_facts(self.path, "DISTS_pytorch", "torch", "torchvision")
        return fingerprint(task=self.name, version=self.version, **facts)


def _backbone_facts(path: Path | None, *packages: str) -> dict[str, str]:
    """The backbone's weights and the versions of packages, for a fingerprint."""
    return {"backbone": file_sha256(path) if path else "IMAGENET1K_V1", **versions(*packages)}
