"""The control module of Diff-ICMH and ResULIC: an encoder beside the UNet's that adds the hint to all that passes there.

It is of the ControlNet-XS lineage (specification, section 3): encoder and middle only, its own time embedding, no hint network
(the hint is concatenated with x_t at the input), 25 injections through 1x1 convolutions that start at zero.

    control   cat(x_t, hint) -> block 0 -> .. -> block 11 -> middle
                                  | zero conv       |         | zero conv       the same 12 states, last first, through 12 more
    base      x_t -> block 0 ----(+)-- .. ---------(+)-> mid -(+)-> (+) decoder 0 -> .. -> (+) decoder 11 -> eps

With `feedback` (ControlNet-XS type B, ResULIC) each state of the base also returns, through a zero convolution of the base's full
width, concatenated to the control's state.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from icmbench.codecs.diffusion.backbone import unet as walk

HEAD_DIM = 16  # the published models keep it even where weights are copied from a base with heads of 64


class ControlModule(nn.Module):
    """Control of a diffusers UNet.

    ratio: width relative to the base. head_dim: channels of an attention head (the largest divisor of the width up to it).
    feedback: whether the base's states return to the control. hint_channels: channels of the hint.
    """

    def __init__(
        self,
        unet: walk.UNet,
        *,
        ratio: float = 1.0,
        head_dim: int = HEAD_DIM,
        feedback: bool = False,
        hint_channels: int = 4,
    ) -> None:
        super().__init__()
        config = unet.config
        base = config.block_out_channels
        widths = [int(width * ratio) for width in base]
        time_dim = 4 * base[0]
        groups = config.norm_num_groups

        def resnet(inside: int, outside: int) -> ResnetBlock2D:
            return ResnetBlock2D(
                in_channels=inside,
                out_channels=outside,
                temb_channels=time_dim,
                groups=_divisor(inside, groups),
                groups_out=_divisor(outside, groups),
                eps=1e-5,
            )

        def attention(width: int) -> Transformer2DModel:
            head = _divisor(width, head_dim)
            return Transformer2DModel(
                width // head,
                head,
                in_channels=width,
                norm_num_groups=_divisor(width, groups),
                cross_attention_dim=config.cross_attention_dim,
                use_linear_projection=True,
            )

        self.in_channels = config.in_channels
        self.time_embed = TimestepEmbedding(base[0], time_dim)
        first = nn.Conv2d(self.in_channels + hint_channels, widths[0], 3, padding=1)
        self.blocks: Any = nn.ModuleList([nn.ModuleList([first])])
        states, returned = [widths[0]], [base[0]]  # widths after each sub-block: the control's, the base's
        for level, down in enumerate(unet.down_blocks):
            for _ in down.resnets:
                layers: list[nn.Module] = [resnet(states[-1] + feedback * returned[-1], widths[level])]
                if getattr(down, "attentions", None):
                    layers.append(attention(widths[level]))
                self.blocks.append(nn.ModuleList(layers))
                states.append(widths[level])
                returned.append(base[level])
            if down.downsamplers:
                inside = states[-1] + feedback * returned[-1]
                self.blocks.append(nn.ModuleList([Downsample2D(inside, use_conv=True, out_channels=widths[level], name="op")]))
                states.append(widths[level])
                returned.append(base[level])
        inside = states[-1] + feedback * returned[-1]
        self.middle: Any = nn.ModuleList([resnet(inside, widths[-1]), attention(widths[-1]), resnet(widths[-1], widths[-1])])
        # What reaches decoder sub-block i is the middle's output, then the output of decoder sub-block i - 1.
        reached = [base[-1], *(layers[0].out_channels for layers in walk.decoder_blocks(unet))]
        self.encoder_out = nn.ModuleList(_zero_conv(inside, outside) for inside, outside in zip(states, returned))
        self.middle_out = _zero_conv(widths[-1], base[-1])
        self.decoder_out = nn.ModuleList(_zero_conv(inside, outside) for inside, outside in zip(reversed(states), reached))
        self.encoder_in = nn.ModuleList(_zero_conv(width, width) for width in returned) if feedback else None

    @torch.no_grad()
    def copy_base(self, unet: walk.UNet) -> None:
        """Start from the base's weights, as the authors' training does: cropped to the leading channels where this module is
        narrower, repeated along the input channels where it is wider (so the input convolution sees [W, W], not halved)."""
        ours = [*self.blocks, self.middle, [self.time_embed]]
        theirs = [*walk.encoder_blocks(unet), walk.middle_block(unet), [unet.time_embedding]]
        for target, source in zip(ours, theirs):
            for mine, base in zip(target, source):
                weights = dict(base.named_parameters())
                for name, parameter in mine.named_parameters():
                    # A wider input makes a resnet's shortcut a convolution that the base lacks: it keeps its own start.
                    if name in weights:
                        parameter.copy_(_fit(weights[name], parameter.shape))

    def prepare(self, hint: Tensor) -> Tensor:
        """hint (N, hint_channels, H, W) -> its share of the first convolution (N, C, H, W), the same at every step."""
        conv = self.blocks[0][0]
        return F.conv2d(hint.to(conv.weight.dtype), conv.weight[:, self.in_channels :], conv.bias, padding=1)

    def start(self, x: Tensor, sinusoids: Tensor, context: Tensor, prepared: Tensor) -> walk.Injector:
        """The injector of one evaluation. x (N, 4, H, W) and context (N, T, D) as the base gets them; sinusoids as from
        `unet.embed_time`; prepared as from `prepare`."""
        return _Walk(self, x, self.time_embed(sinusoids.to(x.dtype)), context, prepared)


class _Walk:
    """One evaluation: the control's state, moved on by one sub-block at every call."""

    def __init__(self, control: ControlModule, x: Tensor, emb: Tensor, context: Tensor, prepared: Tensor) -> None:
        self._control, self._emb, self._context = control, emb, context
        conv = control.blocks[0][0]
        self._h = F.conv2d(x, conv.weight[:, : control.in_channels], None, padding=1) + prepared
        self._states: list[Tensor] = []

    def encoder(self, index: int, h: Tensor) -> Tensor:
        control = self._control
        if index:
            self._h = walk.run_block(control.blocks[index], self._h, self._emb, self._context)
        self._states.append(self._h)
        h = h + control.encoder_out[index](self._h)
        if control.encoder_in is not None:
            self._h = torch.cat([self._h, control.encoder_in[index](h)], dim=1)
        return h

    def middle(self, h: Tensor) -> Tensor:
        self._h = walk.run_block(self._control.middle, self._h, self._emb, self._context)
        return h + self._control.middle_out(self._h)

    def decoder(self, index: int, h: Tensor) -> Tensor:
        return h + self._control.decoder_out[index](self._states.pop())


def _zero_conv(inside: int, outside: int) -> nn.Conv2d:
    conv = nn.Conv2d(inside, outside, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` up to `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def _fit(weight: Tensor, shape: torch.Size) -> Tensor:
    axis = min(1, weight.ndim - 1)
    while weight.shape[axis] < shape[axis]:
        weight = torch.cat([weight, weight], dim=axis)
    return weight[tuple(slice(size) for size in shape)]
