"""The harness against codec, model and scoring alone; two workers against one; one run of five tasks against five runs; memory."""

import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time

import pytest

from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.derive.scoring import score
from icmbench.harness.processes.executors import in_process, make_units
from icmbench.harness.store.folder import Folder
from icmbench.harness.work.bench import Bench


@pytest.fixture
def experiment_path(coco, write_experiment):
    """JPEG at four points, and the originals; YOLOX on the 79 annotated COCO photographs."""
    tasks = [{"name": "detection", "dataset": "coco", "model": coco["yolox"]}]
    codecs = [{"name": "jpeg", "points": [50, 20, 10, 5]}]
    return write_experiment("overhead", datasets={"coco": coco["dataset"]}, codecs=codecs, tasks=tasks)


def test_harness_over_bare_sum(experiment_path, tmp_path, in_turns, monkeypatch):
    """Measure what the harness adds to codec, model and scoring: reading, hashing, fingerprints and files.

    Loading and the report are left out. With two threads, the model uses one, and the other prefetches. The processor seconds of
    the main thread show what the wall time would be on a machine with a free second core.
    """
    experiment = load_experiment(experiment_path)
    experiment.tasks[0].model["threads"] = 1

    def load_bench(name):
        bench = Bench(experiment, Folder(tmp_path / name))
        task, dataset = bench.tasks["detection"], bench.datasets["coco"]
        task.predict([dataset.read(dataset.ids[0])], dataset.ids[:1])
        return bench, task, dataset

    bench, task, dataset = load_bench("bare")
    images = [dataset.read(image_id) for image_id in dataset.ids]
    main_thread_seconds = {}

    def bare():
        start = time.thread_time()
        targets = task.targets(dataset.ids)
        for series in bench.series:
            codec = series.codec
            decoded = [codec.decompress(codec.compress(image)) for image in images] if codec else images
            predictions = [prediction for image, i in zip(decoded, dataset.ids) for prediction in task.predict([image], [i])]
            task.aggregate(task.statistics(predictions, targets))
        main_thread_seconds.setdefault("bare", []).append(time.thread_time() - start)

    def harness(threads, benches):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        bench = benches.pop()
        start = time.thread_time()
        for outcome in in_process(bench, make_units(bench, 1), False, lambda images: None):
            assert not outcome.failures
        assert not score(bench).missing
        main_thread_seconds.setdefault(threads, []).append(time.thread_time() - start)

    benches = {threads: [load_bench(f"{threads} {turn}")[0] for turn in range(3)] for threads in (1, 2)}
    runs = {"bare sum": bare} | {f"harness, {n} threads": functools.partial(harness, n, benches[n]) for n in (1, 2)}
    ratio = in_turns(f"one worker, {len(images)} images", runs)["harness, 1 threads"]
    pairs = zip(main_thread_seconds[2], main_thread_seconds["bare"], strict=True)
    prefetching = statistics.median(harness_seconds / bare_seconds for harness_seconds, bare_seconds in pairs)
    print(f"  harness over bare sum: {ratio.cpu:.3f} CPU; main thread, prefetching: {prefetching:.3f} CPU (goal 1.05)")
    assert ratio.cpu <= 1.15 and prefetching <= 1.05


WORKERS_PROGRAM = """
if __name__ == "__main__":  # Workers import this file too.
    import json, sys
    from pathlib import Path
    from icmbench.harness.commands.computing import RunOptions
    from icmbench.harness.commands.run import run
    from icmbench.harness.config.experiment import load_experiment
    result = run(load_experiment(Path(sys.argv[1])), Path(sys.argv[2]), RunOptions(workers=int(sys.argv[3])))
    assert not result.missing
    print(json.dumps(result.seconds))
"""


def test_two_workers_over_one(coco, write_experiment, tmp_path, in_turns, monkeypatch):
    """Compare runs by workers of one thread each. Their start-up and the scoring count; the command's start and report do not."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tasks = [{"name": "detection", "dataset": "coco", "model": coco["yolox"]}]
    codecs = [{"name": "jpeg", "points": list(range(5, 100, 4))}]
    path = write_experiment("workers", datasets={"coco": coco["dataset"]}, codecs=codecs, tasks=tasks)
    program = tmp_path / "program.py"
    program.write_text(WORKERS_PROGRAM)
    seconds = {}

    def workers(count):
        command = [sys.executable, program, path, tmp_path / f"run{count}", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        stage_seconds = json.loads(done.stdout.splitlines()[-1])
        seconds[count] = stage_seconds["loop"] + stage_seconds["scoring"]

    in_turns("workers of one thread, 25 passes over 79 images", {"one": lambda: workers(1), "two": lambda: workers(2)}, repeats=1)
    print(f"  two workers over one, loop and scoring: {seconds[2] / seconds[1]:.3f} wall (goal 0.6 where two cores are free)")


def test_five_tasks_over_one_decode(coco, write_experiment, tmp_path, in_turns):
    """Compare one run of five tasks with five runs of one task each, over VVC and JPEG."""
    tasks = [
        {"name": "detection", "label": "yolox", "dataset": "coco", "model": coco["yolox"]},
        {"name": "detection", "label": "ssd", "dataset": "coco", "model": {"name": "ssd-mobilenet"}},
        {"name": "classification", "label": "lite0", "model": {"name": "efficientnet-lite0"}, "reference": "original"},
        {"name": "classification", "label": "lite2", "model": {"name": "efficientnet-lite2"}, "reference": "original"},
        {"name": "fidelity"},
    ]
    tasks = [{"dataset": "coco", **task} for task in tasks]
    common = {
        "datasets": {"coco": coco["dataset"] | {"limit": 8}},
        "codecs": [{"name": "vvenc", "points": [32]}, {"name": "jpeg", "points": [20]}],
    }
    turn = itertools.count()

    def run_all(*task_lists):
        for task_list in task_lists:
            result = run(load_experiment(write_experiment("five", tasks=task_list, **common)), tmp_path / f"run{next(turn)}")
            assert not result.missing

    alternatives = {
        "one run of five tasks": lambda: run_all(tasks),
        "five runs of one task": lambda: run_all(*([t] for t in tasks)),
    }
    run_all(tasks)  # Import the libraries before the time is taken.
    ratio = in_turns("five tasks, 8 images, 2 points", alternatives, repeats=1)["five runs of one task"]
    print(f"  five runs take {ratio.wall:.2f} times as long, {ratio.cpu:.2f} times the CPU")
    assert ratio.cpu > 1


MEMORY_PROGRAM = """
import json, resource, sys
from pathlib import Path
from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment
result = run(load_experiment(Path(sys.argv[1])), Path(sys.argv[2]))
print(json.dumps([len(result.missing), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_does_not_grow_with_the_images(shared, write_experiment, tmp_path, threads):
    """Compare photographs under one and under ten names each, so that only the number of images differs; two threads prefetch."""
    photos = sorted((shared / "data" / "imagenet" / "val").iterdir())[:40]
    peaks = {}
    for copies in (1, 10):
        folder = tmp_path / f"x{copies}"
        folder.mkdir()
        for photo in photos:
            for copy in range(copies):
                (folder / f"{photo.stem}-{copy}{photo.suffix}").symlink_to(photo)
        tasks = [{"name": "classification", "dataset": "photos", "model": {"name": "efficientnet-lite0"}, "reference": "original"}]
        datasets = {"photos": {"kind": "images", "images": str(folder)}}
        path = write_experiment("memory", datasets=datasets, codecs=[{"name": "jpeg", "points": [20, 50]}], tasks=tasks)
        command = [sys.executable, "-c", MEMORY_PROGRAM, path, tmp_path / f"run{copies}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        missing, peaks[copies] = json.loads(done.stdout.split("\n")[-2])
        assert missing == 0
    ratio = peaks[10] / peaks[1]
    few, many = (f"{peak / 2**10:.0f} MiB" for peak in peaks.values())
    print(f"\npeak memory, {threads} threads: {few} for {len(photos)} images, {many} for {10 * len(photos)}: {ratio:.3f}")
    assert ratio <= 1.1
