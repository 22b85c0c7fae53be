"""What context models, arithmetics and coders of one pass expect of each other, and the two layouts of a map.

A context model predicts scales and means of y, pass by pass, from hyper parameters and from what earlier passes have decoded.
`checkerboard` and `quadtree` have one each; `hyperprior` codes with either.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

ParameterOrder: TypeAlias = Literal["scales_means", "means_scales"]  # how the output channels of a parameter net split


class Arithmetic(Protocol):
    """How networks are computed between symbols: `exact.Float32` or `integer.FixedPoint`.

    Attributes:
        name: Name of the mode, as users write it.
        dtype: Number type of activations.
    """

    name: str
    dtype: torch.dtype

    def prepare(self, module: nn.Module, *, trusting: bool = False) -> Any:
        """The module as a function of one image's maps, with its weights as they are now.

        Args:
            module: The module.
            trusting: Whether all inputs come from `admit` or from layers prepared in this arithmetic, and need no check.
        """

    def admit(self, x: Tensor) -> Tensor:
        """x, checked to hold values of this arithmetic."""

    def snap(self, x: Tensor) -> Tensor:
        """x rounded to values of this arithmetic."""


class PassCoder(Protocol):
    """Codes the positions of one pass, as encoder or as decoder."""

    def code(self, scales: Tensor, means: Tensor, target: Tensor | None) -> Tensor:
        """The decoded latents of a pass: symbols plus means.

        Args:
            scales: Predicted scales, of any shape.
            means: Predicted means, of the same shape.
            target: The latents to encode, of the same shape. The decoder ignores them and reads the symbols.
        """


class PreparedContextModel(Protocol):
    """A context model whose networks are prepared in one arithmetic."""

    def code(self, hyper: Tensor, coder: PassCoder, y: Tensor | None = None) -> Tensor:
        """y_hat (1, C, H, W) float32.

        Args:
            hyper: (1, D, H, W) hyper parameters, as the prepared h_s computes them.
            coder: Codes each pass.
            y: (1, C, H, W) latents to encode; None to decode.
        """


class ContextModel(Protocol):
    """A context model over y."""

    def prepare(self, arithmetic: Arithmetic) -> PreparedContextModel:
        """The model for coding, with its weights as they are now."""


def to_rows(x: Tensor) -> Tensor:
    """(1, C, H, W) -> (H * W, C), one row per position; a view if x is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def to_map(rows: Tensor) -> Tensor:
    """(positions, C) -> (1, C, positions, 1), a channels-last view."""
    return rows.view(1, rows.shape[0], 1, rows.shape[1]).permute(0, 3, 1, 2)
