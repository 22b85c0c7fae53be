"""The option `device` of codecs and models: which processor runs their networks.

auto       the first GPU that this process sees, otherwise Apple's, otherwise the CPU
cpu        the CPU
cuda       the first GPU that this process sees; `cuda:N` the one with number N
mps        Apple's GPU
"""

from __future__ import annotations

import os
import re

from icmbench.harness.config.errors import UserError

OPTION = "device"
AUTO = "auto"
VISIBLE = "CUDA_VISIBLE_DEVICES"
_FORMS = re.compile(r"auto|cpu|cuda|cuda:\d+|mps")


def is_device(value: object) -> bool:
    """Whether an option has one of the forms above."""
    return isinstance(value, str) and _FORMS.fullmatch(value) is not None


def resolve_device(value: object, key: str) -> str:
    """The device that an option names, as PyTorch names it.

    Args:
        value: the option.
        key: the key or argument that holds it; error messages begin with it.

    Raises:
        UserError: it has another form, or PyTorch does not see such a device here.
    """
    if not is_device(value) or not isinstance(value, str):
        raise UserError(f"{key}: {value!r} is no device; write auto, cpu, cuda, cuda:N or mps")
    if value == "cpu":
        return value
    import torch

    count = torch.cuda.device_count()
    has_mps = torch.backends.mps.is_available()
    if value == AUTO:
        return "cuda" if count else "mps" if has_mps else "cpu"
    if value == "mps" and not has_mps:
        raise UserError(f"{key}: this PyTorch sees no GPU of Apple: write auto or cpu")
    if value.startswith("cuda") and int(value.partition(":")[2] or 0) >= count:
        raise UserError(f"{key}: {value} is not there, PyTorch sees {count} CUDA GPUs: write auto or cpu")
    return value


def count_gpus() -> int:
    """Number of NVIDIA GPUs that PyTorch sees; 0 without PyTorch."""
    try:
        import torch
    except ModuleNotFoundError:
        return 0
    return int(torch.cuda.device_count())


def deal_gpus(text: str) -> list[str]:
    """The GPUs that `--devices` names, as CUDA_VISIBLE_DEVICES names them.

    Args:
        text: numbers separated by commas, within the GPUs that this process sees.

    Raises:
        UserError: it is no such list, or names a GPU twice or one that this process does not see.
    """
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers) or len({*numbers}) != len(numbers):
        raise UserError(f"--devices {text}: write the numbers of GPUs, each once, such as 0,1")
    visible, count = os.environ.get(VISIBLE), count_gpus()
    if any(int(number) >= count for number in numbers):
        raise UserError(f"--devices {text}: this process sees {count} NVIDIA GPUs: write numbers below that, or leave it out")
    if visible is None:
        return numbers
    names = [name for name in visible.split(",") if name]
    return [names[int(number)] for number in numbers]
