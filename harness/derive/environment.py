"""environment.json: what a run was made with and on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from icmbench.harness.derive.scoring import primary_metrics
from icmbench.harness.store.shards import Series
from icmbench.harness.work.bench import Bench


def environment(bench: Bench) -> dict[str, Any]:
    """Versions, git state, hardware, and the fingerprints of every codec point and task."""
    return {
        "command": sys.argv,
        "experiment": json.loads(bench.experiment.model_dump_json()),
        "python": sys.version,
        "packages": packages(),
        "git": git_state(Path(__file__).parent),
        "hardware": hardware(),
        "codecs": {series.name: _facts(series.codec.fingerprint) for series in bench.series if series.codec is not None},
        "series": [_series(bench, series) for series in bench.series if series.codec is not None],
        "packs": {label: pack.sha256 for label, pack in bench.packs.items()},
        "tasks": {label: _facts(task.fingerprint) for label, task in bench.tasks.items()},
        "primary": primary_metrics(bench),
        "datasets": {
            name: {"images": len(dataset.ids), "preprocessing": dataset.preprocessing, "limit": dataset.limit}
            for name, dataset in bench.datasets.items()
        },
    }


def _series(bench: Bench, series: Series) -> dict[str, Any]:
    """What finds a series' shards again without its codec, see `icmbench.harness.store.pack`."""
    return {
        "label": series.label,
        "codec": next(block.name for block in bench.experiment.codecs if block.label == series.label),
        "point": series.point,
        "given": series.given,
        "seed": series.seed,
        "fingerprint": getattr(series.codec, "fingerprint", ""),
        "deterministic": series.deterministic,
        "measured_elsewhere": hasattr(series.codec, "stream_bytes"),
    }


def packages() -> dict[str, str]:
    """Installed distributions and versions, by the names of their .dist-info folders: reading every METADATA takes 0.2 s."""
    folders = (found.name for place in sys.path if Path(place).is_dir() for found in Path(place).glob("*.dist-info"))
    named = (folder.removesuffix(".dist-info").rpartition("-") for folder in folders)
    return dict(sorted((name, version) for name, _, version in named))


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs (by name; empty without torch or without one)."""
    return {
        "machine": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    torch = sys.modules.get("torch")  # a run that loaded no torch used no GPU
    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if torch else []


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether the tree was changed; None outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # or else it is a stranger's repository around this package
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _facts(fingerprint: str) -> Any:
    try:
        return json.loads(fingerprint)
    except ValueError:
        return fingerprint
