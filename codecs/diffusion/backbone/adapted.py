"""A UNet that differs from a shared one in few layers: a wider input, and low-rank or whole layers of its own.

    base.unet --adapt_unet----> UNet with conv_in of C channels; every other parameter is shared
    file      --fill_adapted--> the layers that the file holds are replaced; LoRA factors are merged into their layers
    training  --add_lora------> trainable factors beside the shared layers; `adapted_state` returns what belongs in the file

This way rate points that differ from Stable Diffusion in few layers do not keep a whole UNet each.
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

# The layers of the UNet that StableCodec, on which CADC builds, adapts by LoRA. It trains conv_in as a whole.
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
)
_A, _B = ".lora_A.weight", ".lora_B.weight"


def adapt_unet(unet: UNet, channels: int) -> UNet:
    """Make a UNet that shares all parameters with another one, except those of its wider input convolution.

    The new convolution starts as the original on the leading channels and at zero on the others, so that the new UNet at first
    predicts what the original predicts from the leading channels. This start is a guess; StableCodec starts at random.

    Args:
        unet: The UNet whose parameters are shared.
        channels: Input channels of the new UNet, which reads (N, channels, H, W).
    """
    wide_unet: Any = copy.deepcopy(unet, {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())})
    narrow = unet.conv_in
    wide = nn.Conv2d(channels, narrow.out_channels, 3, padding=1)
    if not wide.weight.is_meta and not narrow.weight.is_meta:
        with torch.no_grad():
            wide.weight.zero_()[:, : narrow.in_channels] = narrow.weight
            wide.bias.copy_(narrow.bias)  # type: ignore[union-attr]
    wide_unet.conv_in = wide.to(narrow.weight.dtype) if wide.weight.is_meta else wide.to(narrow.weight.device, narrow.weight.dtype)
    wide_unet.register_to_config(in_channels=channels)
    return wide_unet


def add_lora(unet: UNet, rank: int = 32, alpha: float = 8) -> UNet:
    """Add trainable LoRA factors (peft) to the LORA_TARGETS of an adapted UNet; only they and conv_in take gradients.

    Args:
        unet: A UNet from `adapt_unet`; it is changed in place.
        rank: Rank of the factors. The default is StableCodec's.
        alpha: The product of the factors is scaled by alpha / rank. The default, a scale of 1/4, is StableCodec's.

    Returns:
        The same UNet.

    Raises:
        CodecError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise CodecError("LoRA needs peft: pip install 'icmbench[diffusion]'") from error
    unet.requires_grad_(False)
    scale: Any = alpha  # peft declares an int but takes any number.
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=scale, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS)))
    unet.conv_in.requires_grad_(True)
    return unet


def adapted_state(unet: UNet, base: UNet) -> dict[str, Tensor]:
    """Return the tensors of an adapted UNet that it does not share with its base, by the keys that `fill_adapted` reads.

    Args:
        unet: A UNet from `adapt_unet`, with or without LoRA factors.
        base: The UNet that it was made from.

    Returns:
        Whole parameters by their names, and LoRA factors; the scale of a layer's factors is multiplied into the second one.
    """
    shared = {id(parameter) for parameter in base.parameters()}
    state: dict[str, Tensor] = {}
    for name, parameter in unet.named_parameters():
        if id(parameter) not in shared and "lora_" not in name:
            state[name.replace(".base_layer", "")] = parameter.detach()
    for name, layer in unet.named_modules():
        if hasattr(layer, "lora_A"):
            for adapter, factor in layer.lora_A.items():
                state[name + _A] = factor.weight.detach()
                state[name + _B] = layer.lora_B[adapter].weight.detach() * layer.scaling[adapter]
    return state


def fill_adapted(unet: UNet, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Give an adapted UNet the layers of a file, and merge the file's LoRA factors into their layers.

    Args:
        unet: A UNet from `adapt_unet`. Its parameters are replaced, not overwritten, so that the shared UNet does not change.
        state: Tensors by the keys that `adapted_state` returns; conv_in must be among them.
        source: The file, for error messages.

    Raises:
        CodecError: keys are missing or unknown, or shapes do not fit.
    """
    parameters = dict(unet.named_parameters())
    layers = sorted({key.rpartition(".lora_")[0] for key in state if key.endswith((_A, _B))})
    whole = {key: value for key, value in state.items() if not key.endswith((_A, _B))}
    required = {"conv_in.weight", "conv_in.bias", *(layer + factor for layer in layers for factor in (_A, _B))}
    missing = sorted(required - state.keys())
    unknown = [key for key in (*whole, *(layer + ".weight" for layer in layers)) if key not in parameters]
    wrong = [key for key, value in whole.items() if key in parameters and parameters[key].shape != value.shape]
    if not missing and not unknown:
        wrong += [layer for layer in layers if not _factors_fit(state, layer, parameters[layer + ".weight"])]
    if missing or unknown or wrong:
        raise CodecError(
            f"{source} does not fit the UNet ({len(missing)} missing, {len(unknown)} unknown, {len(wrong)} of other shapes: "
            f"{', '.join([*missing, *unknown, *wrong][:6])}): name the file made for this profile"
        )
    dtype, device = unet.time_embedding.linear_1.weight.dtype, unet.time_embedding.linear_1.weight.device
    for layer in layers:
        key = layer + ".weight"
        weight = (whole[key] if key in whole else parameters[key]).detach()
        whole[key] = weight.float() + _factor_product(state, layer).to(weight.device).view_as(weight)
    for key, value in whole.items():
        parent, _, name = key.rpartition(".")
        setattr(unet.get_submodule(parent), name, nn.Parameter(value.to(device, dtype), requires_grad=False))


def _factors_fit(state: Mapping[str, Tensor], layer: str, weight: Tensor) -> bool:
    a, b = state[layer + _A], state[layer + _B]
    return len(a) == b.shape[1] and (len(b), a[0].numel()) == (len(weight), weight[0].numel())


def _factor_product(state: Mapping[str, Tensor], layer: str) -> Tensor:
    """B A of a layer's factors, (outputs, inputs times kernel positions) float32."""
    return state[layer + _B].float().flatten(1) @ state[layer + _A].float().flatten(1)
