"""A diffusers UNet walked sub-block by sub-block, so that a control module can look at and add to what passes.

    x -> 12 encoder sub-blocks -> middle -> 12 decoder sub-blocks -> eps
              |  each: h = inject.encoder(i, h)     |  before the skip is concatenated: h = inject.decoder(i, h)
              +-> skips                  h = inject.middle(h)

The numbering is the one of the original Stable Diffusion code: `input_blocks`, `middle_block`, `output_blocks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

UNet: TypeAlias = Any  # diffusers' UNet2DConditionModel, whose parts are not typed


class Injector(Protocol):
    """What joins one evaluation of the UNet. Each method gets the hidden state and returns what goes on in its place."""

    def encoder(self, index: int, h: Tensor) -> Tensor:
        """After encoder sub-block `index`; the result is also the skip connection."""

    def middle(self, h: Tensor) -> Tensor:
        """After the middle block."""

    def decoder(self, index: int, h: Tensor) -> Tensor:
        """Before decoder sub-block `index`, ahead of the skip connection."""


def encoder_blocks(unet: UNet) -> list[list[nn.Module]]:
    """The layers of each encoder sub-block: the input convolution; resnet and attention; or a downsampler."""
    blocks: list[list[nn.Module]] = [[unet.conv_in]]
    for down in unet.down_blocks:
        blocks += _paired(down)
        blocks += [[layer] for layer in down.downsamplers or ()]
    return blocks


def middle_block(unet: UNet) -> list[nn.Module]:
    """resnet, attention, resnet."""
    middle = unet.mid_block
    return [middle.resnets[0], middle.attentions[0], middle.resnets[1]]


def decoder_blocks(unet: UNet) -> list[list[nn.Module]]:
    """The layers of each decoder sub-block; an upsampler belongs to the last sub-block of its level."""
    blocks: list[list[nn.Module]] = []
    for up in unet.up_blocks:
        blocks += _paired(up)
        blocks[-1] += list(up.upsamplers or ())
    return blocks


def _paired(level: Any) -> list[list[nn.Module]]:
    attentions: Sequence[nn.Module] = getattr(level, "attentions", ())
    return [[resnet, *attentions[i : i + 1]] for i, resnet in enumerate(level.resnets)]


def run_block(layers: Iterable[nn.Module], h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
    """h (N, C, H, W) through the layers of one sub-block; emb (N, E) the embedded time, context (N, T, D) the text."""
    for layer in layers:
        if isinstance(layer, ResnetBlock2D):
            h = layer(h, emb)
        elif isinstance(layer, Transformer2DModel):
            h = layer(h, encoder_hidden_states=context, return_dict=False)[0]
        else:
            h = layer(h)
    return h


def encode(unet: UNet, x: Tensor, emb: Tensor, context: Tensor, inject: Injector | None = None) -> tuple[Tensor, list[Tensor]]:
    """x (N, 4, H, W), the dtype of the UNet -> the middle block's output and the encoder's skips."""
    h, skips = x, []
    for index, layers in enumerate(encoder_blocks(unet)):
        h = run_block(layers, h, emb, context)
        if inject is not None:
            h = inject.encoder(index, h)
        skips.append(h)
    h = run_block(middle_block(unet), h, emb, context)
    return (h if inject is None else inject.middle(h)), skips


def predict(unet: UNet, x: Tensor, emb: Tensor, context: Tensor, inject: Injector | None = None) -> Tensor:
    """The UNet's output (N, 4, H, W) at x, embedded time and text; with no injector, what the UNet alone computes."""
    h, skips = encode(unet, x, emb, context, inject)
    for index, layers in enumerate(decoder_blocks(unet)):
        if inject is not None:
            h = inject.decoder(index, h)
        h = run_block(layers, torch.cat([h, skips.pop()], dim=1), emb, context)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))


def embed_time(unet: UNet, t: Tensor) -> Tensor:
    """t (N,) integers -> (N, C) sinusoids, float32, for the time embeddings of the UNet and of the control."""
    return unet.time_proj(t)
