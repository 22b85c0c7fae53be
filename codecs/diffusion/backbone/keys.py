"""Translate the tensor names of published checkpoints to this project's.

The Stable Diffusion code and the codecs built on it (Diff-ICMH, ResULIC) store one flat dictionary:

    model.diffusion_model.*      the UNet                  -> diffusers UNet2DConditionModel
    first_stage_model.*          the VAE                   -> diffusers AutoencoderKL
    cond_stage_model.model.*     OpenCLIP's text encoder   -> transformers CLIPTextModel
    control_model.*              the control module        -> backbone.control.ControlModule
    preprocess_model.*           the latent compressor     -> latents.lfgcm.Lfgcm

Each of these parts has a table of (pattern, replacement); the first pattern that matches a whole name counts, and the replacement
None drops the tensor. The UNet's tables assume two resnets per level, as in Stable Diffusion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from torch import Tensor

Renamer: TypeAlias = Callable[[re.Match[str]], str]
Replacement: TypeAlias = str | Renamer | None
Table: TypeAlias = list[tuple[str, Replacement]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.model."
CONTROL = "control_model."
LATENT = "preprocess_model."

# Known contents of such checkpoints that no part needs: the noise schedule, averaged weights, the tagger, state of the losses.
IGNORED = re.compile(
    r"betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_alphas_cumprod|posterior_.*|lvlb_weights|logvar|scale_factor"
    r"|model_ema\..*|preprocess_tag_model\..*|preprocess_semantic_model\..*|first_stage_model\.loss\..*"
)

# Layers of a residual block: first the names in the published UNet, then those in the published VAE.
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_RESNET_LAYER = r"\.(" + "|".join(re.escape(name) for name in _RESNET) + r")\.(\w+)"
_ATTENTION_LAYER = r"\.((?:norm|proj_in|proj_out|transformer_blocks)\..+)"


def _expand(template: str) -> Renamer:
    """Expands a template that refers to the groups of the match, as re.Match.expand does."""
    return lambda match: match.expand(template)


def _resnet(block: Renamer) -> Renamer:
    """Names a layer of the residual block that `block` names; the pattern ends in _RESNET_LAYER."""
    return lambda match: f"{block(match)}.{_RESNET[match.groups()[-2]]}.{match.groups()[-1]}"


def _attention(block: Renamer) -> Renamer:
    """Names a layer of the transformer that `block` names; the pattern ends in _ATTENTION_LAYER."""
    return lambda match: f"{block(match)}.{match.groups()[-1]}"


def _numbered(layer_list: str, side: str, first: int) -> Renamer:
    """Names a sub-block, such as down_blocks.1.resnets.0.

    Published sub-blocks are numbered consecutively, three per level, and level 0 begins with number `first`; diffusers numbers them
    within their level.
    """

    def rename_block(match: re.Match[str]) -> str:
        level, layer = divmod(int(match[1]) - first, 3)
        return f"{side}.{level}.{layer_list}.{layer}"

    return rename_block


UNET_TABLE: Table = [
    (r"time_embed\.0\.(\w+)", r"time_embedding.linear_1.\1"),
    (r"time_embed\.2\.(\w+)", r"time_embedding.linear_2.\1"),
    (r"input_blocks\.0\.0\.(\w+)", r"conv_in.\1"),
    (r"input_blocks\.(\d+)\.0" + _RESNET_LAYER, _resnet(_numbered("resnets", "down_blocks", 1))),
    (r"input_blocks\.(\d+)\.1" + _ATTENTION_LAYER, _attention(_numbered("attentions", "down_blocks", 1))),
    (r"input_blocks\.(\d+)\.0\.op\.(\w+)", lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.downsamplers.0.conv.{m[2]}"),
    (r"middle_block\.0" + _RESNET_LAYER, _resnet(_expand("mid_block.resnets.0"))),
    (r"middle_block\.1" + _ATTENTION_LAYER, r"mid_block.attentions.0.\1"),
    (r"middle_block\.2" + _RESNET_LAYER, _resnet(_expand("mid_block.resnets.1"))),
    (r"output_blocks\.(\d+)\.0" + _RESNET_LAYER, _resnet(_numbered("resnets", "up_blocks", 0))),
    (r"output_blocks\.(\d+)\.1" + _ATTENTION_LAYER, _attention(_numbered("attentions", "up_blocks", 0))),
    (r"output_blocks\.(\d+)\.[12]\.conv\.(\w+)", lambda m: f"up_blocks.{int(m[1]) // 3}.upsamplers.0.conv.{m[2]}"),
    (r"out\.0\.(\w+)", r"conv_norm_out.\1"),
    (r"out\.2\.(\w+)", r"conv_out.\1"),
]

CONTROL_TABLE: Table = [
    (r"control_model\.time_embed\.0\.(\w+)", r"time_embed.linear_1.\1"),
    (r"control_model\.time_embed\.2\.(\w+)", r"time_embed.linear_2.\1"),
    (r"control_model\.input_blocks\.0\.0\.(weight|bias)", r"blocks.0.0.\1"),
    (r"control_model\.input_blocks\.(\d+)\.0" + _RESNET_LAYER, _resnet(_expand(r"blocks.\1.0"))),
    (r"control_model\.input_blocks\.(\d+)\.1" + _ATTENTION_LAYER, r"blocks.\1.1.\2"),
    (r"control_model\.input_blocks\.(\d+)\.0\.op\.(\w+)", r"blocks.\1.0.conv.\2"),
    (r"control_model\.middle_block\.([02])" + _RESNET_LAYER, _resnet(_expand(r"middle.\1"))),
    (r"control_model\.middle_block\.1" + _ATTENTION_LAYER, r"middle.1.\1"),
    (r"enc_zero_convs_out\.(\d+)\.0\.(\w+)", r"encoder_out.\1.\2"),
    (r"enc_zero_convs_in\.(\d+)\.0\.(\w+)", r"encoder_in.\1.\2"),
    (r"dec_zero_convs_out\.(\d+)\.0\.(\w+)", r"decoder_out.\1.\2"),
    (r"middle_block_out\.0\.(\w+)", r"middle_out.\1"),
]

_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

VAE_TABLE: Table = [
    (r"(quant_conv|post_quant_conv|(?:en|de)coder\.conv_(?:in|out))\.(\w+)", r"\1.\2"),
    (r"(encoder|decoder)\.norm_out\.(\w+)", r"\1.conv_norm_out.\2"),
    (r"(encoder|decoder)\.mid\.block_([12])" + _RESNET_LAYER, _resnet(lambda m: f"{m[1]}.mid_block.resnets.{int(m[2]) - 1}")),
    (
        r"(encoder|decoder)\.mid\.attn_1\.(norm|q|k|v|proj_out)\.(\w+)",
        lambda m: f"{m[1]}.mid_block.attentions.0.{_VAE_ATTENTION[m[2]]}.{m[3]}",
    ),
    (r"encoder\.down\.(\d+)\.block\.(\d+)" + _RESNET_LAYER, _resnet(_expand(r"encoder.down_blocks.\1.resnets.\2"))),
    (r"encoder\.down\.(\d+)\.downsample\.conv\.(\w+)", r"encoder.down_blocks.\1.downsamplers.0.conv.\2"),
    (r"decoder\.up\.(\d+)\.block\.(\d+)" + _RESNET_LAYER, _resnet(lambda m: f"decoder.up_blocks.{3 - int(m[1])}.resnets.{m[2]}")),
    (r"decoder\.up\.(\d+)\.upsample\.conv\.(\w+)", lambda m: f"decoder.up_blocks.{3 - int(m[1])}.upsamplers.0.conv.{m[2]}"),
]

_TEXT_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

TEXT_TABLE: Table = [
    (r"transformer\.resblocks\.23\..+", None),  # The context is the output of the second to last layer.
    (r"text_projection|logit_scale|attn_mask", None),
    (r"positional_embedding", "embeddings.position_embedding.weight"),
    (r"token_embedding\.weight", "embeddings.token_embedding.weight"),
    (r"ln_final\.(\w+)", r"final_layer_norm.\1"),
    (
        r"transformer\.resblocks\.(\d+)\.(ln_1|ln_2|attn\.out_proj|mlp\.c_fc|mlp\.c_proj)\.(\w+)",
        lambda m: f"encoder.layers.{m[1]}.{_TEXT_LAYER[m[2]]}.{m[3]}",
    ),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", r"encoder.layers.\1.self_attn.{}_proj.\2"),
]


_ENTROPY = {"matri": "matrices", "bias": "biases", "factor": "factors"}

LATENT_TABLE: Table = [
    (r"(encoder|hyper_enc|decoder|f_c)\.(.+)", r"\1.\2"),
    (r"hyper_dec\.hyper_dec\.(\d\.\w+)", r"hyper_dec.\1"),
    (r"local_context\.(\d+\.\w+)", r"context.spatial_context.\1"),
    (r"channel_context\.(\d+)\.fushion\.(\d\.\w+)", r"context.channel_context.\1.\2"),
    (r"entropy_parameters_(anchor|nonanchor)\.(\d+)\.fusion\.(\d\.\w+)", r"context.parameters_\1.\2.\3"),
    (r"entropy_bottleneck\.(quantiles|(?:matrices|biases|factors)\.\d)", r"entropy_bottleneck.\1"),
    (r"entropy_bottleneck\._(matri|bias|factor)x?(\d)", lambda m: f"entropy_bottleneck.{_ENTROPY[m[1]]}.{m[2]}"),
    # Frequency tables and bounds are constants or are made from the parameters above.
    (r"(entropy_bottleneck|gaussian_conditional)\.(_offset|_quantized_cdf|_cdf_length|target|.*bound)", None),
    (r"gaussian_conditional\.scale_table", None),
]


def rename(state: Mapping[str, Tensor], prefix: str, table: Table) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors whose keys begin with a prefix.

    Args:
        state: All tensors of a checkpoint.
        prefix: The prefix, which the patterns of the table leave out.
        table: Patterns and replacements.

    Returns:
        The renamed tensors, and the keys with this prefix that no pattern matches.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        if not key.startswith(prefix) or IGNORED.fullmatch(key):
            continue
        for pattern, replacement in table:
            if match := re.fullmatch(pattern, key[len(prefix) :]):
                if replacement is not None:
                    renamed[match.expand(replacement) if isinstance(replacement, str) else replacement(match)] = tensor
                break
        else:
            unknown.append(key)
    return renamed, unknown


def rename_unet(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors of the UNet; see `rename`."""
    return rename(state, UNET, UNET_TABLE)


def rename_vae(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors of the VAE; see `rename`. Its attention has 1x1 convolutions, that of diffusers linear layers."""
    renamed, unknown = rename(state, VAE, VAE_TABLE)
    attention = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    return {key: t.flatten(1) if key.endswith(attention) else t for key, t in renamed.items()}, unknown


def rename_text(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors of the text encoder; see `rename`. It has query, key and value in one matrix, transformers in three."""
    renamed, unknown = rename(state, TEXT, TEXT_TABLE)
    split: dict[str, Tensor] = {}
    for key, tensor in renamed.items():
        if "{}" in key:
            split |= {key.format(name): part for name, part in zip("qkv", tensor.chunk(3))}
        else:
            split[key] = tensor
    return split, unknown


def rename_control(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors of the control module; see `rename`.

    A published checkpoint has a list of 25 injection strengths; each is multiplied into the convolution of its injection.
    """
    state = dict(state)
    scales = state.pop(CONTROL + "scale_list", None)
    renamed, unknown = rename(state, CONTROL, CONTROL_TABLE)
    if scales is not None and not bool((scales == 1).all()):
        convs = [*(f"encoder_out.{i}" for i in range(12)), "middle_out", *(f"decoder_out.{i}" for i in range(12))]
        for conv, scale in zip(convs, scales.tolist()):
            for parameter in ("weight", "bias"):
                renamed[f"{conv}.{parameter}"] = renamed[f"{conv}.{parameter}"] * scale
    return renamed, unknown


def rename_latent(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors of the latent compressor LFGCM; see `rename`."""
    return rename(state, LATENT, LATENT_TABLE)


def foreign_keys(state: Iterable[str]) -> list[str]:
    """Return the keys that belong to none of the five parts and are not in IGNORED."""
    return [key for key in state if not key.startswith((UNET, VAE, TEXT, CONTROL, LATENT)) and not IGNORED.fullmatch(key)]


# The function that finds and renames the tensors of each part.
PARTS = {"unet": rename_unet, "vae": rename_vae, "text": rename_text, "control": rename_control, "latent": rename_latent}
