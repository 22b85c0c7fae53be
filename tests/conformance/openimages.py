"""Compare this project's average precision of Open Images with the reference evaluator's on prepared predictions.

    python tests/conformance/openimages.py FOLDER

FOLDER holds `det` and `seg`, or is one of them. In each lie boxes.csv, labels.csv and, for masks, masks.csv, as MPEG publishes
them; predictions*.json, a list of images with their detections; and expected*.json, the values of the reference evaluator. This
program makes photographs of the stated sizes (only their sizes matter), opens them with the dataset `openimages`, lets a model
that repeats the predictions run through `detection` or `instance_segmentation`, and prints the difference of every class. It exits
with 1 if one is beyond 1e-12, or if other numbers of labels, entries or right detections were counted.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from icmbench.tasks.datasets.openimages import OpenImages
from icmbench.tasks.detection import Detection
from icmbench.tasks.instance_segmentation import InstanceSegmentation
from icmbench.tasks.models.coco_names import COCO
from icmbench.tasks.openimages_ap import average_precision

LIMIT = 1e-12
TASKS: dict[bool, type[Detection]] = {False: Detection, True: InstanceSegmentation}


class Repeater:
    """A model with COCO's categories that repeats prepared detections, image after image."""

    task = ("detection", "instance_segmentation")
    fingerprint = "repeater"
    categories = tuple(COCO.values())

    def __init__(self, images: list[dict[str, Any]]) -> None:
        self._images = images

    def __call__(self, pixels: Any) -> list[dict[str, Any]]:
        return [self._output(image["instances"]) for image in self._images]

    def _output(self, instances: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "boxes": np.array([each["bbox"] for each in instances], np.float32).reshape(-1, 4),
            "scores": np.array([each["score"] for each in instances], np.float32),
            "classes": np.array([self.categories.index(each["class"]) for each in instances], np.int64),
            "masks": [each["mask"] for each in instances if "mask" in each],
        }


def open_dataset(folder: Path, sizes: Mapping[str, tuple[int, int]], photographs: Path) -> OpenImages:
    """The tables of a folder, with photographs of these widths and heights."""
    for image_id, size in sizes.items():
        Pillow.new("1", size).save(photographs / f"{image_id}.png")
    masks = folder / "masks.csv"
    return OpenImages(
        photographs, boxes=folder / "boxes.csv", labels=folder / "labels.csv", masks=masks if masks.exists() else None
    )


def listed_sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Width and height of all images that the tables name: as the table of masks states them, else any."""
    sizes = {}
    for name in ("boxes.csv", "labels.csv", "masks.csv"):
        if (folder / name).exists():
            with (folder / name).open(newline="") as file:
                for row in csv.DictReader(file):
                    sizes[row["ImageID"]] = (int(row.get("ImageWidth", 64)), int(row.get("ImageHeight", 64)))
    return sizes


def score(dataset: OpenImages, images: list[dict[str, Any]], group_weight: float) -> dict[str, Any]:
    """AP and counts of every class, in the form of the expected values; the images in the order of the predictions."""
    has_masks = "masks" in dataset.targets("instances", dataset.ids[:1])[0]
    kind = type("Weighted", (TASKS[has_masks],), {"group_weight": group_weight})
    # Nothing was looked for in an image that no table names.
    images = [image for image in images if f"{image['image_id']}.png" in dataset.ids]
    given = {image["image_id"] for image in images}
    # In an image that the predictions leave out, nothing was detected; its labels count.
    silent = [image_id for image_id in dataset.ids if image_id.removesuffix(".png") not in given]
    targets = dataset.targets("instances", silent)
    images = [
        *images,
        *(
            {"image_id": image_id.removesuffix(".png"), "height": target["height"], "width": target["width"], "instances": []}
            for image_id, target in zip(silent, targets, strict=True)
        ),
    ]
    task = kind(dataset, Repeater(images))
    ids = [f"{image['image_id']}.png" for image in images]
    pixels = [np.broadcast_to(np.zeros(3, np.uint8), (image["height"], image["width"], 3)) for image in images]
    entries = task.statistics(task.predict(pixels, ids), task.targets(ids))
    values = average_precision(entries)
    counts = {}
    for index, name in enumerate(dataset.categories("instances")):
        chosen = entries.category == index
        counts[name] = {
            "num_gt": float(entries.label_weight[entries.label_category == index].sum()),
            "entries": int(chosen.sum()),
            "tp": float(entries.right[chosen].sum()),
        }
    ap = dict(zip(counts, values.tolist(), strict=True))
    return {"mAP": task.aggregate(entries)["mAP"] / 100, "AP": ap, "counts": counts}


def compare(title: str, ours: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Print the difference of the mean and of every class, and return whether all are within the limit."""
    print(f"{title}: mAP {ours['mAP']:.16f}, expected {expected['mAP']:.16f}, difference {abs(ours['mAP'] - expected['mAP']):.1e}")
    passed = abs(ours["mAP"] - expected["mAP"]) <= LIMIT
    for name, value in expected["AP"].items():
        mine = ours["AP"].get(name, math.nan)  # A class that no table names has no label.
        difference = 0.0 if value is None and math.isnan(mine) else abs(mine - (math.nan if value is None else value))
        counted = expected.get("counts", {}).get(name)
        same_counts = counted is None or value is None or ours["counts"].get(name) == counted
        good = difference <= LIMIT and same_counts
        shown = "none" if value is None else f"{value:.16f}"
        note = "" if same_counts else f"   counted {ours['counts'].get(name)}, expected {counted}"
        print(f"    {name:16} {shown:>18}   {difference:.1e}   {'ok' if good else 'FAIL'}{note}")
        passed &= good
    return passed


def check_joined(folder: Path, dataset: OpenImages, box_rows: list[int]) -> bool:
    """Print and return whether each mask belongs to the box that is expected, by its row in the table of boxes."""
    with (folder / "boxes.csv").open(newline="") as file:
        boxes = [*csv.DictReader(file)]
    joined = 0
    for image_id, target in zip(dataset.ids, dataset.targets("instances", dataset.ids), strict=True):
        for corners, mask in zip(target["corners"].tolist(), target["masks"], strict=True):
            if mask is not None:
                box = boxes[box_rows[mask.line - 2]]  # The first row is line 2.
                expected = [float(box[edge]) for edge in ("XMin", "YMin", "XMax", "YMax")]
                joined += image_id == f"{box['ImageID']}.png" and corners == expected
    print(f"{folder.name}, boxes of the masks: {joined} of {len(box_rows)}   {'ok' if joined == len(box_rows) else 'FAIL'}")
    return joined == len(box_rows)


def check(folder: Path) -> bool:
    """Compare all predictions of one folder with their expected values."""
    images = json.loads((folder / "predictions.json").read_text())
    sizes = listed_sizes(folder)
    sizes |= {image["image_id"]: (image["width"], image["height"]) for image in images if image["image_id"] in sizes}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_dataset(folder, sizes, Path(scratch))
        expected = json.loads((folder / "expected.json").read_text())
        passed = [
            compare(
                f"{folder.name}, groups of weight {weight}", score(dataset, images, weight), expected[f"group_of_weight_{weight}"]
            )
            for weight in (1, 0)
        ]
        ties = folder / "predictions_ties.json"
        if ties.exists():
            stable = json.loads((folder / "expected_ties.json").read_text())["stable_sort"]
            passed.append(compare(f"{folder.name}, equal scores", score(dataset, json.loads(ties.read_text()), 1), stable))
        rows = folder / "mask_box_rows.json"
        if rows.exists():
            passed.append(check_joined(folder, dataset, json.loads(rows.read_text())))
    return all(passed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="conformance data: tables, predictions and expected values")
    given = parser.parse_args().folder
    folders = [path.parent for path in [given / "expected.json", *sorted(given.glob("*/expected.json"))] if path.is_file()]
    if not folders:
        sys.exit(f"{given}: neither it nor a folder in it holds an expected.json")
    passed = [check(folder) for folder in folders]
    print("conformance passed" if all(passed) else "conformance FAILED")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
