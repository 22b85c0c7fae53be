"""The software and hardware of this machine, as far as they decide how long things take."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil

from icmbench.harness.config.devices import VISIBLE
from icmbench.harness.store.keys import digest
from icmbench.tasks.models.threads import affinity_cpus, usable_cpus

TIMED_PACKAGES = ("torch", "numpy", "pillow", "onnxruntime")  # Packages in which most of the measured time is spent.


def machine_digest() -> str:
    """A short digest of processor, cores, GPUs and the versions of `TIMED_PACKAGES`: two rows with one digest can be compared."""
    versions = packages()
    facts = [
        platform.machine(),
        _processor(),
        affinity_cpus(),
        _nvidia_gpus(),
        {name: versions.get(name) for name in TIMED_PACKAGES},
    ]
    return digest(facts)[:12]


def packages() -> dict[str, str]:
    """Versions of the installed distributions by name.

    Both are taken from the names of the .dist-info folders, because reading every METADATA file takes 0.2 s.
    """
    folders = (info.name for path in sys.path if Path(path).is_dir() for info in Path(path).glob("*.dist-info"))
    names = (folder.removesuffix(".dist-info").rpartition("-") for folder in folders)
    return dict(sorted((name, version) for name, _, version in names))


def hardware() -> dict[str, Any]:
    """Processor, number of CPU cores that this process may run on, memory in GiB, and names of the GPUs."""
    return {
        "machine": platform.platform(),
        "processor": _processor(),
        "cores": affinity_cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """Names of the GPUs that torch sees; none if torch is not loaded, because the run then used no GPU."""
    torch = sys.modules.get("torch")
    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if torch else []


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _nvidia_gpus() -> list[str]:
    """Models of the NVIDIA GPUs that the driver of Linux lists. Unlike `gpus`, it does not depend on whether torch is loaded."""
    lines = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines += [line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.startswith("Model")]
    return lines


def visible_gpus() -> int:
    """Number of NVIDIA GPUs that this process may use, without loading torch."""
    visible = os.environ.get(VISIBLE)
    return len(_nvidia_gpus()) if visible is None else len([name for name in visible.split(",") if name])


def default_models() -> int:
    """Processes that hold models on this machine if nobody says how many: one for each GPU, at least one."""
    return max(1, visible_gpus())


def default_coders(models: int) -> int:
    """Processes that encode and decode if nobody says how many.

    With GPUs all usable CPUs code, but for one for each model process. Without, the models need CPUs too, and get half of them.

    Args:
        models: number of processes that hold models.
    """
    cpus = usable_cpus()
    return max(1, cpus - models if visible_gpus() else cpus // 2)
