"""Probability models of latents as torch modules, with trained parameters and integer frequency tables.

Both models load CompressAI's state dicts of any version (`matrices.0` or `_matrix0`, with or without tables). Tables are buffers,
`_quantized_cdf`, `_cdf_length` and `_offset`, so that they are stored with the weights. `update()` makes them once, after training.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icmbench.codecs.base import CodecError
from icmbench.codecs.entropy import tables as frequencies
from icmbench.codecs.entropy.coder import MAX_SYMBOL

LIKELIHOOD_FLOOR = 1e-9
SCALES = (0.11, 256.0, 64)  # lowest scale, highest scale and number of scales, in geometric steps
_TABLES = ("_quantized_cdf", "_cdf_length", "_offset")
# Names of parameters in CompressAI before 1.2.5, such as `_matrix0`, and how they are called now.
_OLD_NAME = re.compile(r"_(matri|bias|factor)(x?)(\d+)$")
_PLURAL = {"matri": "matrices", "bias": "biases", "factor": "factors"}


class _LowerBound(torch.autograd.Function):
    """max(x, bound). Below the bound, a gradient passes only if its descent would raise x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,), (gradient,) = ctx.saved_tensors, gradients
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound) for training.

    Where x is below the bound, the gradient is kept if descent would raise x, and zero otherwise.

    Args:
        x: Tensor of any shape.
        bound: The lower bound.
    """
    if torch.is_grad_enabled():
        bounded: Tensor = _LowerBound.apply(x, bound)  # type: ignore[no-untyped-call]
        return bounded
    return x.clamp(min=bound)


def round_ste(x: Tensor) -> Tensor:
    """x, of any shape, rounded to integers; the gradient passes straight through (straight-through estimator)."""
    return x + (x.round() - x).detach() if torch.is_grad_enabled() else x.round()


def add_noise(x: Tensor) -> Tensor:
    """x, of any shape, plus uniform noise in [-1/2, 1/2), a differentiable stand-in for rounding."""
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


def to_symbols(values: Tensor) -> npt.NDArray[np.int32]:
    """Residuals as symbols.

    Args:
        values: Residuals of any shape, on the CPU.

    Returns:
        The rounded values, flat, int32.

    Raises:
        CodecError: a value is not finite, or its absolute value exceeds MAX_SYMBOL.
    """
    rounded = values.round().flatten()
    if rounded.numel() and not bool(rounded.abs().max() <= MAX_SYMBOL):  # This comparison is false for NaN, too.
        raise CodecError("a latent is too large to code or not a number; the weights do not fit this image or are damaged")
    return rounded.to(torch.int32).numpy()


class _TabledModel(nn.Module):
    """A model with integer tables in three buffers, which are empty until `update()` or a state dict fills them."""

    _quantized_cdf: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in _TABLES:
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))
        self._checked: frequencies.Tables | None = None

    @property
    def has_tables(self) -> bool:
        """Whether the model has frequency tables."""
        return self._quantized_cdf.numel() > 0

    @property
    def tables(self) -> frequencies.Tables:
        """The frequency tables, checked.

        Raises:
            CodecError: the model has no tables, or they are damaged.
        """
        if self._checked is None:
            if not self.has_tables:
                raise CodecError("the entropy model has no frequency tables; call update() once after training")
            try:
                self._checked = frequencies.Tables(*(getattr(self, name).cpu().numpy() for name in _TABLES))
            except ValueError as error:
                raise CodecError(f"the weights hold damaged frequency tables ({error}); fetch or export them again") from error
        return self._checked

    @abstractmethod
    def update(self) -> None:
        """Make the tables of the parameters as they are now."""

    def ensure_tables(self) -> None:
        """Make the tables if the model has none, as after loading a state dict without them."""
        if not self.has_tables:
            self.update()

    def _store(self, tables: frequencies.Tables) -> None:
        device = self._quantized_cdf.device
        for name, values in zip(_TABLES, (tables.cdf, tables.length, tables.offset)):
            setattr(self, name, torch.from_numpy(values).to(device))
        self._checked = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in _TABLES:
            stored = state_dict.setdefault(prefix + name, torch.empty(0, dtype=torch.int32))
            setattr(self, name, torch.empty_like(stored, dtype=torch.int32, device=self._quantized_cdf.device))
        for bound in ("likelihood_lower_bound.bound", "lower_bound_scale.bound", "scale_bound", "target"):
            state_dict.pop(prefix + bound, None)  # CompressAI stores these constants.
        self._checked = None
        super()._load_from_state_dict(state_dict, prefix, *args)


class EntropyBottleneck(_TabledModel):
    """Fully factorised prior with one learned density per channel.

    The cumulative distribution of a channel is a small monotone network. Values are rounded relative to the channel's median.

    Args:
        channels: Channels of z.
        filters: Hidden widths of the network of each channel.
        init_scale: Width of the initial densities.

    Attributes:
        quantiles: (C, 1, 3) positions of the lower tail, the median and the upper tail, learned by `auxiliary_loss`.

    Source: Ballé et al., "Variational Image Compression with a Scale Hyperprior", ICLR 2018, section 6.1.
    """

    def __init__(self, channels: int, filters: Sequence[int] = (3, 3, 3, 3), init_scale: float = 10.0) -> None:
        super().__init__()
        self.channels = channels
        widths = (1, *filters, 1)
        scale = init_scale ** (1 / (len(filters) + 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(widths):
            start = math.log(math.expm1(1 / scale / fan_out))
            self.matrices.append(nn.Parameter(torch.full((channels, fan_out, fan_in), start)))
            self.biases.append(nn.Parameter(torch.empty(channels, fan_out, 1).uniform_(-0.5, 0.5)))
            if len(self.factors) < len(filters):
                self.factors.append(nn.Parameter(torch.zeros(channels, fan_out, 1)))
        self.quantiles = nn.Parameter(torch.tensor([-init_scale, 0.0, init_scale]).repeat(channels, 1, 1))

    @property
    def medians(self) -> Tensor:
        """(1, C, 1, 1) medians, without gradient, because only the auxiliary loss may move them."""
        return self.quantiles[:, 0, 1].detach().view(1, -1, 1, 1)

    def _logits(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """Logit (C, 1, n) of the cumulative distribution at x (C, 1, n). `frozen` keeps gradients from the network's weights."""
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases)):
            factor = self.factors[i] if i < len(self.factors) else None
            if frozen:
                matrix, bias, factor = matrix.detach(), bias.detach(), None if factor is None else factor.detach()
            x = F.softplus(matrix) @ x + bias
            if factor is not None:
                x = x + torch.tanh(factor) * torch.tanh(x)
        return x

    def likelihood(self, values: Tensor) -> Tensor:
        """Probability of the unit bin around each value, at least LIKELIHOOD_FLOOR.

        Args:
            values: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        x = values.transpose(0, 1).reshape(self.channels, 1, -1)
        p = torch.sigmoid(self._logits(x + 0.5)) - torch.sigmoid(self._logits(x - 0.5))
        p = lower_bound(p, LIKELIHOOD_FLOOR)
        shape = values.transpose(0, 1).shape
        return p.reshape(shape).transpose(0, 1)

    def forward(self, z: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Noisy or rounded latents and their likelihoods.

        Args:
            z: (B, C, H, W).
            training: Whether to add noise rather than round; None takes the module's mode.

        Returns:
            The latents and their likelihoods, (B, C, H, W) each.
        """
        noisy = self.training if training is None else training
        outputs = add_noise(z) if noisy else (z - self.medians).round() + self.medians
        return outputs, self.likelihood(outputs)

    def quantise(self, z: Tensor) -> Tensor:
        """round(z - median) + median with a straight-through gradient, for z (B, C, H, W)."""
        return round_ste(z - self.medians) + self.medians

    def auxiliary_loss(self) -> Tensor:
        """Loss that moves the quantiles to where the cumulative distribution is TAIL_MASS / 2, 1/2 and 1 - TAIL_MASS / 2.

        Returns:
            A scalar: the summed absolute error of the logits there.
        """
        reach = math.log(2 / frequencies.TAIL_MASS - 1)
        return (self._logits(self.quantiles, frozen=True) - self.quantiles.new_tensor([-reach, 0.0, reach])).abs().sum()

    @torch.no_grad()
    def update(self) -> None:
        """Make the tables of the current parameters.

        Raises:
            CodecError: the quantiles are not finite, or too far apart.
        """
        low, median, high = self.quantiles[:, 0].double().cpu().unbind(1)
        below, above = (median - low).ceil().clamp(min=0), (high - median).ceil().clamp(min=0)
        if not bool((below + above < frequencies.MAX_ROW - 3).all()):
            raise CodecError("the quantiles of the factorised prior are out of range; the weights are damaged or untrained")
        span = int((below + above).max()) + 1
        x = (median - below)[:, None, None] + torch.arange(span, dtype=torch.float64)
        model = EntropyBottleneck.__new__(EntropyBottleneck)
        nn.Module.__init__(model)
        for name in ("matrices", "biases", "factors"):
            setattr(model, name, nn.ParameterList(p.detach().double().cpu() for p in getattr(self, name)))
        lower, upper = (torch.sigmoid(model._logits(x + half))[:, 0].numpy() for half in (-0.5, 0.5))
        length = (below + above).int().numpy() + 1
        pmfs = [np.maximum(u[:n] - l[:n], 0) for u, l, n in zip(upper, lower, length)]
        tails = [l[0] + 1 - u[n - 1] for u, l, n in zip(upper, lower, length)]
        self._store(frequencies.build(pmfs, tails, -below.int().numpy()))

    def table_rows(self, height: int, width: int) -> npt.NDArray[np.uint16]:
        """The table row of each symbol of a latent (C, height, width), flat: its channel."""
        return np.repeat(np.arange(self.channels, dtype=np.uint16), height * width)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if old := _OLD_NAME.fullmatch(key[len(prefix) :]):
                state_dict[f"{prefix}{_PLURAL[old[1]]}.{old[3]}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class GaussianConditional(_TabledModel):
    """Gaussians whose means and scales a network predicts. For coding, each scale falls into one of 64 bins.

    Attributes:
        scale_table: (64,) float32 upper ends of the bins, stored with the tables that were made for them. The last bin is open.

    Source: Minnen et al., "Joint Autoregressive and Hierarchical Priors for Learned Image Compression", NeurIPS 2018.
    """

    scale_table: Tensor

    def __init__(self) -> None:
        super().__init__()
        low, high, count = SCALES
        self.register_buffer("scale_table", torch.exp(torch.linspace(math.log(low), math.log(high), count)))

    def likelihood(self, values: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        """Probability of the unit bin around each value, at least LIKELIHOOD_FLOOR.

        Args:
            values: Tensor of any shape.
            scales: Standard deviations, of the same shape.
            means: Means, of the same shape.

        Returns:
            A tensor of the same shape.
        """
        scales = lower_bound(scales, SCALES[0])
        distance = (values - means).abs()
        root = -(2**-0.5)
        upper = 0.5 * torch.erfc(root * ((0.5 - distance) / scales))
        lower = 0.5 * torch.erfc(root * ((-0.5 - distance) / scales))
        return lower_bound(upper - lower, LIKELIHOOD_FLOOR)

    def forward(self, y: Tensor, scales: Tensor, means: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Noisy or rounded latents and their likelihoods.

        Args:
            y: Tensor of any shape.
            scales: Standard deviations, of the same shape.
            means: Means, of the same shape.
            training: Whether to add noise rather than round around the means; None takes the module's mode.

        Returns:
            The latents and their likelihoods, of the same shape.
        """
        noisy = self.training if training is None else training
        outputs = add_noise(y) if noisy else (y - means).round() + means
        return outputs, self.likelihood(outputs, scales, means)

    def update(self) -> None:
        """Make the tables. A row is the Gaussian of the geometric mean of its bin's ends; the outer bins take their one end."""
        scales = self.scale_table.double().cpu().numpy()
        middles = np.sqrt(scales[1:-1] * scales[:-2])
        self._store(frequencies.gaussian(np.concatenate([scales[:1], middles, scales[-1:]])))

    def table_rows(self, scales: Tensor) -> npt.NDArray[np.uint8]:
        """The table row of each symbol: the first bin whose upper end is not below its scale, or the last. Exact for any float.

        Args:
            scales: Standard deviations of any shape, on the CPU.

        Returns:
            uint8, flat.
        """
        edges = self.scale_table[:-1].cpu().to(scales.dtype).numpy()
        return np.searchsorted(edges, scales.flatten().numpy()).astype(np.uint8)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "scale_table")
        if stored is None or stored.numel() == 0:  # CompressAI leaves it empty before update().
            state_dict[prefix + "scale_table"] = self.scale_table
        else:
            self.scale_table = torch.empty_like(self.scale_table, dtype=torch.float32).resize_(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
