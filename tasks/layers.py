"""Layer-wise feature difference: how far a network's features of the reconstruction are from those of the original, by depth.

    original ------> network -> features after each layer --+
    reconstruction > network -> features after each layer --+-> 1 - cosine -> mean over images, one number per layer

Version 1 is defined as follows. The image enters at its coded size, scaled to 0..1 and normalised by the mean and standard
deviation of the weights. The output of the named module is one flat vector, without pooling. The difference is
1 - <a, b> / (|a| |b|) in float64, and 0 if both vectors are zero.

The measure is that of Diff-ICMH's supplement, section B.3 and figure 13. It names cosine similarity and the residual blocks of
ResNet-50 but does not define the vector; its equation of the semantic consistency loss treats a feature as one vector too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, Image, MetricSpec, Prediction, Target, Task, fingerprint
from icmbench.tasks.layer_features import LayerFeatures
from icmbench.tasks.models.devices import Device
from icmbench.tasks.originals import OriginalFeatures
from icmbench.tasks.outputs import ModelOutput

if TYPE_CHECKING:
    import pyarrow as pa
    import torch


class LayerDifference(Task):
    """Feature difference to the original after each block of ResNet-50, or any layers of another network.

    Args:
        dataset: any dataset.
        library: where the network comes from.
        network: the library's name for it. For timm the name includes the weights' tag, such as `resnet50.a1_in1k`.
        weights: torchvision's weight set; timm does not use it.
        path: a file with a state dict, instead of a download.
        layers: names of modules to compare, in this order; None takes all residual blocks from shallow to deep.
        device: where the network runs.
        keep_mib: MiB of the originals' features that are kept on the device for the next codec. The default holds the residual
            blocks of ResNet-50 for 12 images of 768 x 512 pixels.

    Raises:
        ModelError: at first use, if network, layers or weights are unknown or do not fit.
    """

    name = "layers"
    needs_originals = True
    keeps_originals = True
    extra: ClassVar[str] = "torchvision"
    weights: ClassVar[str] = (
        "torchvision's ResNet-50 IMAGENET1K_V1 (BSD-3 code; trained on ImageNet), or any of its or timm's; `path`"
    )

    def __init__(
        self,
        dataset: Dataset,
        library: Literal["torchvision", "timm"] = "torchvision",
        network: str = "resnet50",
        weights: str = "IMAGENET1K_V1",
        path: Path | None = None,
        layers: list[str] | None = None,
        device: Device = "cpu",
        keep_mib: int = 2048,
    ) -> None:
        super().__init__(dataset)
        self.features = LayerFeatures(library, network, weights, path, layers, device)
        self._originals = OriginalFeatures(
            self._features_of, lambda kept: sum(x.element_size() * x.nelement() for x in kept), keep_mib * 2**20
        )

    @property
    def layers(self) -> list[str]:
        """Names of the modules that are compared.

        Raises:
            ModelError: a requested module does not exist, or none is requested and the network has no residual blocks.
        """
        return self.features.layers

    @cached_property
    def metrics(self) -> Sequence[MetricSpec]:
        """One metric per layer, named after it; the last is primary."""
        return tuple(
            MetricSpec(layer, higher_is_better=False, primary=layer == self.layers[-1], ceiling=0.0) for layer in self.layers
        )

    @property
    def schema(self) -> pa.Schema:
        """`differences`, one per layer."""
        import pyarrow as pa

        return pa.schema([("differences", pa.list_(pa.float64()))])

    @property
    def fingerprint(self) -> str:
        """Task, version, library, network, weights, layers and library versions."""
        return fingerprint(task=self.name, version=self.version, **self.features.facts)

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`differences`: float64 (layers,), 1 - cosine similarity after each layer, in the order of `layers`.

        Raises:
            ModelError: a feature is not finite.
        """
        assert originals is not None
        triples = zip(images, ids, originals, strict=True)
        differences = [self._compare(image, self._originals.get(i, original, ids)) for image, i, original in triples]
        for layer, values in zip(self.layers, zip(*differences, strict=True), strict=True) if differences else ():
            for value, image_id in zip(values, ids, strict=True):
                ModelOutput(self.features.name).finite(f"feature difference after {layer}", value, image_id)
        return [{"differences": row} for row in differences]

    def _compare(self, image: Image, original_features: Sequence[torch.Tensor]) -> npt.NDArray[np.float64]:
        remaining = iter(original_features)  # In the order in which the network computes the layers.
        differences: dict[str, float] = {}

        def compare(layer: str, feature: torch.Tensor) -> None:
            differences[layer] = cosine_distance(next(remaining), feature)

        self.features.visit(image, compare)
        return np.array([differences[layer] for layer in self.layers])

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> npt.NDArray[np.float64]:
        """float64 (images, layers)."""
        return np.array([prediction["differences"] for prediction in predictions]).reshape(-1, len(self.layers))

    def aggregate(self, statistics: npt.NDArray[np.float64], weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """The mean difference of each layer."""
        return dict(zip(self.layers, np.average(statistics, axis=0, weights=weights).tolist(), strict=True))

    def _features_of(self, original: Image) -> list[torch.Tensor]:
        features: list[torch.Tensor] = []
        # Each feature is copied, because a later module may overwrite it in place.
        self.features.visit(original, lambda _, feature: features.append(feature.clone()))
        return features


def cosine_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """1 - cosine similarity of two tensors of equal size as flat vectors, in float64.

    Returns:
        0..2; 0 if both vectors are zero, 1 if one of them is; NaN if a number is not finite.

    Example:
        >>> import torch
        >>> cosine_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]))
        1.0
    """
    a, b = first.flatten().double(), second.flatten().double()
    product, norms = float(a @ b), (float(a @ a), float(b @ b))
    if 0 in norms:
        return 0.0 if norms[0] == norms[1] else 1.0
    if not np.isfinite(norms).all():
        return float("nan")
    return max(1 - product / float(np.sqrt(norms[0] * norms[1])), 0.0)  # In this order NaN would not become 0.
