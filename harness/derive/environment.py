"""environment.json: the software, the hardware and the inputs that a run was made with."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from icmbench.harness.derive.scoring import primary_metrics
from icmbench.harness.store.formats import FORMAT, KEY
from icmbench.harness.store.shards import Series
from icmbench.harness.work.bench import Bench
from icmbench.tasks.models.threads import affinity_cpus


def environment(bench: Bench) -> dict[str, Any]:
    """The content of environment.json: versions, git state, hardware, and the fingerprints of every codec point and task."""
    return {
        KEY: FORMAT,
        "command": sys.argv,
        "experiment": json.loads(bench.experiment.model_dump_json()),
        "python": sys.version,
        "packages": packages(),
        "git": git_state(Path(__file__).parent),
        "hardware": hardware(),
        "codecs": {
            series.name: _parse_fingerprint(series.codec.fingerprint) for series in bench.series if series.codec is not None
        },
        "series": [_series_facts(bench, series) for series in bench.series if series.codec is not None],
        "packs": {label: pack.sha256 for label, pack in bench.packs.items()},
        "tasks": {label: _parse_fingerprint(task.fingerprint) for label, task in bench.tasks.items()},
        "primary": primary_metrics(bench),
        "datasets": {
            name: {"images": len(dataset.ids), "preprocessing": dataset.preprocessing, "limit": dataset.limit}
            for name, dataset in bench.datasets.items()
        },
    }


def _series_facts(bench: Bench, series: Series) -> dict[str, Any]:
    """Facts by which `icmbench.harness.store.pack` finds the shards of a series without building its codec."""
    return {
        "label": series.label,
        "codec": next(section.name for section in bench.experiment.codecs if section.label == series.label),
        "point": series.point,
        "given": series.point_value,
        "seed": series.seed,
        "fingerprint": getattr(series.codec, "fingerprint", ""),
        "deterministic": series.deterministic,
        "measured_elsewhere": hasattr(series.codec, "stream_bytes"),
    }


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


def git_state(folder: Path) -> dict[str, Any] | None:
    """Git commit of this package, and whether tracked files were changed since; None if it does not lie in its own checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # Fails in a repository that does not track this package.
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


def _parse_fingerprint(fingerprint: str) -> Any:
    """The facts of a fingerprint if it is JSON, otherwise the text itself."""
    try:
        return json.loads(fingerprint)
    except ValueError:
        return fingerprint
