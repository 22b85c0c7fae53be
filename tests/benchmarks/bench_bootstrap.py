"""Time 1,000 bootstrap replicates of box AP at each rate point: 5,000 images and 300,000 boxes, as large as in COCO val2017.

    python tests/benchmarks/bench_bootstrap.py [--images 5000] [--boxes 300000] [--count 1000] [--workers 2] [--points 1]

Prints seconds, the processor seconds that the replicates would take one by one, as for an `aggregate` without `takes_batches`, the
most memory that was used, and AP with its interval. The goal for a table of 25 points is 25 times 7.3 s on one core, a sixth of the
44 s a point that it took when each replicate was summed alone.
"""

import argparse
import functools
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from icmbench.results.bootstrap import Point, draw_replicates, score_intervals
from icmbench.tasks.detection import Detection
from icmbench.tasks.matching import ap_scores

sys.path.insert(0, str(Path(__file__).parent))
from bench_coco_scoring import Labels, Model, detections

ALONE = 40  # Replicates that are timed one by one.


def cpu_seconds():
    """Processor seconds of this process and of its ended children."""
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=300_000)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--points", type=int, default=1, help="rate points, each with detections of its own")
    arguments = parser.parse_args(words)
    dataset = Labels(arguments.images)
    task = Detection(dataset, Model())
    targets = task.targets(dataset.ids)
    rng = np.random.default_rng(3)
    pixels = np.full(arguments.images, 640 * 480)
    bits = pixels * rng.lognormal(-1.5, 0.5, len(pixels))
    points = []
    for number in range(1, arguments.points + 1):
        matches = task.statistics(detections(targets, arguments.boxes, seed=number), targets)
        points.append(Point("synthetic", str(number), functools.partial(ap_scores, matches), bits, pixels))
    names = [metric.name for metric in task.metrics]

    start, cpu_start = time.perf_counter(), cpu_seconds()
    if arguments.workers > 1:
        with ProcessPoolExecutor(arguments.workers) as executor:
            frame = draw_replicates(points, arguments.images, names, arguments.count, executor=executor)
    else:
        frame = draw_replicates(points, arguments.images, names, arguments.count)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
    print(
        f"{arguments.count} replicates of {len(points)} points, {arguments.images} images, {arguments.boxes} boxes: {seconds:.1f} s"
    )
    each = 1000 * cpu / (arguments.count * len(points))
    print(f"{arguments.workers} workers; {cpu:.1f} s of processor time in all, {each:.2f} ms a replicate of a point")
    cpu_start = cpu_seconds()
    alone = replace(points[-1], aggregate=lambda weights: ap_scores(matches, weights))
    draw_replicates([alone], arguments.images, names, ALONE)
    print(f"one by one: {1000 * (cpu_seconds() - cpu_start) / (ALONE + 1):.2f} ms of processor time a replicate")
    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"at most {memory / 1024:.0f} MiB in a process")
    last = frame[frame["point"] == points[-1].point]
    intervals = score_intervals(last)
    intervals["mean_replicate"] = last[last["replicate"] > 0][names].mean().to_numpy()
    print(intervals[["metric", "value", "low", "high", "undefined", "mean_replicate"]].to_string(index=False))


def test_bootstrap():
    main([])


if __name__ == "__main__":
    main()
