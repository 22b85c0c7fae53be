"""Probability models of latents as torch modules: parameters are trained, integer tables are stored beside them.

Both load CompressAI state dicts of any version (`matrices.0` or `_matrix0`; with or without tables). Tables are buffers
`_quantized_cdf`, `_cdf_length`, `_offset`, so that they travel with the weights; `update()` makes them once, after training.
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
SCALES = (0.11, 256.0, 64)  # log-spaced: lowest, highest, how many
_TABLES = ("_quantized_cdf", "_cdf_length", "_offset")
_OLD_NAME = re.compile(r"_(matri|bias|factor)(x?)(\d+)$")
_PLURAL = {"matri": "matrices", "bias": "biases", "factor": "factors"}


class _LowerBound(torch.autograd.Function):
    """max(x, bound), whose gradient still passes where it would raise x."""

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
    """max(x, bound) for training: the gradient passes through wherever it points upwards."""
    return _LowerBound.apply(x, bound) if torch.is_grad_enabled() else x.clamp(min=bound)


def round_ste(x: Tensor) -> Tensor:
    """Rounding whose gradient is the identity."""
    return x + (x.round() - x).detach() if torch.is_grad_enabled() else x.round()


def add_noise(x: Tensor) -> Tensor:
    """Uniform noise in [-1/2, 1/2), the differentiable stand-in for rounding."""
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


def to_symbols(values: Tensor) -> npt.NDArray[np.int32]:
    """Rounded residuals as a flat int32 array. CodecError where one is not finite or beyond what the coder takes."""
    rounded = values.round().flatten()
    if rounded.numel() and not bool(rounded.abs().max() <= MAX_SYMBOL):  # also catches NaN
        raise CodecError("a latent is too large to code or not a number; the weights do not fit this image or are damaged")
    return rounded.to(torch.int32).numpy()


class _Coded(nn.Module):
    """A model with integer tables in three buffers, empty until `update()` or a state dict fills them."""

    _quantized_cdf: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in _TABLES:
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))
        self._checked: frequencies.Tables | None = None

    @property
    def has_tables(self) -> bool:
        return self._quantized_cdf.numel() > 0

    @property
    def tables(self) -> frequencies.Tables:
        """The checked tables. CodecError where there are none yet, or where they are damaged."""
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
        """Makes the tables of the parameters as they are now."""

    def complete(self) -> None:
        """Makes the tables where a state dict had none."""
        if not self.has_tables:
            self.update()

    def _store(self, made: frequencies.Tables) -> None:
        device = self._quantized_cdf.device
        for name, values in zip(_TABLES, (made.cdf, made.length, made.offset)):
            setattr(self, name, torch.from_numpy(values).to(device))
        self._checked = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in _TABLES:
            stored = state_dict.setdefault(prefix + name, torch.empty(0, dtype=torch.int32))
            setattr(self, name, torch.empty_like(stored, dtype=torch.int32, device=self._quantized_cdf.device))
        for bound in ("likelihood_lower_bound.bound", "lower_bound_scale.bound", "scale_bound", "target"):
            state_dict.pop(prefix + bound, None)  # CompressAI stores these constants
        self._checked = None
        super()._load_from_state_dict(state_dict, prefix, *args)


class EntropyBottleneck(_Coded):
    """Fully factorised prior: one learned density a channel (Ballé et al. 2018, section 6.1).

    The cumulative is a small monotone network a channel; `quantiles` (C, 1, 3) are the tail, median and tail positions, learned
    by `auxiliary_loss`. Values are rounded relative to the median.
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
        """(1, C, 1, 1), without gradient: rounding is relative to them, only the auxiliary loss moves them."""
        return self.quantiles[:, 0, 1].detach().view(1, -1, 1, 1)

    def _logits(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """Logit of the cumulative at x (C, 1, n)."""
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases)):
            factor = self.factors[i] if i < len(self.factors) else None
            if frozen:
                matrix, bias, factor = matrix.detach(), bias.detach(), None if factor is None else factor.detach()
            x = F.softplus(matrix) @ x + bias
            if factor is not None:
                x = x + torch.tanh(factor) * torch.tanh(x)
        return x

    def likelihood(self, values: Tensor) -> Tensor:
        """Probability of the unit bins around values (B, C, H, W), at least LIKELIHOOD_FLOOR."""
        x = values.transpose(0, 1).reshape(self.channels, 1, -1)
        p = torch.sigmoid(self._logits(x + 0.5)) - torch.sigmoid(self._logits(x - 0.5))
        p = lower_bound(p, LIKELIHOOD_FLOOR)
        shape = values.transpose(0, 1).shape
        return p.reshape(shape).transpose(0, 1)

    def forward(self, z: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """z (B, C, H, W) -> z with noise (training) or rounded, and its likelihoods, of the same shape."""
        noisy = self.training if training is None else training
        outputs = add_noise(z) if noisy else (z - self.medians).round() + self.medians
        return outputs, self.likelihood(outputs)

    def quantise(self, z: Tensor) -> Tensor:
        """round(z - median) + median, with a straight-through gradient."""
        return round_ste(z - self.medians) + self.medians

    def auxiliary_loss(self) -> Tensor:
        """Distance of the quantiles from the positions where the cumulative is TAIL_MASS / 2, 1/2 and 1 - TAIL_MASS / 2."""
        reach = math.log(2 / frequencies.TAIL_MASS - 1)
        return (self._logits(self.quantiles, frozen=True) - self.quantiles.new_tensor([-reach, 0.0, reach])).abs().sum()

    @torch.no_grad()
    def update(self) -> None:
        """Makes the tables of the current parameters. CodecError if the quantiles are no finite, ordered range."""
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

    def rows(self, height: int, width: int) -> npt.NDArray[np.uint16]:
        """Table row of each symbol of a (C, height, width) latent, flattened: its channel."""
        return np.repeat(np.arange(self.channels, dtype=np.uint16), height * width)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if old := _OLD_NAME.fullmatch(key[len(prefix) :]):  # CompressAI before 1.2.5
                state_dict[f"{prefix}{_PLURAL[old[1]]}.{old[3]}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class GaussianConditional(_Coded):
    """Gaussians whose mean and scale a network predicts; for coding, the scale falls into one of 64 bins.

    Minnen et al. 2018. `scale_table` (64,) float32 is stored with the tables that were made for it.
    """

    scale_table: Tensor

    def __init__(self) -> None:
        super().__init__()
        low, high, count = SCALES
        self.register_buffer("scale_table", torch.exp(torch.linspace(math.log(low), math.log(high), count)))

    def likelihood(self, values: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        """Probability of the unit bins around values, at least LIKELIHOOD_FLOOR; all of one shape."""
        scales = lower_bound(scales, SCALES[0])
        distance = (values - means).abs()
        root = -(2**-0.5)
        upper = 0.5 * torch.erfc(root * ((0.5 - distance) / scales))
        lower = 0.5 * torch.erfc(root * ((-0.5 - distance) / scales))
        return lower_bound(upper - lower, LIKELIHOOD_FLOOR)

    def forward(self, y: Tensor, scales: Tensor, means: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """y -> y with noise (training) or rounded around its mean, and its likelihoods, of the same shape."""
        noisy = self.training if training is None else training
        outputs = add_noise(y) if noisy else (y - means).round() + means
        return outputs, self.likelihood(outputs, scales, means)

    def update(self) -> None:
        """Makes the tables: row i stands for scales between two entries of `scale_table`, and holds their geometric mean."""
        scales = self.scale_table.double().cpu().numpy()
        middles = np.sqrt(scales[1:-1] * scales[:-2])
        self._store(frequencies.gaussian(np.concatenate([scales[:1], middles, scales[-1:]])))

    def rows(self, scales: Tensor) -> npt.NDArray[np.uint8]:
        """Table row of each symbol, flattened: the smallest scale of the table that is no smaller. Exact for any float type."""
        edges = self.scale_table[:-1].cpu().to(scales.dtype).numpy()
        return np.searchsorted(edges, scales.flatten().numpy()).astype(np.uint8)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "scale_table")
        if stored is None or stored.numel() == 0:  # CompressAI leaves it empty before update()
            state_dict[prefix + "scale_table"] = self.scale_table
        else:
            self.scale_table = torch.empty_like(self.scale_table, dtype=torch.float32).resize_(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
