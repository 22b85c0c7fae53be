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
from torch import Tensor, nn

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion import keys


class _Inert:
    """Stands for an object of a training framework: takes any arguments and state, does nothing with them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


# What checkpoints of PyTorch Lightning 1.x and 2.x configured with OmegaConf are known to name.
_STAND_INS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning_fabric.utilities.data.AttributeDict",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file or a PyTorch checkpoint (its "state_dict" if it has one), on the CPU.

    Large files are mapped, not copied. Raises CodecError where the file is absent or is no such thing.
    """
    path = Path(path)
    if not path.is_file():
        raise CodecError(f"there are no weights at {path}: put the file there or name another path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in _STAND_INS]):
            # Only files in the zip format of PyTorch 1.6 and later can be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise CodecError(f"{path} cannot be read as weights ({reason}): fetch it again, or convert it to .safetensors") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CodecError(f"{path} holds no dictionary of tensors: name a checkpoint with a 'state_dict'")
    return dict(state)


# Frequency tables of the entropy models: of any length, and absent where they are yet to be made.
_TABLES = ("_quantized_cdf", "_cdf_length", "_offset", "scale_table")


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, unknown: Iterable[str] = ()) -> None:
    """Make `tensors` the parameters of `module`, without copying. CodecError unless they are exactly the ones it has.

    unknown: keys of the source that already found no place.
    """
    own = {key: value for key, value in module.state_dict().items() if not key.endswith(_TABLES)}
    given, tensors = dict(tensors), {key: value for key, value in tensors.items() if not key.endswith(_TABLES)}
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


def hub_file(repository: str, name: str, option: str) -> Path:
    """A file of a hub repository, from the local cache if it is there. CodecError says what to put where if it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # the client raises a dozen types, from httpx's to its own
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise CodecError(
            f"{name} of the hub repository {repository} cannot be had ({reason}): "
            f"put that file on disk, under that name in a folder, and set `{option}` to the folder"
        ) from error
