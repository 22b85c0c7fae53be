"""Reading published weights: safetensors, and PyTorch checkpoints without running what they contain.

A checkpoint is read with `weights_only`; what old Lightning stores beside the tensors (callbacks, hyper-parameters) becomes inert
stand-ins. Whatever is missing or left over is an error that lists the keys.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone import keys


class _Inert:
    """Stands for an object of a training framework: takes any arguments and state, does nothing with them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What checkpoints of PyTorch Lightning 1.x and 2.x configured with OmegaConf are known to name, and what stands for it.
_STAND_INS: list[tuple[type, str]] = [
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (dict, "lightning_fabric.utilities.data.AttributeDict"),
    (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_Inert, "pytorch_lightning.callbacks.early_stopping.EarlyStopping"),
    (_Inert, "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint"),
    (_Inert, "omegaconf.dictconfig.DictConfig"),
    (_Inert, "omegaconf.listconfig.ListConfig"),
    (_Inert, "omegaconf.base.ContainerMetadata"),
    (_Inert, "omegaconf.base.Metadata"),
    (_Inert, "omegaconf.nodes.AnyNode"),
    (_Inert, "typing.Any"),
    (_Inert, "argparse.Namespace"),
    (_Inert, "numpy.core.multiarray.scalar"),
    (_Inert, "numpy._core.multiarray.scalar"),
    (_Inert, "numpy.dtype"),
]


# The last two are of what a trusted pickle names.
UNREADABLE = (pickle.UnpicklingError, SafetensorError, OSError, RuntimeError, EOFError, ValueError, ImportError, AttributeError)


def read_state(path: str | Path, trust: bool = False) -> dict[str, Tensor]:
    """All tensors of a .safetensors file or a PyTorch checkpoint (its "state_dict" or "model" if it has one), on the CPU.

    Large files are mapped, not copied. trust: a pickle may hold more than tensors, and run its code. Raises CodecError where the
    file is absent or is no such thing.
    """
    path = Path(path)
    if not path.is_file():
        raise CodecError(f"there are no weights at {path}: put the file there or name another path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(list(_STAND_INS)):
            # Only files in the zip format of PyTorch 1.6 and later can be mapped.
            content = torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipfile.is_zipfile(path))
    except UNREADABLE as error:
        # PyTorch's message first says how to give up safety, then the reason.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0].split(". Please")[0]
        remedy = "fetch it again" if trust else "fetch it again, or see `icmbench convert --trust`"
        raise CodecError(f"{path} cannot be read as weights ({reason}): {remedy}") from error
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CodecError(f"{path} holds no dictionary of tensors: name a checkpoint with a 'state_dict'")
    return dict(state)


# Frequency tables of the entropy models: of any length, and absent where they are yet to be made.
TABLES = ("_quantized_cdf", "_cdf_length", "_offset", "scale_table")


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, unknown: Iterable[str] = ()) -> None:
    """Make `tensors` the parameters of `module`, without copying. CodecError unless they are exactly the ones it has.

    unknown: keys of the source that already found no place.
    """
    own = {key: value for key, value in module.state_dict().items() if not key.endswith(TABLES)}
    given, tensors = dict(tensors), {key: value for key, value in tensors.items() if not key.endswith(TABLES)}
    problems = {
        "missing": sorted(own.keys() - tensors.keys()),
        "left over": [*unknown, *sorted(tensors.keys() - own.keys())],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
            for key in sorted(own.keys() & tensors.keys())
            if tensors[key].shape != own[key].shape
        ],
    }
    found = "; ".join(f"{len(keys)} {what}: {_listing(keys)}" for what, keys in problems.items() if keys)
    if found:
        raise CodecError(f"{source} does not fit {type(module).__name__} ({found}): name the checkpoint made for this model")
    module.load_state_dict(given, strict=True, assign=True)


def _listing(keys: list[str], limit: int = 12) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def fill_part(module: nn.Module, part: str, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Fill a module from a published checkpoint. part: "unet", "vae", "text", "control" or "latent"."""
    tensors, unknown = keys.PARTS[part](state)
    fill(module, tensors, source, unknown)
