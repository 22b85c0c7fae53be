"""The networks of one rate point with their weights: published checkpoints, this project's own files, or random values."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone import keys, stable_diffusion, weights
from icmbench.codecs.diffusion.backbone.control import ControlModule
from icmbench.codecs.diffusion.backbone.files import WeightFiles, training_record
from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone
from icmbench.codecs.diffusion.engine import CodecModel
from icmbench.codecs.diffusion.latents.lfgcm import LFGCM_PROFILES, Lfgcm
from icmbench.codecs.diffusion.latents.vae_compressor import VAE_COMPRESSOR_PROFILES, VaeCompressor

# The networks that a rate point does not take from the backbone, by the names that prefix their keys in its weight file.
Parts: TypeAlias = dict[str, nn.Module]


def _fill_parts(parts: Parts, state: Mapping[str, Tensor], file: Path) -> None:
    weights.fill_module(nn.ModuleDict(parts), state, file)


@dataclass(frozen=True)
class Architecture:
    """The networks of one codec, and how they are built and filled with weights.

    Args:
        build_parts: Called as build_parts(base, profile); builds the networks of one rate point over a backbone. Their names are
            the keyword arguments of `build_model`.
        build_model: Called as build_model(base, **parts); joins the networks to a model that codes.
        fill_published: Called as fill_published(parts, base, state, file); fills the networks with the tensors of the authors'
            checkpoint. None if the authors published none.
        fill_parts: Called as fill_parts(parts, state, file); fills the networks with the tensors of this project's own file, as
            `CodecModel.state` returned them.
    """

    build_parts: Callable[[DiffusionBackbone, str], Parts]
    build_model: Callable[..., CodecModel] = CodecModel
    fill_published: Callable[[Parts, DiffusionBackbone, Mapping[str, Tensor], Path], None] | None = None
    fill_parts: Callable[[Parts, Mapping[str, Tensor], Path], None] = _fill_parts


@functools.lru_cache(maxsize=16)  # An experiment alternates between rate points, so several stay in memory.
def load_model(architecture: Architecture, files: WeightFiles, point: float, dtype: str, device: str, seed: int = 0) -> CodecModel:
    """Load the model of one rate point. Warns if its weights are random.

    Args:
        architecture: The networks of the codec.
        files: Where the weights are.
        point: Lambda of the rate point.
        dtype: Name of the torch dtype of the backbone, such as "bfloat16".
        device: Name of a torch device.
        seed: Seed of random weights.

    Raises:
        CodecError: a file is missing, cannot be read or does not fit the networks.
    """
    file, base_file = files.point_file(point), files.backbone_source()
    base = stable_diffusion.load_backbone(files.profile, base_file, getattr(torch, dtype), device, seed)
    if file is None:
        warnings.warn(
            f"{files.codec}: weights of profile {files.profile} are random: rates and pictures mean nothing", stacklevel=2
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return architecture.build_model(base, **architecture.build_parts(base, files.profile))
    with init_empty_weights():
        parts = architecture.build_parts(base, files.profile)
    shared = files.shared_file(point)
    state = ({} if shared is None else weights.read_state(shared)) | weights.read_state(file)
    # Keys that begin with "latent." mark a file of this project.
    if architecture.fill_published is None or any(key.startswith("latent.") for key in state):
        architecture.fill_parts(parts, state, file)
    else:
        architecture.fill_published(parts, base, state, file)
    return architecture.build_model(base, **parts)


def build_meta_model(architecture: Architecture, profile: str) -> CodecModel:
    """Build a model on the meta device: its parameters and operations can be counted, but no memory holds their values."""
    with init_empty_weights(include_buffers=True):
        base = DiffusionBackbone(stable_diffusion.PROFILES[profile]).eval().requires_grad_(False)
        return architecture.build_model(base, **architecture.build_parts(base, profile))


def save_model(model: CodecModel, path: Path, trained_with: Mapping[str, Any] | None = None) -> None:
    """Write the weights and frequency tables of one rate point to a safetensors file in this project's layout.

    Args:
        model: The rate point.
        path: The file to write.
        trained_with: The options of training that a codec must repeat, as JSON values by name; see `WeightFiles.trained_with`.
    """
    _save_state(model.state(), path, training_record(trained_with or {}))


def save_backbone(base: DiffusionBackbone, path: Path) -> None:
    """Write a backbone to a safetensors file in this project's layout; it belongs in the folder of the rate points' files."""
    _save_state(base.state_dict(), path)


def _save_state(state: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    save_file({key: value.cpu().contiguous() for key, value in state.items()}, path, metadata)


def _diff_icmh_parts(base: DiffusionBackbone, profile: str) -> Parts:
    return {"latent": Lfgcm(**LFGCM_PROFILES[profile]), "control": ControlModule(base.unet)}


def _fill_published_diff_icmh(parts: Parts, base: DiffusionBackbone, state: Mapping[str, Tensor], file: Path) -> None:
    if foreign := keys.foreign_keys(state):
        raise CodecError(f"{file} holds {len(foreign)} keys of no known part, such as {foreign[0]}: name a Diff-ICMH checkpoint")
    for name, part in parts.items():
        weights.fill_part(part, name, state, file)
    _check_backbone(base, state, file)


def _resulic_parts(base: DiffusionBackbone, profile: str) -> Parts:
    control = ControlModule(base.unet, ratio=0.2 if profile == "sd21" else 1.0, feedback=True)
    return {"latent": VaeCompressor(**VAE_COMPRESSOR_PROFILES[profile]), "control": control}


def _slim_full_parts(base: DiffusionBackbone, profile: str) -> Parts:
    return {"latent": VaeCompressor(**VAE_COMPRESSOR_PROFILES[profile]), "control": ControlModule(base.unet)}


DIFF_ICMH = Architecture(_diff_icmh_parts, fill_published=_fill_published_diff_icmh)
RESULIC = Architecture(_resulic_parts)
# SLIM's paper names no difference from ResULIC's networks and no width of the control module, so SLIM takes ResULIC's;
# SLIM_FULL has a control module of the UNet's full width.
SLIM, SLIM_FULL = RESULIC, Architecture(_slim_full_parts)


def _check_backbone(base: DiffusionBackbone, state: Mapping[str, Tensor], file: Path) -> None:
    """Raise CodecError if a checkpoint includes another Stable Diffusion than the loaded one.

    Stable Diffusion was frozen in training, so the two must be equal. Compares the first values of each tensor.
    """
    for part in ("unet", "vae", "text"):
        theirs, unknown = keys.PARTS[part](state)
        ours = getattr(base, part).state_dict()
        wrong = [*unknown, *(key for key in theirs if key not in ours or not _begin_equal(ours[key], theirs[key]))]
        if wrong:
            raise CodecError(
                f"{file} was trained over another Stable Diffusion ({len(wrong)} tensors of its {part} differ, such as "
                f"{wrong[0]}): set `backbone` to the one it was trained over"
            )


def _begin_equal(ours: Tensor, theirs: Tensor, count: int = 16) -> bool:
    a, b = ours.reshape(-1)[:count].cpu(), theirs.reshape(-1)[:count].cpu().to(ours.dtype)
    return ours.shape == theirs.shape and torch.equal(a, b)
