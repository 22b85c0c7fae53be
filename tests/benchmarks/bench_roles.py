"""Coders and models in processes of their own, against workers that do both: speed and memory of one experiment.

    python tests/benchmarks/bench_roles.py [--turns 5] [--images 24]

x265 with its slow preset and a classifier, ViT-B/16 with random weights (330 MiB), run over photographs from packages, by
`--workers 2` and by `--coders 2 --models 1` in turn. Prints the median speed of the second over the first, and the same of the peak
memory: PSS summed over all processes of the run, in which pages that processes share count once. The goals are at least 0.97 and at
most 0.7.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

EXPERIMENT = """
name: roles
shard_size: 2
bootstrap: 0
datasets: {{photos: {{kind: packaged-photos, preprocessing: "short:{side}", limit: {images}}}}}
codecs: [{{name: x265, points: [22, 32, 42], set: {{preset: slow}}}}]
tasks:
  - {{name: classification, dataset: photos, model: {{name: torchvision-classifier, architecture: vit_b_16, path: {weights}}}}}
"""
MODES = {"--workers 2": ["--workers", "2"], "--coders 2 --models 1": ["--coders", "2", "--models", "1"]}


def measure(folder: Path, arguments: list[str]) -> tuple[float, int]:
    """Seconds of one run from the first unit of work to the last, and the peak of its summed PSS in bytes."""
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(folder.parent / "experiment.yaml"), "--out", str(folder)]
    peak = 0
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.25):
            peak = max(peak, summed_pss(process.pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    start = time.perf_counter()
    code = process.wait()
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    if code:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {code}")
    return seconds, peak


def summed_pss(pid: int) -> int:
    """PSS of a process and all that it started, in bytes."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def save_random_weights() -> Path:
    """A file of random weights of the classifier, in the folder for temporary files, where the next call finds it."""
    import torch
    from torchvision.models import vit_b_16

    path = Path(tempfile.gettempdir()) / "icmbench-random-vit_b_16.pth"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(vit_b_16().state_dict(), path)
    return path


def main() -> None:
    """Run both modes in turn, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--side", type=int, default=384)
    options = parser.parse_args()
    weights = save_random_weights()
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    peaks: dict[str, list[int]] = {mode: [] for mode in MODES}
    for turn in range(options.turns):
        for mode, arguments in MODES.items():
            with tempfile.TemporaryDirectory() as scratch:
                text = EXPERIMENT.format(images=options.images, side=options.side, weights=weights)
                Path(scratch, "experiment.yaml").write_text(text)
                taken, peak = measure(Path(scratch, "run"), arguments)
            seconds[mode].append(taken)
            peaks[mode].append(peak)
            print(f"turn {turn + 1}, {mode}: {taken:.1f} s, {peak / 2**20:.0f} MiB", flush=True)
    workers, roles = MODES
    speed = statistics.median(a / b for a, b in zip(seconds[workers], seconds[roles], strict=True))
    memory = statistics.median(b / a for a, b in zip(peaks[workers], peaks[roles], strict=True))
    print(f"speed of {roles} over {workers}: {speed:.3f} (goal 0.97); memory: {memory:.3f} (goal 0.7)")


if __name__ == "__main__":
    main()
