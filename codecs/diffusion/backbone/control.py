"""The control module of Diff-ICMH and ResULIC: a second encoder that conditions the UNet on the hint.

It follows ControlNet-XS: encoder and middle block only, a time embedding of its own, no hint network (the hint is concatenated
with x_t at the input), and 25 injections into the UNet through 1x1 convolutions that start at zero.

    control   cat(x_t, hint) -> block 0 -> .. -> block 11 -> middle
                                  | zero conv       |         | zero conv       the same 12 states, last first, through 12 more
    base      x_t -> block 0 ----(+)-- .. ---------(+)-> mid -(+)-> (+) decoder 0 -> .. -> (+) decoder 11 -> eps

With `feedback` (ControlNet-XS type B, used by ResULIC) each encoder state of the UNet is also passed back: it goes through a zero
convolution of its full width and is concatenated to the control module's state.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from icmbench.codecs.diffusion.backbone.unet import Injector, UNet, decoder_blocks, encoder_blocks, middle_block, run_block

# Channels of an attention head. The published models use 16 although they start from a UNet whose heads have 64.
HEAD_DIM = 16


class ControlModule(nn.Module):
    """Computes what is added to the hidden states of a UNet.

    Args:
        unet: The UNet to be controlled; only its configuration and the shapes of its layers are read.
        ratio: Width relative to the UNet's.
        head_dim: Channels of an attention head; a width that is no multiple of it takes its largest divisor below it.
        feedback: Whether the UNet's encoder states are passed back to the control module.
        hint_channels: Channels of the hint.
    """

    def __init__(
        self,
        unet: UNet,
        *,
        ratio: float = 1.0,
        head_dim: int = HEAD_DIM,
        feedback: bool = False,
        hint_channels: int = 4,
    ) -> None:
        super().__init__()
        config = unet.config
        base_widths = config.block_out_channels
        widths = [int(width * ratio) for width in base_widths]

        def resnet(in_channels: int, out_channels: int) -> ResnetBlock2D:
            return _resnet(config, in_channels, out_channels)

        def attention(width: int) -> Transformer2DModel:
            return _attention(config, width, head_dim)

        self.in_channels = config.in_channels
        self.time_embed = TimestepEmbedding(base_widths[0], _time_dim(config))
        first = nn.Conv2d(self.in_channels + hint_channels, widths[0], 3, padding=1)
        self.blocks: Any = nn.ModuleList([nn.ModuleList([first])])
        # Widths after each encoder sub-block, of this module and of the UNet.
        control_states, base_states = [widths[0]], [base_widths[0]]
        for level, down in enumerate(unet.down_blocks):
            for _ in down.resnets:
                layers: list[nn.Module] = [resnet(control_states[-1] + feedback * base_states[-1], widths[level])]
                if getattr(down, "attentions", None):
                    layers.append(attention(widths[level]))
                self.blocks.append(nn.ModuleList(layers))
                control_states.append(widths[level])
                base_states.append(base_widths[level])
            if down.downsamplers:
                width = control_states[-1] + feedback * base_states[-1]
                self.blocks.append(nn.ModuleList([Downsample2D(width, use_conv=True, out_channels=widths[level], name="op")]))
                control_states.append(widths[level])
                base_states.append(base_widths[level])
        width = control_states[-1] + feedback * base_states[-1]
        self.middle: Any = nn.ModuleList([resnet(width, widths[-1]), attention(widths[-1]), resnet(widths[-1], widths[-1])])
        # Decoder sub-block 0 reads the output of the middle block, each later one the output of the one before.
        decoder_inputs = [base_widths[-1], *(layers[0].out_channels for layers in decoder_blocks(unet))]
        self.encoder_out = nn.ModuleList(map(_zero_conv, control_states, base_states))
        self.middle_out = _zero_conv(widths[-1], base_widths[-1])
        self.decoder_out = nn.ModuleList(_zero_conv(*pair) for pair in zip(reversed(control_states), decoder_inputs))
        self.encoder_in = nn.ModuleList(map(_zero_conv, base_states, base_states)) if feedback else None

    @torch.no_grad()
    def copy_base(self, unet: UNet) -> None:
        """Start from the UNet's weights, as the authors' training does.

        Where this module is narrower, a weight is cropped to its leading channels. Where its input is wider, a weight W is repeated
        along the input channels: the input convolution becomes [W, W], not [W/2, W/2].
        """
        targets = [*self.blocks, self.middle, [self.time_embed]]
        sources = [*encoder_blocks(unet), middle_block(unet), [unet.time_embedding]]
        for target_layers, source_layers in zip(targets, sources):
            for target, source in zip(target_layers, source_layers):
                weights = dict(source.named_parameters())
                for name, parameter in target.named_parameters():
                    # A wider resnet has a convolution in its shortcut, which the UNet lacks; it keeps its random start.
                    if name in weights:
                        parameter.copy_(_crop_or_repeat(weights[name], parameter.shape))

    def prepare(self, hint: Tensor) -> Tensor:
        """Compute the hint's part of the first convolution, which is the same at every step.

        Args:
            hint: The hint (N, hint_channels, H, W).

        Returns:
            Features (N, C, H, W) in the dtype of this module.
        """
        conv = self.blocks[0][0]
        return F.conv2d(hint.to(conv.weight.dtype), conv.weight[:, self.in_channels :], conv.bias, padding=1)

    def make_injector(self, x: Tensor, sinusoids: Tensor, context: Tensor, prepared: Tensor) -> Injector:
        """Make the injector of one evaluation of the UNet.

        Args:
            x: Noisy latent (N, 4, H, W), in the dtype of the UNet, as the UNet gets it.
            sinusoids: Sinusoids (N, C) of the times, from `unet.embed_time`.
            context: Text embedding (N, T, D), as the UNet gets it.
            prepared: The features that `prepare` returned for the hint.
        """
        return _ControlInjector(self, x, self.time_embed(sinusoids.to(x.dtype)), context, prepared)


class _ControlInjector:
    """One evaluation of the control module, which advances by one sub-block with each call."""

    def __init__(self, control: ControlModule, x: Tensor, emb: Tensor, context: Tensor, prepared: Tensor) -> None:
        self._control, self._emb, self._context = control, emb, context
        conv = control.blocks[0][0]
        self._h = F.conv2d(x, conv.weight[:, : control.in_channels], None, padding=1) + prepared
        self._states: list[Tensor] = []

    def encoder(self, index: int, h: Tensor) -> Tensor:
        control = self._control
        if index:
            self._h = run_block(control.blocks[index], self._h, self._emb, self._context)
        self._states.append(self._h)
        h = h + control.encoder_out[index](self._h)
        if control.encoder_in is not None:
            self._h = torch.cat([self._h, control.encoder_in[index](h)], dim=1)
        return h

    def middle(self, h: Tensor) -> Tensor:
        self._h = run_block(self._control.middle, self._h, self._emb, self._context)
        return h + self._control.middle_out(self._h)

    def decoder(self, index: int, h: Tensor) -> Tensor:
        return h + self._control.decoder_out[index](self._states.pop())


def _time_dim(config: Any) -> int:
    return 4 * config.block_out_channels[0]


def _resnet(config: Any, in_channels: int, out_channels: int) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels=in_channels,
        out_channels=out_channels,
        temb_channels=_time_dim(config),
        groups=_largest_divisor(in_channels, config.norm_num_groups),
        groups_out=_largest_divisor(out_channels, config.norm_num_groups),
        eps=1e-5,
    )


def _attention(config: Any, width: int, head_dim: int) -> Transformer2DModel:
    head = _largest_divisor(width, head_dim)
    return Transformer2DModel(
        width // head,
        head,
        in_channels=width,
        norm_num_groups=_largest_divisor(width, config.norm_num_groups),
        cross_attention_dim=config.cross_attention_dim,
        use_linear_projection=True,
    )


def _zero_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def _crop_or_repeat(weight: Tensor, shape: torch.Size) -> Tensor:
    axis = min(1, weight.ndim - 1)
    while weight.shape[axis] < shape[axis]:
        weight = torch.cat([weight, weight], dim=axis)
    return weight[tuple(slice(size) for size in shape)]
