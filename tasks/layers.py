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

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, Image, MetricSpec, Prediction, Target, Task, file_sha256, fingerprint
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import versions
from icmbench.tasks.models.timm_models import known_weights
from icmbench.tasks.originals import OriginalFeatures
from icmbench.tasks.outputs import ModelOutput

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

RESIDUAL_BLOCK = re.compile(r"layer\d+\.\d+")  # Names in torchvision's and timm's ResNets and their relatives.


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
        device: Literal["cpu", "cuda"] = "cpu",
        keep_mib: int = 2048,
    ) -> None:
        super().__init__(dataset)
        self.library, self.network_name, self.weight_set, self.path, self.device = library, network, weights, path, device
        self._requested_layers = layers
        self._originals = OriginalFeatures(
            self._features_of, lambda kept: sum(x.element_size() * x.nelement() for x in kept), keep_mib * 2**20
        )

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network in evaluation mode, loaded at the first call."""
        load = {"torchvision": _load_torchvision, "timm": _load_timm}[self.library]
        network, self._mean, self._std = load(self.network_name, self.weight_set, self.path)
        return network.requires_grad_(False).to(self.device)

    @cached_property
    def layers(self) -> list[str]:
        """Names of the modules that are compared.

        Raises:
            ModelError: a requested module does not exist, or none is requested and the network has no residual blocks.
        """
        import torch

        # The names need no weights. Without them, stored predictions can be scored on a machine that lacks the weights.
        with torch.device("meta"):
            skeleton = {"torchvision": _torchvision_skeleton, "timm": _timm_skeleton}[self.library](self.network_name)
        modules = [name for name, _ in skeleton.named_modules() if name]
        if self._requested_layers is None:
            blocks = [name for name in modules if RESIDUAL_BLOCK.fullmatch(name)]
            if not blocks:
                top = ", ".join(name for name, _ in skeleton.named_children())
                raise ModelError(
                    f"network: {self.network_name} has no residual blocks layer1.0 ...; give `layers`, modules within {top}"
                )
            return blocks
        for name in self._requested_layers:
            if name not in modules:
                near = ", ".join(difflib.get_close_matches(name, modules)) or ", ".join(modules[:5])
                raise ModelError(f"layers: {self.network_name} has no module {name!r}; near: {near}")
        return self._requested_layers

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
        if self.path is not None:
            weights: Any = file_sha256(self.path)
        else:
            weights = self.weight_set if self.library == "torchvision" else self._timm_weights
        facts = {"library": self.library, "network": self.network_name, "weights": weights, "layers": self._requested_layers}
        return fingerprint(task=self.name, version=self.version, **facts, **versions("torch", self.library))

    @cached_property
    def _timm_weights(self) -> Any:
        """What identifies the weights that timm's name stands for, asked of the hub once."""
        return known_weights(self.network_name)

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
                ModelOutput(self.network_name).finite(f"feature difference after {layer}", value, image_id)
        return [{"differences": row} for row in differences]

    def _compare(self, image: Image, original_features: Sequence[torch.Tensor]) -> npt.NDArray[np.float64]:
        remaining = iter(original_features)  # In the order in which the network computes the layers.
        differences: dict[str, float] = {}

        def compare(layer: str, feature: torch.Tensor) -> None:
            differences[layer] = cosine_distance(next(remaining), feature)

        self._visit_features(image, compare)
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
        self._visit_features(original, lambda _, feature: features.append(feature.clone()))
        return features

    def _visit_features(self, image: Image, visit: Callable[[str, torch.Tensor], None]) -> None:
        """Run the network on an image and call `visit` with each layer's name and output as soon as it is computed.

        No more than one feature is in memory at a time unless `visit` keeps it.
        """
        import torch

        with _output_hooks(self.network, self.layers, visit), torch.inference_mode():
            pixels = torch.tensor(image, device=self.device).permute(2, 0, 1)[None].float() / 255
            self.network((pixels - pixels.new_tensor(self._mean).view(3, 1, 1)) / pixels.new_tensor(self._std).view(3, 1, 1))


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


@contextmanager
def _output_hooks(network: torch.nn.Module, layers: Sequence[str], visit: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Within this context, `visit` is called with the name and output of each layer."""
    import torch

    def hook(layer: str) -> Callable[..., None]:
        def on_output(_: Any, __: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor):
                raise ModelError(f"layers: module {layer!r} gives {type(output).__name__}, not a tensor; name one within it")
            visit(layer, output)

        return on_output

    handles = [network.get_submodule(layer).register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _torchvision_skeleton(name: str) -> torch.nn.Module:
    from torchvision.models import get_model

    try:
        return get_model(name)
    except ValueError as error:
        raise ModelError(f"network: {error} in torchvision; see torchvision.models.list_models()") from None


def _load_torchvision(name: str, weights: str, path: Path | None) -> tuple[torch.nn.Module, Sequence[float], Sequence[float]]:
    """The network, and the mean and standard deviation of its input, RGB in 0..1."""
    from icmbench.tasks.models.torchvision_models import TorchvisionClassifier

    classifier = TorchvisionClassifier(name, weights, path)
    network, transform = classifier.network, classifier.entry.transforms()
    return network, transform.mean, transform.std


def _timm_skeleton(name: str) -> torch.nn.Module:
    import timm

    try:
        return timm.create_model(name)
    except RuntimeError as error:
        raise ModelError(f"network: {error} in timm; see timm.list_models()") from None


def _load_timm(name: str, weights: str, path: Path | None) -> tuple[torch.nn.Module, Sequence[float], Sequence[float]]:
    """The counterpart of `_load_torchvision`. In timm the name decides the weights, so `weights` is not used."""
    from icmbench.tasks.models.timm_models import TimmClassifier

    network = TimmClassifier(name, path).network
    return network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
