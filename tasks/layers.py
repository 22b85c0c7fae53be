"""Layer-wise feature difference: how far a network's features of the reconstruction are from those of the original, by depth.

    original ------> network -> features after each layer --+
    reconstruction > network -> features after each layer --+-> 1 - cosine -> mean over images, one number a layer

Version 1 defines it so: the image at its coded size, scaled to 0..1 and normalised by the weights' own mean and deviation; the
output of the named module as one flat vector, no pooling; 1 - <a, b> / (|a| |b|) in float64, 0 where both vectors vanish. This is
the measure of Diff-ICMH's supplement, section B.3 and figure 13, which names cosine similarity and the residual blocks of
ResNet-50 and leaves the vector to guess; its equation of the semantic consistency loss treats a feature as one vector too.
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
from icmbench.tasks.originals import OriginalFeatures

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

RESIDUAL_BLOCK = re.compile(r"layer\d+\.\d+")  # in torchvision's and timm's ResNets and their relatives


class LayerDifference(Task):
    """Feature difference to the original after every block of ResNet-50, or after any layers of a torchvision or timm network."""

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
        """network: the library's name for it. weights: torchvision's weight set; timm names it too (`resnet50.a1_in1k`). path:
        a state dict to load instead of downloading. layers: module names; None takes all residual blocks. keep_mib: how much of
        the originals' features is kept for the next codec's turn, on the device."""
        super().__init__(dataset)
        self.library, self.network_name, self.weight_set, self.path, self.device = library, network, weights, path, device
        self._asked = layers
        self._originals = OriginalFeatures(
            self._features_of, lambda kept: sum(x.element_size() * x.nelement() for x in kept), keep_mib * 2**20
        )

    @cached_property
    def network(self) -> torch.nn.Module:
        """In evaluation mode, with its weights."""
        load = {"torchvision": _torchvision, "timm": _timm}[self.library]
        network, self._mean, self._deviation = load(self.network_name, self.weight_set, self.path)
        return network.requires_grad_(False).to(self.device)

    @cached_property
    def layers(self) -> list[str]:
        """Names of the modules that are compared, in the given order or from shallow to deep. Raises ModelError."""
        import torch

        with torch.device("meta"):  # the names need no weights, so that scoring what is stored does not either
            skeleton = {"torchvision": _torchvision_skeleton, "timm": _timm_skeleton}[self.library](self.network_name)
        known = [name for name, _ in skeleton.named_modules() if name]
        if self._asked is None:
            blocks = [name for name in known if RESIDUAL_BLOCK.fullmatch(name)]
            if not blocks:
                top = ", ".join(name for name, _ in skeleton.named_children())
                raise ModelError(
                    f"network: {self.network_name} has no residual blocks layer1.0 ...; give `layers`, modules within {top}"
                )
            return blocks
        for name in self._asked:
            if name not in known:
                near = ", ".join(difflib.get_close_matches(name, known)) or ", ".join(known[:5])
                raise ModelError(f"layers: {self.network_name} has no module {name!r}; near: {near}")
        return self._asked

    @cached_property
    def metrics(self) -> Sequence[MetricSpec]:  # type: ignore[override]
        """One a layer, named by it; the last is primary."""
        return tuple(
            MetricSpec(layer, higher_is_better=False, primary=layer == self.layers[-1], ceiling=0.0) for layer in self.layers
        )

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([("differences", pa.list_(pa.float64()))])

    @property
    def fingerprint(self) -> str:
        weights = file_sha256(self.path) if self.path else self.weight_set if self.library == "torchvision" else None
        facts = {"library": self.library, "network": self.network_name, "weights": weights, "layers": self._asked}
        return fingerprint(task=self.name, version=self.version, **facts, **versions("torch", self.library))

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`differences`: 1 - cosine similarity after each layer, float64, in the order of `layers`."""
        assert originals is not None
        pairs = zip(images, ids, originals, strict=True)
        return [{"differences": self._compare(image, self._originals.get(i, original, ids))} for image, i, original in pairs]

    def _compare(self, image: Image, kept: Sequence[torch.Tensor]) -> npt.NDArray[np.float64]:
        of_original = iter(kept)
        found: dict[str, float] = {}
        self._run(image, lambda layer, feature: found.__setitem__(layer, difference(next(of_original), feature)))
        return np.array([found[layer] for layer in self.layers])

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> npt.NDArray[np.float64]:
        """float64 (images, layers)."""
        return np.array([prediction["differences"] for prediction in predictions]).reshape(-1, len(self.layers))

    def aggregate(self, statistics: npt.NDArray[np.float64], weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        return dict(zip(self.layers, np.average(statistics, axis=0, weights=weights).tolist(), strict=True))

    def _features_of(self, original: Image) -> list[torch.Tensor]:
        features: list[torch.Tensor] = []
        self._run(original, lambda _, feature: features.append(feature.clone()))  # a later module may work in place
        return features

    def _run(self, image: Image, see: Callable[[str, torch.Tensor], None]) -> None:
        """Shows an image to the network and hands over each layer's output as it arises, so that one at a time is in memory."""
        import torch

        with _watched(self.network, self.layers, see), torch.inference_mode():
            pixels = torch.tensor(image, device=self.device).permute(2, 0, 1)[None].float() / 255
            self.network((pixels - pixels.new_tensor(self._mean).view(3, 1, 1)) / pixels.new_tensor(self._deviation).view(3, 1, 1))


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """1 - cosine similarity of two tensors as flat vectors, in float64; 0 where both vanish, 1 where one does."""
    a, b = first.flatten().double(), second.flatten().double()
    product, norms = float(a @ b), (float(a @ a), float(b @ b))
    if 0 in norms:
        return 0.0 if norms[0] == norms[1] else 1.0
    return max(0.0, 1 - product / float(np.sqrt(norms[0] * norms[1])))


@contextmanager
def _watched(network: torch.nn.Module, layers: Sequence[str], see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    import torch

    def hook(layer: str) -> Callable[..., None]:
        def called(_: Any, __: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor):
                raise ModelError(f"layers: module {layer!r} gives {type(output).__name__}, not a tensor; name one within it")
            see(layer, output)

        return called

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


def _torchvision(name: str, weights: str, path: Path | None) -> tuple[torch.nn.Module, Sequence[float], Sequence[float]]:
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


def _timm(name: str, weights: str, path: Path | None) -> tuple[torch.nn.Module, Sequence[float], Sequence[float]]:
    """timm tells weights apart by the tag of the name, so `weights` plays no part."""
    from icmbench.tasks.models.timm_models import TimmClassifier

    network = TimmClassifier(name, path).network
    return network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
