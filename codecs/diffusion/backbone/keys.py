"""Names in published checkpoints and names here.

The Stable Diffusion code and everything built on it (Diff-ICMH, ResULIC) store one flat dictionary:

    model.diffusion_model.*      the UNet             -> diffusers UNet2DConditionModel
    first_stage_model.*          the VAE              -> diffusers AutoencoderKL
    cond_stage_model.model.*     OpenCLIP's text part -> transformers CLIPTextModel
    control_model.*              the control module   -> control.ControlModule
    preprocess_model.*           the latent codec     -> latent.Lfgcm

A part's table is a list of (pattern, replacement), the first full match counts; replacement None names what is not needed.
The UNet tables hold for two resnets a level, which is all Stable Diffusion has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from torch import Tensor

Place: TypeAlias = Callable[[re.Match[str]], str]
Replacement: TypeAlias = str | Place | None
Table: TypeAlias = list[tuple[str, Replacement]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.model."
CONTROL = "control_model."
LATENT = "preprocess_model."

# Known contents of such checkpoints that no part needs: the noise schedule, averaged weights, the tagger, loss bookkeeping.
IGNORED = re.compile(
    r"betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_alphas_cumprod|posterior_.*|lvlb_weights|logvar|scale_factor"
    r"|model_ema\..*|preprocess_tag_model\..*|preprocess_semantic_model\..*|first_stage_model\.loss\..*"
)

# A residual block's layers: first as the UNet names them there, then as the VAE does.
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


def _at(template: str) -> Place:
    return lambda match: match.expand(template)


def _resnet(place: Place) -> Place:
    """A layer of the residual block at `place`; the pattern ends in _RESNET_LAYER."""
    return lambda match: f"{place(match)}.{_RESNET[match.groups()[-2]]}.{match.groups()[-1]}"


def _attention(place: Place) -> Place:
    """A layer of the transformer at `place`; the pattern ends in _ATTENTION_LAYER."""
    return lambda match: f"{place(match)}.{match.groups()[-1]}"


def _numbered(kind: str, side: str, first: int) -> Place:
    """Sub-blocks there are numbered through, three a level, beginning with `first`; here they are counted within their level."""

    def place(match: re.Match[str]) -> str:
        level, layer = divmod(int(match[1]) - first, 3)
        return f"{side}.{level}.{kind}.{layer}"

    return place


UNET_TABLE: Table = [
    (r"time_embed\.0\.(\w+)", r"time_embedding.linear_1.\1"),
    (r"time_embed\.2\.(\w+)", r"time_embedding.linear_2.\1"),
    (r"input_blocks\.0\.0\.(\w+)", r"conv_in.\1"),
    (r"input_blocks\.(\d+)\.0" + _RESNET_LAYER, _resnet(_numbered("resnets", "down_blocks", 1))),
    (r"input_blocks\.(\d+)\.1" + _ATTENTION_LAYER, _attention(_numbered("attentions", "down_blocks", 1))),
    (r"input_blocks\.(\d+)\.0\.op\.(\w+)", lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.downsamplers.0.conv.{m[2]}"),
    (r"middle_block\.0" + _RESNET_LAYER, _resnet(_at("mid_block.resnets.0"))),
    (r"middle_block\.1" + _ATTENTION_LAYER, r"mid_block.attentions.0.\1"),
    (r"middle_block\.2" + _RESNET_LAYER, _resnet(_at("mid_block.resnets.1"))),
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
    (r"control_model\.input_blocks\.(\d+)\.0" + _RESNET_LAYER, _resnet(_at(r"blocks.\1.0"))),
    (r"control_model\.input_blocks\.(\d+)\.1" + _ATTENTION_LAYER, r"blocks.\1.1.\2"),
    (r"control_model\.input_blocks\.(\d+)\.0\.op\.(\w+)", r"blocks.\1.0.conv.\2"),
    (r"control_model\.middle_block\.([02])" + _RESNET_LAYER, _resnet(_at(r"middle.\1"))),
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
    (r"encoder\.down\.(\d+)\.block\.(\d+)" + _RESNET_LAYER, _resnet(_at(r"encoder.down_blocks.\1.resnets.\2"))),
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
    (r"transformer\.resblocks\.23\..+", None),  # the context is the last layer but one
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
    # Tables and bounds: constants, or made from the parameters above.
    (r"(entropy_bottleneck|gaussian_conditional)\.(_offset|_quantized_cdf|_cdf_length|target|.*bound)", None),
    (r"gaussian_conditional\.scale_table", None),
]


def rename(state: Mapping[str, Tensor], prefix: str, table: Table) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors below `prefix` under their names here, and the keys that no line of the table knows."""
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


def unet(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    return rename(state, UNET, UNET_TABLE)


def vae(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    renamed, unknown = rename(state, VAE, VAE_TABLE)
    attention = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")  # 1x1 convolutions there, linear layers here
    return {key: t.flatten(1) if key.endswith(attention) else t for key, t in renamed.items()}, unknown


def text(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    renamed, unknown = rename(state, TEXT, TEXT_TABLE)
    split: dict[str, Tensor] = {}
    for key, tensor in renamed.items():
        if "{}" in key:  # query, key and value in one matrix there
            split |= {key.format(name): part for name, part in zip("qkv", tensor.chunk(3))}
        else:
            split[key] = tensor
    return split, unknown


def control(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The control module. The strength of each injection, a list of 25 there, is multiplied into its convolution here."""
    state = dict(state)
    scales = state.pop(CONTROL + "scale_list", None)
    renamed, unknown = rename(state, CONTROL, CONTROL_TABLE)
    if scales is not None and not bool((scales == 1).all()):
        convs = [*(f"encoder_out.{i}" for i in range(12)), "middle_out", *(f"decoder_out.{i}" for i in range(12))]
        for conv, scale in zip(convs, scales.tolist()):
            for kind in ("weight", "bias"):
                renamed[f"{conv}.{kind}"] = renamed[f"{conv}.{kind}"] * scale
    return renamed, unknown


def latent(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    return rename(state, LATENT, LATENT_TABLE)


def foreign(state: Iterable[str]) -> list[str]:
    """Keys that belong to none of the parts and are not known to be dispensable."""
    return [key for key in state if not key.startswith((UNET, VAE, TEXT, CONTROL, LATENT)) and not IGNORED.fullmatch(key)]


PARTS = {"unet": unet, "vae": vae, "text": text, "control": control, "latent": latent}
