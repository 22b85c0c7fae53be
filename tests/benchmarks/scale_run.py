"""Makes a run folder as a run of many images, codecs and points leaves it, without computing anything: synthetic shards.

    python tests/benchmarks/scale_run.py FOLDER --images 1000 [--codecs 10] [--points 5] [--replicates 200]

    photos/*.png, instances.json, experiment.yaml -> icmbench's own datasets, codecs, tasks and store -> run/store/

Pictures have 32 x 32 pixels and seven labelled boxes. Rows are written by the store's own methods, under the keys that a run looks
for, 1,000 to a shard, as they are after a run has merged what it wrote. The better a point, the better its predictions.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

PLUGINS = Path(__file__).parent / "plugins"
sys.path.insert(0, str(PLUGINS))
from scale_plugins import CATEGORIES, SIDE  # noqa: E402

from icmbench.harness.commands.run import _tidy  # noqa: E402
from icmbench.harness.config.experiment import load_experiment  # noqa: E402
from icmbench.harness.store.folder import Folder  # noqa: E402
from icmbench.harness.store.keys import pixel_sha256  # noqa: E402
from icmbench.harness.work.bench import Bench  # noqa: E402
from icmbench.harness.work.images import write_images  # noqa: E402
from icmbench.harness.work.lookup import prediction_facts, prediction_key  # noqa: E402

BOXES = 7
ROWS = 1000  # In a shard.
TASKS = ("classification", "detection", "fidelity", "lpips", "layers")


def write_inputs(folder, images, codecs, points, replicates):
    """Write photographs, labels and the experiment file; return the path of the last."""
    random = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    names = [f"{k:06d}.png" for k in range(images)]
    for name in names:
        picture = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "photos" / name, compress_level=0)
    corners = random.integers(0, SIDE // 2, (images * BOXES, 2))
    sizes = random.integers(4, SIDE // 2, (images * BOXES, 2))
    boxes = np.concatenate([corners, sizes], axis=1).tolist()
    classes = random.integers(1, len(CATEGORIES) + 1, images * BOXES).tolist()
    annotations = [
        {"id": k + 1, "image_id": k // BOXES + 1, "category_id": classes[k], "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for k, box in enumerate(boxes)
    ]
    pictures = [{"id": k + 1, "file_name": name, "height": SIDE, "width": SIDE} for k, name in enumerate(names)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CATEGORIES)]
    labels = {"images": pictures, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(labels))
    models = {
        "classification": {"model": {"name": "synthetic-classifier"}, "reference": "original"},
        "detection": {"model": {"name": "synthetic-detector"}},
    }
    sections = {
        "name": "scale",
        "bootstrap": replicates,
        "datasets": {"photos": {"kind": "coco", "images": "photos", "instances": "instances.json"}},
        "codecs": [
            {"name": "synthetic", "label": f"codec {k}", "points": [*range(1, points + 1)], "set": {"number": k}}
            for k in range(codecs)
        ],
        "tasks": [{"name": name, "dataset": "photos", **models.get(name, {})} for name in TASKS],
        "anchor": "codec 0",
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
    return path


def write_rows(path, out):
    """Write source records, streams and predictions of all images of an experiment into its run folder."""
    bench = Bench(load_experiment(path), Folder(out))
    bench.source_pixels.hash_unknown()
    ids = list(bench.datasets["photos"].ids)
    sources = bench.source_pixels.recorded("photos", ids)
    labels = bench.tasks["detection"].targets(ids)
    for number, series in enumerate(bench.series):
        random = np.random.default_rng(number)
        loss = 0.0 if series.is_original else 0.6 / (series.point_value + number % 7 / 10)
        for start in range(0, len(ids), ROWS):
            block = ids[start : start + ROWS]
            pixels = [sources.sha256[i] for i in block]
            if not series.is_original:
                rows = [_stream_row(bench, series, image_id, sources, random) for image_id in block]
                bench.lookup.collection(series).append(rows)
                pixels = [row["sha256"] for row in rows]
            for task in bench.tasks.values():
                if not (series.is_original and task.needs_originals):
                    predictions = PREDICTIONS[task.name](random, loss, labels[start : start + ROWS])
                    rows = [
                        {
                            **prediction_facts(task, image_id, sha256, sources),
                            **prediction,
                            "key": prediction_key(task, image_id, sha256, sources),
                            "seconds": 0.01,
                            "machine": bench.machine,
                        }
                        for image_id, sha256, prediction in zip(block, pixels, predictions, strict=True)
                    ]
                    bench.lookup.predictions_of(task).append(rows)
    write_images(bench)
    _tidy(bench)


def _stream_row(bench, series, image_id, sources, random):
    data = series.codec.stream(sources.sha256[image_id])
    return {
        "key": bench.lookup.streams(series, [image_id], sources, []).keys[image_id],
        "source": sources.sha256[image_id],
        "facts": "",
        "stream": "",
        "data": data,
        "height": SIDE,
        "width": SIDE,
        "sha256": pixel_sha256(series.codec.decompress(data)),
        "machine": bench.machine,
        "encode_seconds": 0.01 * random.random(),
        "decode_seconds": 0.001 * random.random(),
        **series.measure(data),
    }


def _classification(random, loss, labels):
    """The right class is that of the original, which is a function of the image's number, unless a draw says otherwise."""
    right = np.array([label["image_id"] for label in labels]) * 7919 % 1000
    classes = (right[:, None] + np.arange(5)) % 1000
    wrong = random.random(len(labels)) < loss
    classes[wrong] += random.integers(1, 6, wrong.sum())[:, None]
    scores = np.sort(random.random((len(labels), 5)).astype(np.float32), axis=1)[:, ::-1]
    return [{"classes": row % 1000, "scores": values} for row, values in zip(classes.astype(np.int32), scores)]


def _detection(random, loss, labels):
    """As many boxes as labels: these, moved by some pixels, some of another class."""
    predictions = []
    for label in labels:
        boxes = label["boxes"].astype(np.float32)
        count = len(boxes)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        corners += random.normal(0, 0.3 + 2 * loss, corners.shape).astype(np.float32)
        classes = np.where(random.random(count) < loss, random.integers(0, len(CATEGORIES), count), label["classes"])
        scores = random.random(count, dtype=np.float32)
        predictions.append({"boxes": corners.ravel(), "scores": scores, "classes": classes.astype(np.int32)})
    return predictions


def _fidelity(random, loss, labels):
    psnr = random.normal(40 - 20 * loss, 2, len(labels)).tolist()
    return [{"psnr": value, "ms_ssim": 1 - loss / 10} for value in psnr]


def _lpips(random, loss, labels):
    return [{"distance": value} for value in (loss * random.random(len(labels))).tolist()]


def _layers(random, loss, labels):
    return [{"differences": row} for row in loss * random.random((len(labels), 16))]


PREDICTIONS = dict(zip(TASKS, (_classification, _detection, _fidelity, _lpips, _layers), strict=True))


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--codecs", type=int, default=10)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--replicates", type=int, default=200)
    arguments = parser.parse_args(words)
    path = write_inputs(arguments.folder, arguments.images, arguments.codecs, arguments.points, arguments.replicates)
    write_rows(path, arguments.folder / "run")


if __name__ == "__main__":
    main()
