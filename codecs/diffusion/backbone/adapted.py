"""A rate point's own UNet over a shared one: a wider input, and low-rank or whole layers of its own.

    base.unet --adapted--> UNet with conv_in of C channels, every other parameter shared
    file      --fill-----> parameters of its own where the file has them; LoRA factors are merged into theirs
    training  --add_lora-> factors beside the shared layers, trained alone; `own_state` gives what belongs in the file

So points that differ from Stable Diffusion in few layers do not hold it many times.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone.unet import UNet

# The layers that StableCodec, CADC's base, adapts in the UNet, besides conv_in, which it trains whole.
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
)
_A, _B = ".lora_A.weight", ".lora_B.weight"


def adapted(unet: UNet, channels: int) -> UNet:
    """A UNet that reads (N, channels, H, W) and shares all parameters of `unet` but its input convolution's.

    That one starts as the original on the first channels and at zero on the others (a guess: StableCodec starts it at random), so
    that the copy at first predicts what the original would from the first channels.
    """
    own: Any = copy.deepcopy(unet, {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())})
    narrow = unet.conv_in
    wide = nn.Conv2d(channels, narrow.out_channels, 3, padding=1)
    if not wide.weight.is_meta and not narrow.weight.is_meta:
        with torch.no_grad():
            wide.weight.zero_()[:, : narrow.in_channels] = narrow.weight
            wide.bias.copy_(narrow.bias)  # type: ignore[union-attr]
    own.conv_in = wide.to(narrow.weight.dtype) if wide.weight.is_meta else wide.to(narrow.weight.device, narrow.weight.dtype)
    own.register_to_config(in_channels=channels)
    return own


def add_lora(unet: UNet, rank: int = 32, alpha: float = 8) -> UNet:
    """Adds trainable factors (peft) to LORA_TARGETS of an adapted UNet, and lets only them and conv_in take gradients.

    rank 32 and alpha 8, a scale of 1/4, are what StableCodec trains with. CodecError without peft.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise CodecError("LoRA needs peft: pip install 'icmbench[diffusion]'") from error
    unet.requires_grad_(False)
    scale: Any = alpha  # any number, though declared a whole one
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=scale, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS)))
    unet.conv_in.requires_grad_(True)
    return unet


def own_state(unet: UNet, base: UNet) -> dict[str, Tensor]:
    """The parameters of an adapted UNet that are not `base`'s, by the names `fill` knows, and its LoRA factors, scale included."""
    shared = {id(parameter) for parameter in base.parameters()}
    own: dict[str, Tensor] = {}
    for name, parameter in unet.named_parameters():
        if id(parameter) not in shared and "lora_" not in name:
            own[name.replace(".base_layer", "")] = parameter.detach()
    for name, layer in unet.named_modules():
        if hasattr(layer, "lora_A"):
            for adapter, factor in layer.lora_A.items():
                own[name + _A] = factor.weight.detach()
                own[name + _B] = layer.lora_B[adapter].weight.detach() * layer.scaling[adapter]
    return own


def fill(unet: UNet, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Gives an adapted UNet the parameters of a file, conv_in's at least. state: as `own_state` gives it. CodecError if they do not
    fit."""
    ours = dict(unet.named_parameters())
    layers = sorted({key.rpartition(".lora_")[0] for key in state if key.endswith((_A, _B))})
    plain = {key: value for key, value in state.items() if not key.endswith((_A, _B))}
    needed = {"conv_in.weight", "conv_in.bias", *(layer + factor for layer in layers for factor in (_A, _B))}
    lacking = sorted(needed - state.keys())
    unknown = [key for key in (*plain, *(layer + ".weight" for layer in layers)) if key not in ours]
    wrong = [key for key, value in plain.items() if key in ours and ours[key].shape != value.shape]
    if not lacking and not unknown:
        wrong += [layer for layer in layers if not _suits(state, layer, ours[layer + ".weight"])]
    if lacking or unknown or wrong:
        raise CodecError(
            f"{source} does not fit the UNet ({len(lacking)} missing, {len(unknown)} unknown, {len(wrong)} of other shapes: "
            f"{', '.join([*lacking, *unknown, *wrong][:6])}): name the file made for this profile"
        )
    dtype, device = unet.time_embedding.linear_1.weight.dtype, unet.time_embedding.linear_1.weight.device
    for layer in layers:
        key = layer + ".weight"
        weight = (plain[key] if key in plain else ours[key]).detach()
        plain[key] = weight.float() + _product(state, layer).to(weight.device).view_as(weight)
    for key, value in plain.items():
        parent, _, name = key.rpartition(".")
        setattr(unet.get_submodule(parent), name, nn.Parameter(value.to(device, dtype), requires_grad=False))


def _suits(state: Mapping[str, Tensor], layer: str, weight: Tensor) -> bool:
    a, b = state[layer + _A], state[layer + _B]
    return len(a) == b.shape[1] and (len(b), a[0].numel()) == (len(weight), weight[0].numel())


def _product(state: Mapping[str, Tensor], layer: str) -> Tensor:
    """B A of a layer's factors, (outputs, inputs times taps) float32."""
    return state[layer + _B].float().flatten(1) @ state[layer + _A].float().flatten(1)
