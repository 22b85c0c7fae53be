"""The networks of a rate point with their weights: published checkpoints, this project's own files, or random ones."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone import keys, stable_diffusion, weights
from icmbench.codecs.diffusion.backbone.control import ControlModule
from icmbench.codecs.diffusion.backbone.files import Files
from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone
from icmbench.codecs.diffusion.engine import CodecModel
from icmbench.codecs.diffusion.latents.lfgcm import LFGCM, Lfgcm
from icmbench.codecs.diffusion.latents.vae_compressor import VAE_COMPRESSOR, VaeCompressor

Parts: TypeAlias = dict[str, nn.Module]


def _fill(parts: Parts, state: Mapping[str, Tensor], file: Path) -> None:
    weights.fill(nn.ModuleDict(parts), state, file)


@dataclass(frozen=True)
class Architecture:
    """What a codec of the family is made of.

    parts(base, profile): the networks of one rate point, by the names they have in its weight file and in `model`'s arguments.
    model(base, **parts): how they code. published(parts, base, state, file): fills them from the authors' checkpoint. fill(parts,
    state, file): from this project's file, as `CodecModel.state` made it.
    """

    parts: Callable[[DiffusionBackbone, str], Parts]
    model: Callable[..., CodecModel] = CodecModel
    published: Callable[[Parts, DiffusionBackbone, Mapping[str, Tensor], Path], None] | None = None
    fill: Callable[[Parts, Mapping[str, Tensor], Path], None] = _fill


@functools.lru_cache(maxsize=16)  # points that take turns stay loaded
def load(architecture: Architecture, files: Files, point: float, dtype: str, device: str, seed: int = 0) -> CodecModel:
    """The model of one rate point; a warning where its weights are random. CodecError where a file does not fit."""
    file, base_file = files.point(point), files.base()
    base = stable_diffusion.load(files.profile, base_file, getattr(torch, dtype), device, seed)
    if file is None:
        warnings.warn(
            f"{files.codec}: weights of profile {files.profile} are random: rates and pictures mean nothing", stacklevel=2
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return architecture.model(base, **architecture.parts(base, files.profile))
    with init_empty_weights():
        parts = architecture.parts(base, files.profile)
    shared = files.shared(point)
    state = ({} if shared is None else weights.read_state(shared)) | weights.read_state(file)
    if architecture.published is None or any(key.startswith("latent.") for key in state):
        architecture.fill(parts, state, file)
    else:
        architecture.published(parts, base, state, file)
    return architecture.model(base, **parts)


def empty(architecture: Architecture, profile: str) -> CodecModel:
    """A model on the meta device: parameters and operations to count, no values."""
    with init_empty_weights(include_buffers=True):
        base = DiffusionBackbone(stable_diffusion.PROFILES[profile]).eval().requires_grad_(False)
        return architecture.model(base, **architecture.parts(base, profile))


def save(model: CodecModel, path: Path) -> None:
    """Write the weights of one rate point, frequency tables included, in this project's layout."""
    _write(model.state(), path)


def save_backbone(base: DiffusionBackbone, path: Path) -> None:
    """Write a backbone in this project's layout, to lie beside the weights of the points."""
    _write(base.state_dict(), path)


def _write(state: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: value.cpu().contiguous() for key, value in state.items()}, path)


def _diff_icmh(base: DiffusionBackbone, profile: str) -> Parts:
    return {"latent": Lfgcm(**LFGCM[profile]), "control": ControlModule(base.unet)}


def _fill_published(parts: Parts, base: DiffusionBackbone, state: Mapping[str, Tensor], file: Path) -> None:
    if foreign := keys.foreign(state):
        raise CodecError(f"{file} holds {len(foreign)} keys of no known part, such as {foreign[0]}: name a Diff-ICMH checkpoint")
    for name, part in parts.items():
        weights.fill_part(part, name, state, file)
    _check_frozen(base, state, file)


def _resulic(base: DiffusionBackbone, profile: str) -> Parts:
    control = ControlModule(base.unet, ratio=0.2 if profile == "sd21" else 1.0, feedback=True)
    return {"latent": VaeCompressor(**VAE_COMPRESSOR[profile]), "control": control}


def _slim_full(base: DiffusionBackbone, profile: str) -> Parts:
    return {"latent": VaeCompressor(**VAE_COMPRESSOR[profile]), "control": ControlModule(base.unet)}


RESULIC = Architecture(_resulic)
SLIM, SLIM_FULL = RESULIC, Architecture(_slim_full)  # the paper tells of nothing that differs, nor how wide the control is
DIFF_ICMH = Architecture(_diff_icmh, published=_fill_published)


def _check_frozen(base: DiffusionBackbone, state: Mapping[str, Tensor], file: Path) -> None:
    """A checkpoint may hold Stable Diffusion too. That was frozen, so it must be the one that was loaded: compares the first values
    of each tensor."""
    for part in ("unet", "vae", "text"):
        theirs, unknown = keys.PARTS[part](state)
        ours = getattr(base, part).state_dict()
        wrong = [*unknown, *(key for key in theirs if key not in ours or not _agree(ours[key], theirs[key]))]
        if wrong:
            raise CodecError(
                f"{file} was trained over another Stable Diffusion ({len(wrong)} tensors of its {part} differ, such as "
                f"{wrong[0]}): set `backbone` to the one it was trained over"
            )


def _agree(ours: Tensor, theirs: Tensor, count: int = 16) -> bool:
    a, b = ours.reshape(-1)[:count].cpu(), theirs.reshape(-1)[:count].cpu().to(ours.dtype)
    return ours.shape == theirs.shape and torch.equal(a, b)
