"""environment.json: the software, the hardware and the inputs that a run was made with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from icmbench.harness.config.secrets import redact
from icmbench.harness.derive.scoring import primary_metrics
from icmbench.harness.guests.sections import recorded_environment
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.formats import ESTIMATED_FORMAT, FORMAT, KEY
from icmbench.harness.store.inventory import parse_fingerprint
from icmbench.harness.store.references import INNER_STORE, is_same_place, run_address
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.hardware import hardware, packages
from icmbench.harness.work.series import Series


def environment(bench: Bench) -> dict[str, Any]:
    """The content of environment.json: versions, git state, hardware, and the fingerprints of every codec point and task."""
    inner = Folder(bench.folder.below(INNER_STORE))
    coded = [series for series in bench.series if isinstance(series, Series)]
    return {
        KEY: ESTIMATED_FORMAT if any(series.estimated for series in coded) else FORMAT,
        "command": sys.argv,
        "experiment": json.loads(bench.experiment.model_dump_json()),
        "folder": redact(str(bench.experiment.folder.absolute())),
        "python": sys.version,
        "packages": packages(),
        "environments": {name: recorded_environment(bench.experiment, name) for name in bench.experiment.environments},
        "git": git_state(Path(__file__).parent),
        "hardware": {**hardware(), "digest": bench.machine},
        "codecs": {series.name: parse_fingerprint(series.codec.fingerprint) for series in coded},
        "series": [_series_facts(bench, series) for series in coded],
        # The inner store goes with its run folder wherever that is moved.
        "store": None if is_same_place(bench.store.folder, inner) else redact(run_address(bench.store.folder)),
        "packs": {label: pack.sha256 for label, pack in bench.packs.items()},
        "tasks": {label: parse_fingerprint(task.fingerprint) for label, task in bench.tasks.items()},
        "primary": primary_metrics(bench),
        "datasets": {
            name: {"images": len(dataset.ids), "preprocessing": dataset.preprocessing, "limit": dataset.limit}
            for name, dataset in bench.datasets.items()
        },
    }


def _series_facts(bench: Bench, series: Series) -> dict[str, Any]:
    """Facts by which `icmbench.harness.store.pack_export` finds the streams of a series without building its codec."""
    return {
        "label": series.label,
        "codec": next(section.name for section in bench.experiment.codecs if section.label == series.label),
        "point": series.point,
        "given": series.point_value,
        "seed": series.seed,
        "fingerprint": series.codec.fingerprint,
        "deterministic": series.deterministic,
        "measured_elsewhere": series.measured_elsewhere,
        "estimated": series.estimated,
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Git commit of this package, and whether tracked files were changed since; None if it does not lie in its own checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # Fails in a repository that does not track this package.
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
