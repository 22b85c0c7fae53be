"""Stable Diffusion as four functions: pixels to latent, latent to pixels, text to context, noise prediction.

    backbone.encode(pixels) -> z        backbone.embed(prompts) -> context        backbone.abar
    backbone.decode(z) -> pixels        backbone.eps(x, t, context, inject) -> eps

Profile `sd21` is Stable Diffusion 2.1-base (UNet 865.9M parameters, VAE 83.7M, text encoder 340.4M); `tiny` has the same topology
at 3.1M, for laptops and tests.
"""

from __future__ import annotations

import copy
import functools
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone import unet, weights
from icmbench.codecs.diffusion.backbone.files import SD_CHECKPOINT, SD_FOLDERS
from icmbench.codecs.diffusion.backbone.tiles import Tiles

DOWNSCALE = 8  # pixels along a side of a latent position
TOKENS = 77
Prompt: TypeAlias = str | tuple[int, ...]  # words, or their token ids without beginning and end


@dataclass(frozen=True)
class Profile:
    """Constructor arguments of the three networks, and how text becomes tokens."""

    name: str
    vae: Mapping[str, Any]
    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    scaling: float = 0.18215  # makes latents unit-variance


_UNET = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "use_linear_projection": True}
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}

# `attention_head_dim` of diffusers' UNet is the number of heads of each level.
PROFILES = {
    "sd21": Profile(
        "sd21",
        vae=_VAE | {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512},
        unet=_UNET
        | {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)},
        text={
            "vocab_size": 49408,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,  # of 24: the context is the last layer but one, normalised
            "num_attention_heads": 16,
            "hidden_act": "gelu",
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
    ),
    "tiny": Profile(
        "tiny",
        # Groups of 8 channels and more: normalised in groups of 2, a plain area keeps but a sign a group, no colour.
        vae=_VAE | {"block_out_channels": (16, 24, 32, 32), "layers_per_block": 1, "norm_num_groups": 2},
        unet=_UNET
        | {
            "block_out_channels": (32, 48, 64, 64),
            "cross_attention_dim": 32,
            "attention_head_dim": 1,
            "norm_num_groups": 8,
        },
        text={
            "vocab_size": 1024,
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_act": "gelu",
            "bos_token_id": 1022,
            "eos_token_id": 1023,
        },
    ),
}


class DiffusionBackbone(nn.Module):
    """The three networks of one profile, with random weights from the current generator; `load` gives trained ones.

    Attributes: `vae`, `unet`, `text`; `abar` (1000,) float64, the cumulative product of 1 - beta (scaled-linear, 0.00085 to 0.012).
    """

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        self.profile = profile
        self.vae: Any = AutoencoderKL(**profile.vae, scaling_factor=profile.scaling)
        self.unet: Any = UNet2DConditionModel(**profile.unet)
        self.text: Any = CLIPTextModel(CLIPTextConfig(**profile.text, max_position_embeddings=TOKENS, pad_token_id=0))
        self.abar = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64, device="cpu") ** 2).cumprod(0)

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def with_unet(self, unet: Any) -> DiffusionBackbone:
        """The same backbone with another UNet, everything else shared."""
        other = copy.copy(self)
        other._modules = {**self._modules, "unet": unet}
        return other

    def encode(self, pixels: Tensor, tile: int = 0, overlap: int = 0) -> Tensor:
        """pixels (N, 3, 8H, 8W) float32 in [0, 1] -> the posterior's mode, scaled: (N, 4, H, W) float32.

        tile, overlap: latents with a side beyond `tile` are made in tiles, 0 for never.
        """
        tiles = Tiles(pixels.shape[-2] // DOWNSCALE, pixels.shape[-1] // DOWNSCALE, tile, overlap)
        parts = [(2 * part - 1).to(self.device, self.dtype) for part in tiles.cut(pixels, DOWNSCALE)]
        return tiles.paste([self.vae.encode(part).latent_dist.mode().float() for part in parts]) * self.profile.scaling

    def decode(self, z: Tensor, tile: int = 0, overlap: int = 0) -> Tensor:
        """z (N, 4, H, W) -> pixels (N, 3, 8H, 8W) float32 in [0, 1]. tile, overlap: as for encode."""
        tiles = Tiles(z.shape[-2], z.shape[-1], tile, overlap)
        parts = [(part / self.profile.scaling).to(self.device, self.dtype) for part in tiles.cut(z)]
        pixels = tiles.paste([self.vae.decode(part).sample.float() for part in parts], DOWNSCALE)
        return ((pixels + 1) / 2).clamp(0, 1)

    def embed(self, prompts: Sequence[Prompt] | Tensor) -> Tensor:
        """N prompts, or their token ids (N, 77) int64 -> context (N, 77, D) in the backbone's dtype. Longer prompts are cut."""
        ids = prompts if isinstance(prompts, Tensor) else self.tokenize(prompts)
        return self.text(input_ids=ids.to(self.device)).last_hidden_state

    def tokenize(self, prompts: Sequence[Prompt]) -> Tensor:
        """Token ids (N, 77) int64: beginning, text cut to what fits, end, zeros."""
        first, last = self.profile.text["bos_token_id"], self.profile.text["eos_token_id"]
        ids = torch.zeros(len(prompts), TOKENS, dtype=torch.int64)
        for row, prompt in zip(ids, prompts):
            tokens = [first, *self.split(prompt)[: TOKENS - 2], last]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids

    def split(self, prompt: Prompt) -> Sequence[int]:
        """A prompt as ids of this text encoder's tokens: CLIP's, or the few of the tiny profile that stand for them."""
        return _clip_tokens(prompt) if self.profile.name == "sd21" else _hashed_tokens(prompt, self.profile.text["bos_token_id"])

    def eps(self, x: Tensor, t: Tensor, context: Tensor, inject: unet.Injector | None = None) -> Tensor:
        """x (N, 4, H, W) at times t (N,) with context (N, 77, D) -> the predicted noise (N, 4, H, W), in the backbone's dtype."""
        emb = self.unet.time_embedding(unet.embed_time(self.unet, t).to(self.dtype))
        return unet.predict(self.unet, x.to(self.dtype), emb, context, inject)

    def mid_features(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The middle block's output (N, C, H/8, W/8) of the UNet alone: what Diff-ICMH's semantic consistency compares."""
        emb = self.unet.time_embedding(unet.embed_time(self.unet, t).to(self.dtype))
        return unet.encode(self.unet, x.to(self.dtype), emb, context)[0]


def _clip_tokens(prompt: Prompt) -> Sequence[int]:
    return clip_tokenizer().encode(prompt) if isinstance(prompt, str) else prompt


@functools.cache
def clip_tokenizer() -> Any:
    """Text to CLIP's token ids, without those of beginning and end, and back: `encode`, `decode`."""
    from open_clip.tokenizer import SimpleTokenizer  # holds the vocabulary, so that no file is needed

    return SimpleTokenizer()


def _hashed_tokens(prompt: Prompt, size: int) -> list[int]:
    """Words, or CLIP's ids, as tokens 1 to size - 1 by their checksum: the tiny profile only needs words to differ."""
    words = prompt.lower().replace(",", " ,").split() if isinstance(prompt, str) else map(str, prompt)
    return [1 + zlib.crc32(word.encode()) % (size - 1) for word in words]


@functools.lru_cache(maxsize=1)  # the rate points of a codec share it; another configuration takes its place
def load(profile: str, source: Path | None, dtype: torch.dtype, device: str, seed: int = 0) -> DiffusionBackbone:
    """The frozen backbone of a profile, in evaluation mode.

    source: a folder in diffusers layout, or a file: a checkpoint of the original code, or this project's. None: random weights from
    `seed`. Raises CodecError where it cannot be read or does not fit.
    """
    if source is None:
        backbone = random(profile, seed)
    else:
        with init_empty_weights():
            backbone = DiffusionBackbone(PROFILES[profile])
        (_fill_from_folder if source.is_dir() else _fill_from_file)(backbone, source)
    backbone = backbone.to(torch.device(device), dtype).eval().requires_grad_(False)
    return nn.utils.convert_conv2d_weight_memory_format(backbone, torch.channels_last)


def random(profile: str, seed: int = 0) -> DiffusionBackbone:
    """A backbone with random weights that follow from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DiffusionBackbone(PROFILES[profile])


def _fill_from_file(backbone: DiffusionBackbone, path: Path) -> None:
    state = weights.read_state(path)
    if any(key.startswith("unet.") for key in state):  # written by this project: the networks' own names
        weights.fill(backbone, state, path)
        return
    for part in SD_FOLDERS:
        weights.fill_part(getattr(backbone, part), part, state, path)


def _fill_from_folder(backbone: DiffusionBackbone, source: Path) -> None:
    config = source / "scheduler" / "scheduler_config.json"
    if config.is_file() and json.loads(config.read_text()).get("prediction_type", "epsilon") != "epsilon":
        raise CodecError(f"{source} predicts velocity, not noise: name Stable Diffusion 2.1-base (512 pixels), not the 768 model")
    for part, folder in SD_FOLDERS.items():
        own = getattr(backbone, part)
        try:
            loaded = type(own).from_pretrained(source / folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CodecError(
                f"{source / folder} cannot be read ({reason}): name {SD_CHECKPOINT} or a folder with unet/, vae/ and text_encoder/ "
                "in diffusers layout"
            ) from error
        weights.fill(own, loaded.state_dict(), source / folder)
