"""A paper-scale rehearsal with synthetic shards: `icmbench plan`, `run` (nothing to compute) and `report`, in time and memory.

    python tests/benchmarks/bench_scale.py [--images 50000] [--reference 1000] [--codecs 10] [--points 5] [--folder FOLDER]

Five tasks: classification, detection with seven boxes an image, PSNR, LPIPS and 16 layers; 200 replicates. Prints processor
seconds, wall seconds and the peak memory of each command for both numbers of images, and how many times as long the larger one
takes. The goals for 50,000 images are below 4 GiB and at most 30 times what 1,000 images take. Each command runs in a process of
its own. With `--folder` the shards are left there for the next call.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def measure(name, command):
    """Run a command; return its processor seconds, wall seconds and most MiB, by the kernel's account of the process."""
    path = os.pathsep.join([str(HERE / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, errors
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    print(f"  {name:24} {cpu:9.1f} s CPU {wall:9.1f} s wall {memory:8.0f} MiB", flush=True)
    return cpu, wall, memory


def rehearse(folder, images, arguments):
    """Make a run folder unless it is there, and measure all commands on it; returns {name: (cpu, wall, memory)}."""
    print(f"{images} images, {arguments.codecs} codecs, {arguments.points} points", flush=True)
    if not (folder / "run").exists():
        sizes = ["--images", str(images), "--codecs", str(arguments.codecs), "--points", str(arguments.points)]
        measure("(making the shards)", [sys.executable, HERE / "scale_run.py", folder, *sizes])
    for name in ("derived.json", "pictures.json"):
        (folder / "run" / name).unlink(missing_ok=True)
    for file in (folder / "run").glob("replicates/*"):
        file.unlink()
    icmbench = [sys.executable, "-m", "icmbench.harness.cli"]
    run = [*icmbench, "run", folder / "experiment.yaml", "--out", folder / "run"]
    return {
        "plan": measure("plan", [*icmbench, "plan", folder / "experiment.yaml", "--out", folder / "run"]),
        "run": measure("run: scores and report", run),
        "again": measure("run: nothing to make", run),
        "report": measure("report", [*icmbench, "report", folder / "run"]),
    }


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--reference", type=int, default=1000)
    parser.add_argument("--codecs", type=int, default=10)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        few, many = (rehearse(folder / f"n{n}", n, arguments) for n in (arguments.reference, arguments.images))
    for name, (cpu, wall, memory) in many.items():
        print(f"{name:8} {cpu / few[name][0]:6.1f} x CPU {wall / few[name][1]:6.1f} x wall, {memory / 1024:.2f} GiB")


def test_scale():
    main(["--images", "5000"])


if __name__ == "__main__":
    main()
