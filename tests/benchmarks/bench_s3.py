"""A run folder on an S3 server with 20 ms latency against one on this disk: a first run, and one that has nothing to compute.

    python tests/benchmarks/bench_s3.py [--images 2000] [--points 5] [--milliseconds 20]

The server is moto on this machine, behind a proxy that holds each request back. Prints wall and processor seconds of each command,
the requests that it made, and the processor seconds of moto, which is written in Python and shares the processor. The goal is that
the commands take at most twice the wall time that they take on this disk. With `--milliseconds 0` it shows what moto itself costs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image
from slow_server import MotoProcess, SlowProxy, request_seconds

PLUGINS = Path(__file__).parents[1] / "harness" / "plugins"


def write_experiment(folder, images, points):
    """Write photographs of 32 x 32 pixels and an experiment over them; return its path."""
    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for k in range(images):
        picture = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "photos" / f"{k:06d}.png", compress_level=0)
    sections = {
        "name": "latency",
        "datasets": {"photos": {"kind": "images", "images": "photos"}},
        "codecs": [{"name": "shift", "points": [*range(6, 6 - points, -1)]}],
        "tasks": [
            {"name": "distance", "dataset": "photos"},
            {"name": "mean-colour", "dataset": "photos", "model": {"name": "averager"}, "reference": "original"},
        ],
        "anchor": "shift",
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def measure(name, path, out, environment, proxy=None, server=None):
    """Run the experiment; print and return its wall seconds."""
    before = (len(proxy.requests), sum(server.cpu_times()[:2])) if proxy else (0, 0.0)
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", path, "--out", out]
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, errors
    text = f"  {name:28} {wall:7.1f} s wall {usage.ru_utime + usage.ru_stime:7.1f} s CPU"
    if proxy:
        text += f" {len(proxy.requests) - before[0]:6d} requests {sum(server.cpu_times()[:2]) - before[1]:7.1f} s CPU of moto"
    print(text, flush=True)
    return wall


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=20.0)
    arguments = parser.parse_args(words)
    search_path = os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with (
        tempfile.TemporaryDirectory() as scratch,
        MotoProcess() as moto,
        SlowProxy(moto.port, arguments.milliseconds / 1e3) as proxy,
    ):
        keys |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "AWS_EC2_METADATA_DISABLED": "true"}
        os.environ.update(keys)
        import s3fs

        s3fs.S3FileSystem().mkdir("bench")
        server, environment = psutil.Process(moto.pid), os.environ | {"PYTHONPATH": search_path, "OMP_NUM_THREADS": "1"}
        direct, delayed = (1e3 * request_seconds(port) for port in (moto.port, proxy.port))
        path = write_experiment(Path(scratch), arguments.images, arguments.points)
        print(
            f"{arguments.images} images, {arguments.points} points; a request takes {direct:.1f} ms, by the proxy {delayed:.1f} ms"
        )
        walls = [measure(f"disk, {name}", path, f"{scratch}/run", environment) for name in ("first run", "nothing to do")]
        far = [
            measure(f"s3, {name}", path, "s3://bench/run", environment, proxy, server) for name in ("first run", "nothing to do")
        ]
    for name, near_wall, far_wall in zip(("first run", "nothing to do"), walls, far, strict=True):
        print(f"{name}: {far_wall / near_wall:.2f} times as long on s3 (goal 2)")


def test_s3():
    main([])


if __name__ == "__main__":
    main()
