"""Harness wall time over the bare sum of codec, model and scoring time on the same work; peak memory for ten times the images.

Run with `tox run -e bench`; needs the labelled COCO photographs of ICMBENCH_TEST_DATA.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

POINTS = [50, 20, 10, 5]


@pytest.fixture
def job(shared, tmp_path):
    """JPEG at four points and the originals, YOLOX on the 79 annotated COCO photographs."""
    coco = shared / "data" / "coco"
    path = tmp_path / "experiment.yaml"
    instances = str(coco / "annotations" / "instances_val2017.json")
    blocks = {
        "name": "overhead",
        "datasets": {"coco": {"kind": "coco", "images": str(coco / "val2017"), "instances": instances}},
        "codecs": [{"name": "jpeg", "points": POINTS}],
        "tasks": [
            {
                "name": "detection",
                "dataset": "coco",
                "model": {"name": "yolox-onnx", "path": str(shared / "models" / "yolox_nano.onnx")},
            }
        ],
    }
    path.write_text(yaml.safe_dump(blocks))
    return path


def test_overhead_with_one_worker(job, tmp_path):
    from icmbench.harness.bench import Bench
    from icmbench.harness.experiment import load_experiment
    from icmbench.harness.run import run
    from icmbench.harness.store import Store

    experiment = load_experiment(job)
    bench = Bench(experiment, Store(tmp_path / "bare"))
    task, dataset = bench.tasks["detection"], bench.datasets["coco"]
    task.predict([dataset.read(dataset.ids[0])], dataset.ids[:1])  # the model is loaded, as it is once in a long run
    ratios = []
    for trial in range(5):
        bare = 0.0
        images = [dataset.read(image_id) for image_id in dataset.ids]
        targets = task.targets(dataset.ids)
        for series in bench.series:
            start = time.perf_counter()
            codec = series.codec
            decoded = [codec.decompress(codec.compress(image)) for image in images] if codec else images
            predictions = [prediction for image, i in zip(decoded, dataset.ids) for prediction in task.predict([image], [i])]
            task.aggregate(task.statistics(predictions, targets))
            bare += time.perf_counter() - start
        result = run(experiment, tmp_path / f"run{trial}")
        assert not result.missing
        wall = result.seconds["loop"] + result.seconds["scoring"]
        ratios.append(wall / bare)
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result.seconds.items())
        print(f"\nbare {bare:.2f} s, harness {wall:.2f} s ({parts}), ratio {wall / bare:.3f}")
    median = statistics.median(ratios)
    print(f"harness over bare sum: {median:.3f} (median of {len(ratios)}, {min(ratios):.3f} to {max(ratios):.3f}; at most 1.10)")
    assert median <= 1.10


CHILD = """
import json, resource, sys
from pathlib import Path
from icmbench.harness.experiment import load_experiment
from icmbench.harness.run import run
result = run(load_experiment(Path(sys.argv[1])), Path(sys.argv[2]))
print(json.dumps([len(result.missing), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def test_memory_does_not_grow_with_the_images(shared, tmp_path):
    """The same photographs under ten names, so that only the number of images differs."""
    photos = sorted((shared / "data" / "imagenet" / "val").iterdir())[:40]
    peaks = {}
    for copies in (1, 10):
        folder = tmp_path / f"x{copies}"
        folder.mkdir()
        for photo in photos:
            for copy in range(copies):
                (folder / f"{photo.stem}-{copy}{photo.suffix}").symlink_to(photo)
        path = Path(tmp_path, f"x{copies}.yaml")
        tasks = [{"name": "classification", "dataset": "photos", "model": {"name": "efficientnet-lite0"}, "reference": "original"}]
        datasets = {"photos": {"kind": "images", "images": str(folder)}}
        blocks = {"name": "memory", "datasets": datasets, "codecs": [{"name": "jpeg", "points": [20, 50]}], "tasks": tasks}
        path.write_text(yaml.safe_dump(blocks))
        command = [sys.executable, "-c", CHILD, path, tmp_path / f"run{copies}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        missing, peaks[copies] = json.loads(done.stdout.split("\n")[-2])
        assert missing == 0
    print(f"\npeak memory: {peaks[1] / 2**10:.0f} MiB for {len(photos)} images, {peaks[10] / 2**10:.0f} MiB for {10 * len(photos)}")
    assert peaks[10] <= 1.1 * peaks[1]
