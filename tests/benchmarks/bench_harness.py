"""The harness against the bare sum of codec, model and scoring; two workers against one; five tasks against five runs; memory."""

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
from icmbench.harness.store.store import Store
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.executors import in_process, make_units


@pytest.fixture
def job(coco, written):
    """JPEG at four points and the originals, YOLOX on the 79 annotated COCO photographs."""
    tasks = [{"name": "detection", "dataset": "coco", "model": coco["yolox"]}]
    codecs = [{"name": "jpeg", "points": [50, 20, 10, 5]}]
    return written("overhead", datasets={"coco": coco["dataset"]}, codecs=codecs, tasks=tasks)


def test_harness_over_bare_sum(job, tmp_path, in_turns, monkeypatch):
    """What is not codec, model or scoring: reading, hashing, fingerprints, files. Loading and the report are left out.

    Two threads: the model keeps one, the other works ahead. On a busy machine the processor seconds of the main thread say what
    the wall time would be where a second core is free.
    """
    experiment = load_experiment(job)
    experiment.tasks[0].model["threads"] = 1

    def loaded(name):
        bench = Bench(experiment, Store(tmp_path / name))
        task, dataset = bench.tasks["detection"], bench.datasets["coco"]
        task.predict([dataset.read(dataset.ids[0])], dataset.ids[:1])
        return bench, task, dataset

    bench, task, dataset = loaded("bare")
    images = [dataset.read(image_id) for image_id in dataset.ids]
    main = {}

    def bare():
        start = time.thread_time()
        targets = task.targets(dataset.ids)
        for series in bench.series:
            codec = series.codec
            decoded = [codec.decompress(codec.compress(image)) for image in images] if codec else images
            predictions = [prediction for image, i in zip(decoded, dataset.ids) for prediction in task.predict([image], [i])]
            task.aggregate(task.statistics(predictions, targets))
        main.setdefault("bare", []).append(time.thread_time() - start)

    def harness(threads, benches):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        bench = benches.pop()
        start = time.thread_time()
        for outcome in in_process(bench, make_units(bench, 1), False, lambda images: None):
            assert not outcome.failures
        assert not score(bench).missing
        main.setdefault(threads, []).append(time.thread_time() - start)

    benches = {threads: [loaded(f"{threads} {turn}")[0] for turn in range(3)] for threads in (1, 2)}
    runs = {"bare sum": bare} | {f"harness, {n} threads": functools.partial(harness, n, benches[n]) for n in (1, 2)}
    ratio = in_turns(f"one worker, {len(images)} images", runs)["harness, 1 threads"]
    ahead = statistics.median(other / base for other, base in zip(main[2], main["bare"], strict=True))
    print(f"  harness over bare sum: {ratio.cpu:.3f} CPU; main thread, working ahead: {ahead:.3f} CPU (goal 1.05)")
    assert ratio.cpu <= 1.15 and ahead <= 1.05


WORKERS = """
if __name__ == "__main__":  # workers import this file too
    import json, sys
    from pathlib import Path
    from icmbench.harness.experiment import load_experiment
    from icmbench.harness.run import How, run
    result = run(load_experiment(Path(sys.argv[1])), Path(sys.argv[2]), How(workers=int(sys.argv[3])))
    assert not result.missing
    print(json.dumps(result.seconds))
"""


def test_two_workers_over_one(coco, written, tmp_path, in_turns, monkeypatch):
    """Workers of one thread, their start-up and the scoring included, the start of the command and its report left out."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tasks = [{"name": "detection", "dataset": "coco", "model": coco["yolox"]}]
    codecs = [{"name": "jpeg", "points": list(range(5, 100, 4))}]
    job = written("workers", datasets={"coco": coco["dataset"]}, codecs=codecs, tasks=tasks)
    program = tmp_path / "program.py"
    program.write_text(WORKERS)
    seconds = {}

    def workers(count):
        command = [sys.executable, program, job, tmp_path / f"run{count}", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        told = json.loads(done.stdout.splitlines()[-1])
        seconds[count] = told["loop"] + told["scoring"]

    in_turns("workers of one thread, 25 passes over 79 images", {"one": lambda: workers(1), "two": lambda: workers(2)}, repeats=1)
    print(f"  two workers over one, loop and scoring: {seconds[2] / seconds[1]:.3f} wall (goal 0.6 where two cores are free)")


def test_five_tasks_over_one_decode(coco, written, tmp_path, in_turns):
    """One run of five tasks against five runs of one task each, over VVC and JPEG."""
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

    def runs(*parts):
        for part in parts:
            result = run(load_experiment(written("five", tasks=part, **common)), tmp_path / f"run{next(turn)}")
            assert not result.missing

    alternatives = {"one run of five tasks": lambda: runs(tasks), "five runs of one task": lambda: runs(*([t] for t in tasks))}
    runs(tasks)  # libraries are imported
    ratio = in_turns("five tasks, 8 images, 2 points", alternatives, repeats=1)["five runs of one task"]
    print(f"  five runs take {ratio.wall:.2f} times as long, {ratio.cpu:.2f} times the CPU")
    assert ratio.cpu > 1


CHILD = """
import json, resource, sys
from pathlib import Path
from icmbench.harness.experiment import load_experiment
from icmbench.harness.run import run
result = run(load_experiment(Path(sys.argv[1])), Path(sys.argv[2]))
print(json.dumps([len(result.missing), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_does_not_grow_with_the_images(shared, written, tmp_path, threads):
    """The same photographs under ten names, so that only the number of images differs. With two threads work is done ahead."""
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
        path = written("memory", datasets=datasets, codecs=[{"name": "jpeg", "points": [20, 50]}], tasks=tasks)
        command = [sys.executable, "-c", CHILD, path, tmp_path / f"run{copies}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        missing, peaks[copies] = json.loads(done.stdout.split("\n")[-2])
        assert missing == 0
    ratio = peaks[10] / peaks[1]
    few, many = (f"{peak / 2**10:.0f} MiB" for peak in peaks.values())
    print(f"\npeak memory, {threads} threads: {few} for {len(photos)} images, {many} for {10 * len(photos)}: {ratio:.3f}")
    assert ratio <= 1.1
