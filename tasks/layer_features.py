"""The outputs of a network's layers as it computes them, one after the other.

    image -> scaled to 0..1, normalised -> network of torchvision or timm -> visit(name, output) after each layer

The network is loaded when the first image comes; the names of its layers need no weights.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from icmbench.tasks.base import Image, file_sha256
from icmbench.tasks.models.devices import Device
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import versions
from icmbench.tasks.models.timm_models import known_weights

if TYPE_CHECKING:
    import torch

RESIDUAL_BLOCK = re.compile(r"layer\d+\.\d+")  # Names in torchvision's and timm's ResNets and their relatives.


class LayerFeatures:
    """A network, and the layers of it whose outputs are looked at.

    Args:
        library: where the network comes from.
        name: the library's name for it.
        weights: torchvision's weight set; timm does not use it.
        path: a file with a state dict, instead of a download.
        layers: names of modules, in this order; None takes all residual blocks from shallow to deep.
        device: where the network runs.

    Raises:
        ModelError: at first use, if network, layers or weights are unknown or do not fit.
    """

    def __init__(
        self,
        library: Literal["torchvision", "timm"],
        name: str,
        weights: str,
        path: Path | None,
        layers: list[str] | None,
        device: Device,
    ) -> None:
        self.library, self.name, self._device = library, name, device
        self._weights, self._path, self._requested_layers = weights, path, layers

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network in evaluation mode, loaded at the first call."""
        load = {"torchvision": _load_torchvision, "timm": _load_timm}[self.library]
        network, self._mean, self._std = load(self.name, self._weights, self._path)
        return network.requires_grad_(False).to(self._device)

    @cached_property
    def layers(self) -> list[str]:
        """Names of the modules that are compared.

        Raises:
            ModelError: a requested module does not exist, or none is requested and the network has no residual blocks.
        """
        import torch

        # The names need no weights. Without them, stored predictions can be scored on a machine that lacks the weights.
        with torch.device("meta"):
            skeleton = {"torchvision": _torchvision_skeleton, "timm": _timm_skeleton}[self.library](self.name)
        modules = [name for name, _ in skeleton.named_modules() if name]
        if self._requested_layers is None:
            blocks = [name for name in modules if RESIDUAL_BLOCK.fullmatch(name)]
            if not blocks:
                top = ", ".join(name for name, _ in skeleton.named_children())
                raise ModelError(f"network: {self.name} has no residual blocks layer1.0 ...; give `layers`, modules within {top}")
            return blocks
        for name in self._requested_layers:
            if name not in modules:
                near = ", ".join(difflib.get_close_matches(name, modules)) or ", ".join(modules[:5])
                raise ModelError(f"layers: {self.name} has no module {name!r}; near: {near}")
        return self._requested_layers

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the outputs, for a fingerprint: library, network, weights, layers and library versions."""
        if self._path is not None:
            weights: Any = file_sha256(self._path)
        else:
            weights = self._weights if self.library == "torchvision" else self._timm_weights
        facts = {"library": self.library, "network": self.name, "weights": weights, "layers": self._requested_layers}
        return facts | versions("torch", self.library)

    @cached_property
    def _timm_weights(self) -> Any:
        """What identifies the weights that timm's name stands for, asked of the hub once."""
        return known_weights(self.name)

    def visit(self, image: Image, visit: Callable[[str, torch.Tensor], None]) -> None:
        """Run the network on an image and call `visit` with each layer's name and output as soon as it is computed.

        No more than one feature is in memory at a time unless `visit` keeps it.
        """
        import torch

        with _output_hooks(self.network, self.layers, visit), torch.inference_mode():
            pixels = torch.tensor(image, device=self._device).permute(2, 0, 1)[None].float() / 255
            self.network((pixels - pixels.new_tensor(self._mean).view(3, 1, 1)) / pixels.new_tensor(self._std).view(3, 1, 1))


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
