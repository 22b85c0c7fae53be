"""The ELIC network and its weight files.

    x --g_a--> y --h_a--> z --> z_hat --h_s--> hyper --context--> scales, means --> y_hat --g_s--> x_hat

There are two variants, whose weights are not interchangeable: "official" (all earlier slices are the channel context) and
"chandelier" (the first and the previous slice are, and hyper parameters are wider), as CompressAI's Elic2022Official and
Elic2022Chandelier.

Source: He et al., "ELIC: Efficient Learned Image Compression with Unevenly Grouped Space-Channel Contextual Adaptive Coding",
CVPR 2022.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icmbench.codecs.base import CodecError
from icmbench.codecs.entropy.checkerboard import SCCTX, fixed_widths, ramp_widths
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional

Variant = Literal["official", "chandelier"]
STRIDE = 64  # Pixels between positions of z; images are padded to multiples of it.
_STRIP_BYTES = 5 << 20  # A strip of a feature map of this size stays in a processor's cache.


def _conv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def _deconv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride, kernel // 2, stride - 1)


def _residual(x: Tensor, reduce: nn.Conv2d, mix: nn.Conv2d, expand: nn.Conv2d, *, final_relu: bool, overwrite: bool) -> Tensor:
    """x + expand(relu(mix(relu(reduce(x))))): 1x1, 3x3 and 1x1 convolutions.

    Without gradients, on a CPU, it runs strip by strip in cache, and writes into x itself if `overwrite` is set. On large maps this
    takes a third less time, partly because fresh memory would cost page faults.
    """
    height, row_bytes = x.shape[2], x.shape[0] * x.shape[1] * x.shape[3] * x.element_size()
    strip = max(8, _STRIP_BYTES // row_bytes)
    if torch.is_grad_enabled() or x.device.type != "cpu" or strip >= height or len(x) > 1:
        out = x + expand(torch.relu(mix(torch.relu(reduce(x)))))
        return torch.relu(out) if final_relu else out
    out = x if overwrite else torch.empty_like(x)
    tops = range(0, height, strip)

    def reduced(top: int) -> Tensor:
        above, below = max(top - 1, 0), min(top + strip + 1, height)
        inner = torch.relu_(reduce(x[:, :, above:below]))
        return F.pad(inner, (0, 0, int(above == top), int(top + strip >= height)))

    following = reduced(0)
    for top in tops:
        inner = following
        if top + strip < height:
            following = reduced(top + strip)  # It reads the last row of this strip, which is about to be overwritten.
        inner = torch.relu_(F.conv2d(inner, mix.weight, mix.bias, padding=(0, 1)))
        rows = slice(top, top + strip)
        strip_out = torch.add(expand(inner), x[:, :, rows], out=out[:, :, rows])
        if final_relu:
            strip_out.relu_()
    return out


class ResidualBottleneck(nn.Module):
    """Residual block that has half as many channels inside. Without gradients it may overwrite its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 1)
        self.conv2 = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)
        self.conv3 = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, H, W) -> a map of the same shape."""
        return _residual(x, self.conv1, self.conv2, self.conv3, final_relu=False, overwrite=True)


class _AttentionUnit(nn.Module):
    def __init__(self, channels: int, overwrite: bool) -> None:
        super().__init__()
        half = channels // 2
        reduce, mix, expand = nn.Conv2d(channels, half, 1), nn.Conv2d(half, half, 3, padding=1), nn.Conv2d(half, channels, 1)
        self.conv = nn.Sequential(reduce, nn.ReLU(), mix, nn.ReLU(), expand)
        self._overwrite = overwrite

    def forward(self, x: Tensor) -> Tensor:
        reduce, _, mix, _, expand = cast(list[nn.Conv2d], list(self.conv))
        return _residual(x, reduce, mix, expand, final_relu=True, overwrite=self._overwrite)


class Attention(nn.Module):
    """Simplified attention: x + a(x) * sigmoid(b(x)).

    Source: Cheng et al., "Learned Image Compression with Discretized Gaussian Mixture Likelihoods and Attention Modules",
    CVPR 2020.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(_AttentionUnit(channels, overwrite=i > 0) for i in range(3)))
        gate = [_AttentionUnit(channels, overwrite=i > 0) for i in range(3)]
        self.conv_b = nn.Sequential(*gate, nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, H, W) -> a map of the same shape."""
        a, gate = self.conv_a(x), self.conv_b(x)
        if torch.is_grad_enabled():
            return torch.addcmul(x, a, torch.sigmoid(gate))
        return torch.addcmul(x, a, gate.sigmoid_(), out=a)


class _ToPixels(nn.ConvTranspose2d):
    """The last transposed convolution. Without gradients it runs as an equal 3x3 convolution and pixel shuffle, which is faster."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if torch.is_grad_enabled() or self.bias is None:
            return super().forward(x, output_size)
        taps = torch.tensor([[4, 2, 0], [5, 3, 1]], device=x.device)  # Output 2 p + a sees input p + d through tap a + 2 - 2 d.
        kernel = F.pad(self.weight.transpose(0, 1), (0, 1, 0, 1))  # There is no tap 5, so it is zero.
        kernel = kernel[:, :, taps][..., taps].permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        return F.pixel_shuffle(F.conv2d(x, kernel, self.bias.repeat_interleave(4), padding=1), 2)


class ElicNetwork(nn.Module):
    """The ELIC network.

    Args:
        variant: "official" or "chandelier".
        n: Channels of the transforms and of z.
        m: Channels of y.
        slices: Channels of y in each slice of the context model, m in all. By default 16, 16, 32, 64 and all others.
        context_widths: Hidden widths of the channel contexts.
        parameter_width: Second hidden width of the parameter nets of the "chandelier" variant.

    Raises:
        CodecError: the slices do not add up to m.
    """

    def __init__(
        self,
        variant: Variant = "official",
        n: int = 192,
        m: int = 320,
        slices: Sequence[int] | None = None,
        context_widths: tuple[int, int] = (224, 128),
        parameter_width: int = 512,
    ) -> None:
        super().__init__()
        self.variant, self.n, self.m = variant, n, m
        slices = tuple(slices or (16, 16, 32, 64, m - 128))
        if sum(slices) != m or min(slices) < 1:
            raise CodecError(f"slices {slices} do not add up to the {m} latent channels")
        official = variant == "official"
        self.g_a = nn.Sequential(
            _conv(3, n), *(ResidualBottleneck(n) for _ in range(3)),
            _conv(n, n), *(ResidualBottleneck(n) for _ in range(3)), Attention(n),
            _conv(n, n), *(ResidualBottleneck(n) for _ in range(3)),
            _conv(n, m), Attention(m),
        )  # fmt: skip
        self.g_s = nn.Sequential(
            Attention(m), _deconv(m, n), *(ResidualBottleneck(n) for _ in range(3)),
            _deconv(n, n), Attention(n), *(ResidualBottleneck(n) for _ in range(3)),
            _deconv(n, n), *(ResidualBottleneck(n) for _ in range(3)),
            _ToPixels(n, 3, 5, 2, 2, 1),
        )  # fmt: skip
        self.h_a = nn.Sequential(_conv(m, n, 3, 1), nn.ReLU(), _conv(n, n), nn.ReLU(), _conv(n, n))
        last = _deconv(n * 3 // 2, 2 * n, 3, 1) if official else _conv(n * 3 // 2, 2 * m, 3, 1)
        self.h_s = nn.Sequential(_deconv(n, n), nn.ReLU(), _deconv(n, n * 3 // 2), nn.ReLU(), last)
        self.entropy_bottleneck = EntropyBottleneck(n)
        self.gaussian_conditional = GaussianConditional()
        self.context = SCCTX(
            slices,
            2 * n if official else 2 * m,
            parity="even",
            order="scales_means" if official else "means_scales",
            support="all" if official else "first_and_previous",
            parameter_widths=ramp_widths(2 * n) if official else fixed_widths(2 * m, parameter_width),
            context_widths=context_widths,
        )

    def forward(self, x: Tensor, *, noisy_context: bool = False) -> dict[str, Any]:
        """Reconstruction and likelihoods of images.

        Args:
            x: (B, 3, H, W) in [0, 1]; H and W are multiples of 64.
            noisy_context: In training, let noise stand for the rounding of y, both for the contexts and for g_s.

        Returns:
            "x_hat": (B, 3, H, W), not clamped; and "likelihoods": {"y": (B, m, H / 16, W / 16), "z": (B, n, H / 64, W / 64)}.
        """
        y = self.g_a(x)
        z = self.h_a(y)
        hyper = self.h_s(self.entropy_bottleneck.quantise(z))
        y_hat, y_likelihoods = self.context(y, hyper, self.gaussian_conditional, noisy_context=noisy_context)
        return {"x_hat": self.g_s(y_hat), "likelihoods": {"y": y_likelihoods, "z": self.entropy_bottleneck(z)[1]}}

    def update(self) -> None:
        """Make the frequency tables of the current weights."""
        self.entropy_bottleneck.update()
        self.gaussian_conditional.update()

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], variant: Variant | None = None) -> ElicNetwork:
        """The network of a state dict in evaluation mode, with sizes from the shapes of the weights.

        Args:
            state_dict: Weights in this project's, CompressAI's or Chandelier's layout. Frequency tables are made if it has none.
            variant: What the variant must be; None takes what the shapes tell.

        Raises:
            CodecError: the state dict is not ELIC's, or of another variant.
        """
        state = rename_keys(state_dict)
        try:
            n, m = state["g_a.0.weight"].shape[0], state["h_a.0.weight"].shape[1]
            spatial = [key for key in state if re.fullmatch(r"context\.spatial_context\.\d+\.weight", key)]
            slices = [state[f"context.spatial_context.{k}.weight"].shape[1] for k in range(len(spatial))]
            widths = tuple(state[f"context.channel_context.1.{i}.weight"].shape[0] for i in (0, 2))
            actual: Variant = "official" if state["h_s.4.weight"].shape[1] == 2 * n else "chandelier"
            second = state["context.parameters_nonanchor.0.2.weight"].shape[0]
        except KeyError as error:
            raise CodecError(f"the weights are no ELIC: {error} is missing") from error
        if variant not in (None, actual):
            raise CodecError(f"the weights are of the {actual} variant; use variant: {actual}")
        network = cls(actual, n, m, slices, (widths[0], widths[1]), second)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise CodecError(f"the weights do not fit ELIC's {actual} variant: {error}") from error
        network.entropy_bottleneck.ensure_tables()
        network.gaussian_conditional.ensure_tables()
        return network.eval()


# Patterns of keys in the layouts of CompressAI and Chandelier, and this project's keys.
_RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"latent_codec\.hyper\.(h_a|h_s|entropy_bottleneck)\.", r"\1."),  # CompressAI
    (r"latent_codec\.y\.channel_context\.y(\d+)\.", r"context.channel_context.\1."),
    (r"latent_codec\.y\.latent_codec\.y(\d+)\.context_prediction\.", r"context.spatial_context.\1."),
    (r"latent_codec\.y\.latent_codec\.y(\d+)\.entropy_parameters\.", r"context.parameters_nonanchor.\1."),
    (r"latent_codec\.y\.latent_codec\.y0\.y\.gaussian_conditional\.", "gaussian_conditional."),  # All slices share one.
    (r"cc_transforms\.(\d+)\.", lambda match: f"context.channel_context.{int(match[1]) + 1}."),  # Chandelier
    (r"context_prediction\.(\d+)\.", r"context.spatial_context.\1."),
    (r"ParamAggregation\.(\d+)\.", r"context.parameters_nonanchor.\1."),
]
_DROPPED = re.compile(r".*\.mask|latent_codec\.y\.latent_codec\.y[1-9]\d*\.y\.gaussian_conditional\..*")


def rename_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ELIC under this project's keys.

    Checkerboard masks are dropped. They zero taps of the spatial context that only read zeros at the positions where its output is
    used.

    Args:
        state_dict: Weights in this project's, CompressAI's or Chandelier's layout.
    """
    state = {}
    for key, value in state_dict.items():
        key = key.removeprefix("module.")
        for pattern, name in _RENAMES:
            key, matches = re.subn("^" + pattern, name, key)
            if matches:
                break
        if not _DROPPED.fullmatch(key):
            state[key] = value
    return state


def load_network(path: str | Path, variant: Variant | None = None) -> ElicNetwork:
    """The network of a weight file.

    Args:
        path: A safetensors file, or a torch checkpoint of the state dict or of a dict that holds it under "state_dict".
        variant: What the variant must be; None takes what the weights tell.

    Raises:
        CodecError: the file is missing or damaged, or its weights are not those of this network.
    """
    path = Path(path)
    if not path.is_file():
        raise CodecError(f"no ELIC weights at {path}; see `icmbench list codecs` for where they come from")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: Any = load_file(path)
        except SafetensorError as error:
            raise CodecError(f"{path} is no safetensors file ({error}); fetch it again") from error
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen types on a damaged file.
            raise CodecError(f"{path} is no checkpoint of tensors ({type(error).__name__}); fetch it again") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return ElicNetwork.from_state_dict({k: v for k, v in state.items() if isinstance(v, Tensor)}, variant)


def weight_file_name(point: float | str) -> str:
    """Name of a rate point's weight file in a folder that holds several."""
    return f"elic-lambda{point:g}.safetensors" if isinstance(point, int | float) else f"elic-{point}.safetensors"


def save_network(network: ElicNetwork, path: str | Path) -> None:
    """Write the weights as safetensors, with their frequency tables, so that no other machine has to make the tables."""
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)


def fill_synthetic(network: ElicNetwork, seed: int = 0) -> ElicNetwork:
    """Fill a network with random weights that spread latents and scales as trained weights do, and make its tables.

    An untrained network codes every latent as zero, which would be useless for tests and timings.

    Args:
        network: The network to fill.
        seed: Seed of the weights, which are the same on every machine.

    Returns:
        The same network, in evaluation mode.
    """
    for key, value in network.named_parameters():
        if key.startswith("entropy_bottleneck"):
            continue
        draw = np.random.default_rng([seed, zlib.crc32(key.encode())]).integers(-(1 << 15), 1 << 15, tuple(value.shape)) / (1 << 15)
        gain = next((g for pattern, g in _GAINS if re.fullmatch(pattern, key)), 1.2)
        if value.dim() == 1:
            filled = 0.1 * draw
        else:
            transposed = isinstance(network.get_submodule(key.rpartition(".")[0]), nn.ConvTranspose2d)
            terms = value.shape[0] * 25 / 4 if transposed else value[0].numel()
            filled = draw * gain * (3 / terms) ** 0.5
        value.data = torch.from_numpy(filled.astype(np.float32))
    for net, width in zip(network.context.parameters_nonanchor, network.context.slices):
        spread = torch.linspace(0.25, 1.2, width)
        official = network.context.order == "scales_means"
        bias = cast(Tensor, list(net.children())[-1].bias).data
        (bias[:width] if official else bias[width:]).add_(spread)
    cast(Tensor, network.g_s[-1].bias).data += 0.5
    for bias in network.entropy_bottleneck.biases:
        bias.data.zero_()
    network.update()
    return network.eval()


# Patterns of weights whose synthetic values are scaled by another gain than 1.2.
_GAINS = [
    (r"g_[as]\..*(conv3|conv\.4)\.weight", 0.5),
    (r"g_a\.13\.weight", 0.3),
    (r"h_a\.4\.weight", 3.0),
    (r"g_s\.1\.weight", 0.6),
    (r"g_s\.14\.weight", 0.1),
    (r"context\.parameters.*\.4\.weight", 0.2),
]


def weights_checksum(network: ElicNetwork) -> int:
    """CRC-32 of the weights and tables, which does not depend on the file that they came from."""
    checksum = 0
    for key, value in sorted(network.state_dict().items()):
        values = value.detach().cpu().contiguous().numpy().reshape(-1)
        checksum = zlib.crc32(values.view(np.uint8).data, zlib.crc32(key.encode(), checksum))
    return checksum
