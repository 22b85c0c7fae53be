"""Stable Diffusion as four functions: pixels to latent, latent to pixels, text to context, and noise prediction.

    backbone.encode(pixels) -> z        backbone.embed(prompts) -> context        backbone.abar
    backbone.decode(z) -> pixels        backbone.eps(x, t, context, inject) -> eps

Profile `sd21` is Stable Diffusion 2.1-base (UNet 865.9M parameters, VAE 83.7M, text encoder 340.4M). Profile `tiny` has the same
topology with 3.1M parameters, for laptops and tests.
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

DOWNSCALE = 8  # Side of a latent position in pixels.
TOKENS = 77  # Tokens of every context, those of beginning and end and the padding included.
Prompt: TypeAlias = str | tuple[int, ...]  # Text, or its CLIP token ids without those of beginning and end.


@dataclass(frozen=True)
class Profile:
    """Sizes of a backbone.

    Args:
        name: Name of the profile.
        vae: Constructor arguments of diffusers' AutoencoderKL.
        unet: Constructor arguments of diffusers' UNet2DConditionModel.
        text: Constructor arguments of transformers' CLIPTextConfig.
        scaling: Factor that brings latents to unit variance.
    """

    name: str
    vae: Mapping[str, Any]
    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    scaling: float = 0.18215


_UNET = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "use_linear_projection": True}
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}

# Despite its name, `attention_head_dim` of diffusers' UNet is the number of attention heads of each level.
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
            "num_hidden_layers": 23,  # The context is the normalised output of the second to last of 24 layers.
            "num_attention_heads": 16,
            "hidden_act": "gelu",
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
    ),
    "tiny": Profile(
        "tiny",
        # Two norm groups, so at least 8 channels each. With 2 channels per group, GroupNorm reduces a flat area to signs and loses
        # its colour.
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
    """The three networks of one profile, with random weights from torch's global generator; `load_backbone` loads trained ones.

    Args:
        profile: Sizes of the networks.

    Attributes:
        profile: The profile.
        vae: diffusers' AutoencoderKL.
        unet: diffusers' UNet2DConditionModel.
        text: transformers' CLIPTextModel.
        abar: (1000,) float64 on the CPU, the cumulative product of 1 - beta; beta is scaled-linear from 0.00085 to 0.012.
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
        """The dtype of the networks."""
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.unet.device

    def with_unet(self, unet: Any) -> DiffusionBackbone:
        """Return a backbone with another UNet that shares everything else with this one."""
        backbone = copy.copy(self)
        backbone._modules = {**self._modules, "unet": unet}
        return backbone

    def encode(self, pixels: Tensor, tile: int = 0, overlap: int = 0) -> Tensor:
        """Compute the VAE latent: the mode of the VAE's posterior, scaled to unit variance.

        Args:
            pixels: (N, 3, 8H, 8W) float32 in [0, 1].
            tile: Latents with a longer side than this many positions are computed in tiles; 0 for never.
            overlap: Positions that neighbouring tiles share.

        Returns:
            z (N, 4, H, W) float32.
        """
        tiles = Tiles(pixels.shape[-2] // DOWNSCALE, pixels.shape[-1] // DOWNSCALE, tile, overlap)
        inputs = [(2 * x - 1).to(self.device, self.dtype) for x in tiles.cut(pixels, DOWNSCALE)]
        return tiles.paste([self.vae.encode(x).latent_dist.mode().float() for x in inputs]) * self.profile.scaling

    def decode(self, z: Tensor, tile: int = 0, overlap: int = 0) -> Tensor:
        """Compute the pixels of a VAE latent.

        Args:
            z: (N, 4, H, W), scaled as by `encode`.
            tile: As for `encode`.
            overlap: As for `encode`.

        Returns:
            Pixels (N, 3, 8H, 8W) float32 in [0, 1].
        """
        tiles = Tiles(z.shape[-2], z.shape[-1], tile, overlap)
        inputs = [(x / self.profile.scaling).to(self.device, self.dtype) for x in tiles.cut(z)]
        pixels = tiles.paste([self.vae.decode(x).sample.float() for x in inputs], DOWNSCALE)
        return ((pixels + 1) / 2).clamp(0, 1)

    def embed(self, prompts: Sequence[Prompt] | Tensor) -> Tensor:
        """Embed prompts, or their token ids (N, 77) int64.

        Returns:
            Context (N, 77, D) in the backbone's dtype. Prompts longer than 75 tokens are cut.
        """
        ids = prompts if isinstance(prompts, Tensor) else self.tokenize(prompts)
        return self.text(input_ids=ids.to(self.device)).last_hidden_state

    def tokenize(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return the token ids (N, 77) int64 of prompts: beginning, at most 75 tokens of text, end, zeros."""
        first, last = self.profile.text["bos_token_id"], self.profile.text["eos_token_id"]
        ids = torch.zeros(len(prompts), TOKENS, dtype=torch.int64)
        for row, prompt in zip(ids, prompts):
            tokens = [first, *self.token_ids(prompt)[: TOKENS - 2], last]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids

    def token_ids(self, prompt: Prompt) -> Sequence[int]:
        """Return the token ids of a whole prompt: CLIP's, or for the tiny profile hashed into its small vocabulary."""
        return _clip_tokens(prompt) if self.profile.name == "sd21" else _hashed_tokens(prompt, self.profile.text["bos_token_id"])

    def eps(self, x: Tensor, t: Tensor, context: Tensor, inject: unet.Injector | None = None) -> Tensor:
        """Predict the noise in a latent.

        Args:
            x: Noisy latent (N, 4, H, W).
            t: Times (N,) int64, 0 to 999.
            context: Text embedding (N, 77, D).
            inject: Changes the hidden states of the UNet; None for the UNet alone.

        Returns:
            eps (N, 4, H, W) in the backbone's dtype.
        """
        emb = self.unet.time_embedding(unet.embed_time(self.unet, t).to(self.dtype))
        return unet.run_unet(self.unet, x.to(self.dtype), emb, context, inject)

    def mid_features(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Return the middle block's output (N, C, H/8, W/8) of the UNet alone, which Diff-ICMH's semantic consistency compares.

        Arguments as for `eps`.
        """
        emb = self.unet.time_embedding(unet.embed_time(self.unet, t).to(self.dtype))
        return unet.run_encoder(self.unet, x.to(self.dtype), emb, context)[0]


def _clip_tokens(prompt: Prompt) -> Sequence[int]:
    return clip_tokenizer().encode(prompt) if isinstance(prompt, str) else prompt


@functools.cache
def clip_tokenizer() -> Any:
    """Return CLIP's tokenizer: `encode` turns text into token ids without those of beginning and end, `decode` turns them back."""
    from open_clip.tokenizer import SimpleTokenizer  # This one ships its vocabulary, so that no file is needed.

    return SimpleTokenizer()


def _hashed_tokens(prompt: Prompt, size: int) -> list[int]:
    """Map words, or CLIP's token ids, to tokens 1 to size - 1 by checksum: the tiny profile only needs words to differ."""
    words = prompt.lower().replace(",", " ,").split() if isinstance(prompt, str) else map(str, prompt)
    return [1 + zlib.crc32(word.encode()) % (size - 1) for word in words]


@functools.lru_cache(maxsize=1)  # Large, so only one stays in memory; all rate points of a codec share it.
def load_backbone(profile: str, source: Path | None, dtype: torch.dtype, device: str, seed: int = 0) -> DiffusionBackbone:
    """Load the frozen backbone of a profile, in evaluation mode.

    Args:
        profile: Name of the profile.
        source: A folder in diffusers layout, a checkpoint of the original code or a file of this project; None for random weights.
        dtype: The dtype of the networks.
        device: Name of a torch device.
        seed: Seed of random weights.

    Raises:
        CodecError: the source cannot be read or does not fit the profile.
    """
    if source is None:
        backbone = random_backbone(profile, seed)
    else:
        with init_empty_weights():
            backbone = DiffusionBackbone(PROFILES[profile])
        (_fill_from_folder if source.is_dir() else _fill_from_file)(backbone, source)
    backbone = backbone.to(torch.device(device), dtype).eval().requires_grad_(False)
    return nn.utils.convert_conv2d_weight_memory_format(backbone, torch.channels_last)


def random_backbone(profile: str, seed: int = 0) -> DiffusionBackbone:
    """Build a backbone with random weights that depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DiffusionBackbone(PROFILES[profile])


def _fill_from_file(backbone: DiffusionBackbone, path: Path) -> None:
    state = weights.read_state(path)
    if any(key.startswith("unet.") for key in state):  # Written by `models.save_backbone`, with the keys of DiffusionBackbone.
        weights.fill_module(backbone, state, path)
        return
    for part in SD_FOLDERS:
        weights.fill_part(getattr(backbone, part), part, state, path)


def _fill_from_folder(backbone: DiffusionBackbone, source: Path) -> None:
    config = source / "scheduler" / "scheduler_config.json"
    if config.is_file() and json.loads(config.read_text()).get("prediction_type", "epsilon") != "epsilon":
        raise CodecError(f"{source} predicts velocity, not noise: name Stable Diffusion 2.1-base (512 pixels), not the 768 model")
    for part, folder in SD_FOLDERS.items():
        network = getattr(backbone, part)
        try:
            loaded = type(network).from_pretrained(source / folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CodecError(
                f"{source / folder} cannot be read ({reason}): name {SD_CHECKPOINT} or a folder with unet/, vae/ and text_encoder/ "
                "in diffusers layout"
            ) from error
        weights.fill_module(network, loaded.state_dict(), source / folder)
