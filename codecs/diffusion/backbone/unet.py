"""A diffusers UNet run sub-block by sub-block, so that a control module can read and change the hidden states in between.

    x -> 12 encoder sub-blocks -> middle -> 12 decoder sub-blocks -> eps
              |  each: h = inject.encoder(i, h)     |  before the skip is concatenated: h = inject.decoder(i, h)
              +-> skips                  h = inject.middle(h)

Sub-blocks are numbered as in the original Stable Diffusion code: `input_blocks`, `middle_block`, `output_blocks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

UNet: TypeAlias = Any  # A UNet2DConditionModel of diffusers, which does not declare the types of its layers.


class Injector(Protocol):
    """Reads and changes the hidden states of one evaluation of the UNet.

    Each method gets a hidden state (N, C, H, W) and returns the one that the UNet continues with.
    """

    def encoder(self, index: int, h: Tensor) -> Tensor:
        """Called after encoder sub-block `index`; the result is also the skip connection."""

    def middle(self, h: Tensor) -> Tensor:
        """Called after the middle block."""

    def decoder(self, index: int, h: Tensor) -> Tensor:
        """Called before decoder sub-block `index`, before the skip connection is concatenated."""


def encoder_blocks(unet: UNet) -> list[list[nn.Module]]:
    """Return the layers of each encoder sub-block: the input convolution; resnet and attention; or a downsampler."""
    blocks: list[list[nn.Module]] = [[unet.conv_in]]
    for down in unet.down_blocks:
        blocks += _resnets_with_attention(down)
        blocks += [[layer] for layer in down.downsamplers or ()]
    return blocks


def middle_block(unet: UNet) -> list[nn.Module]:
    """Return the layers of the middle block: resnet, attention, resnet."""
    middle = unet.mid_block
    return [middle.resnets[0], middle.attentions[0], middle.resnets[1]]


def decoder_blocks(unet: UNet) -> list[list[nn.Module]]:
    """Return the layers of each decoder sub-block; an upsampler belongs to the last sub-block of its level."""
    blocks: list[list[nn.Module]] = []
    for up in unet.up_blocks:
        blocks += _resnets_with_attention(up)
        blocks[-1] += list(up.upsamplers or ())
    return blocks


def _resnets_with_attention(level: Any) -> list[list[nn.Module]]:
    attentions: Sequence[nn.Module] = getattr(level, "attentions", ())
    return [[resnet, *attentions[i : i + 1]] for i, resnet in enumerate(level.resnets)]


def run_block(layers: Iterable[nn.Module], h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
    """Run the layers of one sub-block.

    Args:
        layers: Layers as `encoder_blocks`, `middle_block` and `decoder_blocks` list them.
        h: Hidden state (N, C, H, W).
        emb: Time embedding (N, E).
        context: Text embedding (N, T, D).

    Returns:
        The next hidden state (N, C', H', W').
    """
    for layer in layers:
        if isinstance(layer, ResnetBlock2D):
            h = layer(h, emb)
        elif isinstance(layer, Transformer2DModel):
            h = layer(h, encoder_hidden_states=context, return_dict=False)[0]
        else:
            h = layer(h)
    return h


def run_encoder(unet: UNet, x: Tensor, emb: Tensor, context: Tensor, inject: Injector | None = None) -> tuple[Tensor, list[Tensor]]:
    """Run the encoder and the middle block of the UNet.

    Args:
        unet: The UNet.
        x: Noisy latent (N, 4, H, W), in the dtype of the UNet.
        emb: Time embedding (N, E).
        context: Text embedding (N, T, D).
        inject: Changes the hidden states; None for the UNet alone.

    Returns:
        The output (N, C, H/8, W/8) of the middle block, and the skip connections of the encoder sub-blocks.
    """
    h, skips = x, []
    for index, layers in enumerate(encoder_blocks(unet)):
        h = run_block(layers, h, emb, context)
        if inject is not None:
            h = inject.encoder(index, h)
        skips.append(h)
    h = run_block(middle_block(unet), h, emb, context)
    return (h if inject is None else inject.middle(h)), skips


def run_unet(unet: UNet, x: Tensor, emb: Tensor, context: Tensor, inject: Injector | None = None) -> Tensor:
    """Run the whole UNet and return its output (N, 4, H, W), the predicted noise. Arguments as for `run_encoder`."""
    h, skips = run_encoder(unet, x, emb, context, inject)
    for index, layers in enumerate(decoder_blocks(unet)):
        if inject is not None:
            h = inject.decoder(index, h)
        h = run_block(layers, torch.cat([h, skips.pop()], dim=1), emb, context)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))


def embed_time(unet: UNet, t: Tensor) -> Tensor:
    """Return the sinusoids (N, C) float32 of times t (N,) int64, which the time embeddings of UNet and control module read."""
    return unet.time_proj(t)
