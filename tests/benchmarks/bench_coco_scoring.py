"""Box AP of 5,000 images and 300,000 boxes: this project against pycocotools and faster-coco-eval, in one process.

    python tests/benchmarks/bench_coco_scoring.py [--images 5000] [--boxes 300000]

Checks that all give the same AP, and prints seconds and how many times as fast as pycocotools each is (the goal is 4 or more); then
the seconds of one reweighted score, which a bootstrap computes once per replicate. Sizes, classes and numbers of objects follow
COCO val2017. Half of the detections are jittered labels, some of them duplicates or of a wrong class; the others are random boxes.
"""

import argparse
import contextlib
import io
import time

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from icmbench.tasks.detection import Detection

CLASSES = 80


class Labels:
    """A dataset of synthetic labels, as targets and in COCO's format."""

    name, preprocessing, limit = "synthetic", "native", None

    def __init__(self, images, objects=7.3, seed=0):
        rng = np.random.default_rng(seed)
        self.ids = [f"{k:012d}.jpg" for k in range(images)]
        self._targets = []
        frequency = 1 / np.arange(1, CLASSES + 1)
        for k in range(images):
            n = rng.poisson(objects)
            image_classes = rng.choice(CLASSES, size=max(1, n // 3), p=frequency / frequency.sum())
            sides = np.exp(rng.normal(4, 1, (n, 2))).clip(4, 400)
            boxes = np.concatenate([rng.random((n, 2)) * (640 - sides).clip(1), sides], axis=1)
            self._targets.append(
                {
                    "image_id": k + 1,
                    "boxes": boxes.round(2),
                    "classes": rng.choice(image_classes, n),
                    "areas": boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 0.9, n),
                    "crowd": rng.random(n) < 0.012,
                }
            )

    def annotated(self, kind):
        return self.ids

    def categories(self, kind):
        return [str(k) for k in range(CLASSES)]

    def targets(self, kind, ids):
        return self._targets

    def coco(self):
        rows = []
        for target in self._targets:
            for box, label, area, crowd in zip(target["boxes"], target["classes"], target["areas"], target["crowd"]):
                row = {"id": len(rows) + 1, "image_id": target["image_id"], "bbox": box.tolist(), "category_id": int(label)}
                rows.append(row | {"area": float(area), "iscrowd": int(crowd)})
        images = [{"id": target["image_id"]} for target in self._targets]
        return {"images": images, "annotations": rows, "categories": [{"id": k} for k in range(CLASSES)]}


class Model:
    """A detector of which only the categories are used, because the predictions are synthetic."""

    task, fingerprint = "detection", "synthetic"
    categories = tuple(str(k) for k in range(CLASSES))


def detections(targets, boxes, seed=1):
    """Synthetic predictions of the detection task for each target, with `boxes` boxes in total."""
    rng = np.random.default_rng(seed)
    predictions = []
    for target, n in zip(targets, rng.multinomial(boxes, np.full(len(targets), 1 / len(targets)))):
        corners = np.zeros((n, 4))
        classes = rng.integers(0, CLASSES, n)
        sides = np.exp(rng.normal(4, 1, (n, 2)))
        corners[:, :2] = rng.random((n, 2)) * 500
        corners[:, 2:] = corners[:, :2] + sides
        if len(target["boxes"]):
            near = np.flatnonzero(rng.random(n) < 0.5)
            indices = rng.integers(0, len(target["boxes"]), len(near))
            box = target["boxes"][indices]
            truth = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)
            corners[near] = truth + rng.normal(0, 0.06, truth.shape) * np.tile(box[:, 2:], 2)
            classes[near] = np.where(rng.random(len(near)) < 0.8, target["classes"][indices], classes[near])
        scores = rng.random(n, dtype=np.float32)
        predictions.append({"boxes": corners.astype(np.float32).ravel(), "scores": scores, "classes": classes.astype(np.int32)})
    return predictions


def coco_results(predictions):
    """The predictions in COCO's result format."""
    rows = []
    for k, prediction in enumerate(predictions):
        boxes = prediction["boxes"].reshape(-1, 4).tolist()
        for (x1, y1, x2, y2), score, label in zip(boxes, prediction["scores"], prediction["classes"]):
            rows.append({"image_id": k + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score), "category_id": int(label)})
    return rows


def run_cocoeval(evaluator, coco, labels, rows):
    """Return the seconds that loadRes, evaluate, accumulate and summarize take together, and the six AP numbers in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco()
        truth.dataset = labels
        truth.createIndex()
        start = time.perf_counter()
        run = evaluator(truth, truth.loadRes(rows), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return time.perf_counter() - start, 100 * np.array(run.stats[:6])


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=300_000)
    arguments = parser.parse_args(words)
    dataset = Labels(arguments.images)
    task = Detection(dataset, Model())
    targets = task.targets(dataset.ids)
    predictions = detections(targets, arguments.boxes)

    start = time.perf_counter()
    statistics = task.statistics(predictions, targets)
    scores = list(task.aggregate(statistics).values())
    seconds = time.perf_counter() - start
    weights = np.random.default_rng(2).multinomial(arguments.images, np.full(arguments.images, 1 / arguments.images))
    replicates = []
    for _ in range(10):
        start = time.perf_counter()
        task.aggregate(statistics, weights.astype(np.float64))
        replicates.append(time.perf_counter() - start)

    reference, expected = run_cocoeval(COCOeval, COCO, dataset.coco(), coco_results(predictions))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    print(f"{arguments.images} images, {arguments.boxes} boxes, AP {scores[0]:.3f}, equal to 1e-9")
    print(f"pycocotools        {reference:7.2f} s")
    with contextlib.suppress(ModuleNotFoundError):
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster

        faster, numbers = run_cocoeval(COCOeval_faster, FasterCOCO, dataset.coco(), coco_results(predictions))
        np.testing.assert_allclose(numbers, expected, rtol=0, atol=1e-9)
        print(f"faster-coco-eval   {faster:7.2f} s, {reference / faster:5.1f} times as fast")
    print(f"icmbench           {seconds:7.2f} s, {reference / seconds:5.1f} times as fast")
    print(f"a reweighted score {np.median(replicates):7.3f} s")


def test_coco_scoring():
    main([])


if __name__ == "__main__":
    main()
