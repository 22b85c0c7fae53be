"""Read published weights: safetensors files, and PyTorch checkpoints without running the code they may contain.

A checkpoint is read with `weights_only`. The objects that old versions of PyTorch Lightning store beside the tensors (callbacks,
hyper-parameters) are replaced by inert stand-ins. Missing and superfluous keys are errors that list the keys.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from icmbench.codecs.base import CodecError
from icmbench.codecs.checks import refusal_reason
from icmbench.codecs.diffusion.backbone import keys


class _Inert:
    """Stand-in for an object of a training framework: accepts any arguments and state, and ignores them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Classes that checkpoints of PyTorch Lightning 1.x and 2.x, configured with OmegaConf, are known to name; each with its stand-in.
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


def read_state(path: str | Path, trust: bool = False) -> dict[str, Tensor]:
    """Read all tensors of a weight file, on the CPU. Large files are memory-mapped, not copied.

    Args:
        path: A .safetensors file or a PyTorch checkpoint. If a checkpoint has an entry "state_dict" or "model", that one is read.
        trust: Whether a checkpoint may hold any pickled object. Reading such a file runs the code that it names.

    Raises:
        CodecError: the file is absent, damaged, or holds no dictionary of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CodecError(f"there are no weights at {path}: put the file there or name another path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # PyTorch's warnings, as its messages, say how to load without protection.
        with torch.serialization.safe_globals(list(_STAND_INS)), warnings.catch_warnings(action="ignore"):
            # Only the zip format of PyTorch 1.6 and later can be memory-mapped.
            content = torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # Unpickling a damaged, foreign or trusted file can raise any error.
        remedy = "fetch it again" if trust else "fetch it again, or see `icmbench convert --trust`"
        raise CodecError(f"{path} cannot be read as weights ({refusal_reason(error)}): {remedy}") from error
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CodecError(f"{path} holds no dictionary of tensors: name a checkpoint with a 'state_dict'")
    if not all(isinstance(key, str) for key in state):
        raise CodecError(f"{path} names its tensors by other things than text: name a checkpoint with a 'state_dict'")
    return dict(state)


# Endings of the keys of the entropy models' frequency tables. Their lengths vary, and weights without tables are valid: the tables
# can be made from the weights.
TABLES = ("_quantized_cdf", "_cdf_length", "_offset", "scale_table")


def fill_module(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, unknown: Iterable[str] = ()) -> None:
    """Make tensors the parameters and buffers of a module, without copying them.

    Args:
        module: The module to fill; it may be on the meta device.
        tensors: The tensors by the keys of the module's state dict. Frequency tables may be missing.
        source: The file or folder that the tensors are from, for error messages.
        unknown: Keys of the source that could not be translated to keys of the module.

    Raises:
        CodecError: the keys or shapes are not exactly those of the module.
    """
    expected = {key: value for key, value in module.state_dict().items() if not key.endswith(TABLES)}
    checked = {key: value for key, value in tensors.items() if not key.endswith(TABLES)}
    problems = {
        "missing": sorted(expected.keys() - checked.keys()),
        "left over": [*unknown, *sorted(checked.keys() - expected.keys())],
        "of another shape": [
            f"{key} {tuple(checked[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in sorted(expected.keys() & checked.keys())
            if checked[key].shape != expected[key].shape
        ],
    }
    message = "; ".join(f"{len(keys)} {problem}: {_first_keys(keys)}" for problem, keys in problems.items() if keys)
    if message:
        raise CodecError(f"{source} does not fit {type(module).__name__} ({message}): name the checkpoint made for this model")
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def _first_keys(keys: list[str], limit: int = 12) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def fill_part(module: nn.Module, part: str, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Fill a module with its tensors of a published checkpoint.

    Args:
        module: The module to fill.
        part: Which part of the checkpoint the module is: "unet", "vae", "text", "control" or "latent".
        state: All tensors of the checkpoint by their published keys.
        source: The checkpoint's path, for error messages.

    Raises:
        CodecError: the checkpoint does not hold exactly the tensors of this module.
    """
    tensors, unknown = keys.PARTS[part](state)
    fill_module(module, tensors, source, unknown)
