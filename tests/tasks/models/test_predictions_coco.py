"""Predictions made elsewhere on real photographs: scores are those of COCO's own evaluation of the same files."""

import contextlib
import io
import json

import numpy as np
import pytest

from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.detection import Detection
from icmbench.tasks.instance_segmentation import InstanceSegmentation
from icmbench.tasks.keypoints import Keypoints
from icmbench.tasks.models.predictions import Predictions
from icmbench.tasks.panoptic import PanopticSegmentation

from .prediction_folders import write_manifest


@pytest.mark.parametrize(("kind", "iou_type", "task_class"), [
    ("boxes", "bbox", Detection), ("masks", "segm", InstanceSegmentation), ("keypoints", "keypoints", Keypoints),
])  # fmt: skip
def test_scores_are_those_of_cocos_evaluation_of_the_same_file(shared, tmp_path, kind, iou_type, task_class):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = shared / "data" / "coco"
    name = "person_keypoints" if kind == "keypoints" else "instances"
    annotations = coco / "annotations" / f"{name}_val2017.json"
    dataset = Coco(coco / "val2017", **{"keypoints" if kind == "keypoints" else "instances": annotations})
    images = {image_id: dataset.read(image_id) for image_id in dataset.ids}
    folder = write_manifest(tmp_path / "predictions", images)
    with contextlib.redirect_stdout(io.StringIO()):
        labels = COCO(annotations)
        results = disturbed(labels, kind)
        (folder / f"{kind}.json").write_text(json.dumps([spelled_out(result) for result in results]))
        evaluation = COCOeval(labels, labels.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    task = task_class(dataset, Predictions(folder, kind, annotations=annotations))
    predictions = task.predict([images[image_id] for image_id in task.ids], task.ids)
    scores = task.aggregate(task.statistics(predictions, task.targets(task.ids)))
    stats = 100 * evaluation.stats
    expected = stats[:5] if kind == "keypoints" else stats[:6]
    assert list(scores.values()) == pytest.approx(expected.tolist(), abs=1e-4), "COCO's boxes are float64, ours float32"
    assert 5 < scores["AP"] < 95


def disturbed(labels, kind):
    """Results made of labels: some are left out, and the others get random scores and are moved a little."""
    from pycocotools.mask import encode

    random = np.random.default_rng(0)
    results = []
    for annotation in labels.dataset["annotations"]:
        if annotation["iscrowd"] or random.random() < 0.2 or (kind == "keypoints" and not annotation["num_keypoints"]):
            continue
        result = {key: annotation[key] for key in ("image_id", "category_id")} | {"score": float(random.random())}
        if kind == "boxes":
            result["bbox"] = (np.array(annotation["bbox"]) + random.uniform(0, 6, 4)).tolist()
        elif kind == "masks":
            mask = np.roll(labels.annToMask(annotation), int(random.integers(0, 6)), axis=1)
            found = encode(np.asfortranarray(mask))
            result["segmentation"] = {"size": found["size"], "counts": found["counts"].decode()}
        else:
            points = np.array(annotation["keypoints"], float).reshape(-1, 3)
            points[:, :2] += random.normal(0, 3, (17, 2))
            result["keypoints"] = points.ravel().tolist()
        results.append(result)
    return results


def spelled_out(result):
    """A result whose run lengths are a list of numbers, for half of the masks, which COCO's own reader does not take."""
    from pycocotools.mask import decode

    if "segmentation" not in result or result["score"] < 0.5:
        return result
    mask = decode(result["segmentation"])
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F")])))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return result | {"segmentation": {"size": list(mask.shape), "counts": counts}}


def test_panoptic_labels_as_predictions_are_perfect(shared, tmp_path):
    coco = shared / "data" / "coco"
    annotations = coco / "annotations" / "panoptic_val2017.json"
    dataset = Coco(coco / "val2017", panoptic=annotations, panoptic_masks=coco / "panoptic_val2017", limit=5)
    images = {image_id: dataset.read(image_id) for image_id in dataset.ids}
    folder = write_manifest(tmp_path / "predictions", images)
    document = json.loads(annotations.read_text())
    numbers = {entry["id"] for entry in document["images"] if entry["file_name"] in images}
    listed = [entry for entry in document["annotations"] if entry["image_id"] in numbers]
    (folder / "panoptic.json").write_text(json.dumps({"annotations": listed}))
    (folder / "panoptic").symlink_to(coco / "panoptic_val2017")
    task = PanopticSegmentation(dataset, Predictions(folder, "panoptic", annotations=annotations))
    predictions = task.predict([images[image_id] for image_id in task.ids], task.ids)
    assert task.aggregate(task.statistics(predictions, task.targets(task.ids)))["PQ"] == 100
