"""Annotations in COCO's formats that stay valid keep their scores, and segmentations become masks or are refused."""

import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from icmbench.tasks.datasets.segmentations import run_counts

from .coco_files import FILES, HEIGHT, KINDS, TASKS, WIDTH, instances, panoptic, run_lengths, scores, write_pictures

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode under numpy 2.


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("coco"))


def reordered(data):
    return {key: values[::-1] if isinstance(values, list) else values for key, values in reversed(data.items())}


def with_extra_keys(data):
    return {
        key: [{"extra": {"nested": [None, math.nan]}, **row, "note": "x"} for row in values] if isinstance(values, list) else values
        for key, values in data.items()
    } | {"unknown": None}


def without(*keys, null=False):
    def change(data):
        for values in data.values():
            for row in values if isinstance(values, list) else []:
                for inner in [row, *row.get("segments_info", [])]:
                    if inner.get("iscrowd") != 1:
                        inner |= {key: None for key in keys if key in inner} if null else {}
                        for key in [] if null else keys:
                            inner.pop(key, None)
        return {key: values for key, values in data.items() if key not in keys}

    return change


def with_text_image_ids(data):
    for row in data["images"]:
        row["id"] = f"picture {row['id']}"
    for row in data["annotations"]:
        row["image_id"] = f"picture {row['image_id']}"
    return data


def with_an_image_listed_twice(data):
    data["images"].append(dict(data["images"][0]))
    return data


OPTIONAL = ("info", "supercategory", "iscrowd", "area", "width", "height", "num_keypoints", "skeleton")
VALID = {
    "reordered": reordered,
    "extra keys": with_extra_keys,
    "optional keys dropped": without(*OPTIONAL),
    "optional keys null": without(*OPTIONAL, null=True),
    "width null": without("width", null=True),
    "text image ids": with_text_image_ids,
    "an image twice": with_an_image_listed_twice,
}


@pytest.mark.parametrize("change", VALID)
@pytest.mark.parametrize("kind", TASKS)
def test_files_that_stay_valid_keep_their_scores(root, kind, change):
    expected = scores(root, kind, json.dumps(FILES[KINDS[kind]]()))
    assert scores(root, kind, json.dumps(VALID[change](FILES[KINDS[kind]]()))) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_boxes_need_no_segmentation(root):
    expected = pytest.approx(scores(root, "bbox", json.dumps(instances())), nan_ok=True)
    for dropped in ({}, {"null": True}):
        assert scores(root, "bbox", json.dumps(without("segmentation", **dropped)(instances()))) == expected
    broken = instances()
    for row in broken["annotations"]:
        row["segmentation"] = [1, 2]  # Boxes with stated areas are scored whatever stands here; masks are not.
    assert scores(root, "bbox", json.dumps(broken)) == expected
    assert scores(root, "segm", json.dumps(broken)) is None


def test_segments_score_what_panopticapi_printed(root):
    """Its own numbers on these files (commit 7bb4655), because the rules above are written out by the authors of this project."""
    expected = {"PQ": 65.20061728395062, "SQ": 80.32407407407408, "RQ": 80.55555555555554}
    expected |= {"PQ_th": 55.092592592592595, "PQ_st": 85.41666666666667}
    assert scores(root, "panoptic", json.dumps(panoptic())) == pytest.approx(expected, abs=1e-9)


def test_polygons_of_two_points_are_left_out_and_counted(root, caplog):
    expected = scores(root, "segm", json.dumps(instances()))
    data = instances()
    data["annotations"][0]["segmentation"].insert(0, [4, 4, 24, 24])
    data["annotations"][1]["segmentation"] += [[1, 1], []]
    assert scores(root, "segm", json.dumps(data)) == pytest.approx(expected, nan_ok=True)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "3 polygons of fewer than three points" in warnings[0] and "instances.json" in warnings[0]


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_that_do_not_add_up_are_refused(root, compressed):
    for change in (
        lambda n: n[:-1],
        lambda n: n[:-2],
        lambda n: n + n[-1:],
        lambda n: n[:1],
        lambda n: n[:0],
        lambda n: n[::-1] + n,
    ):
        data = instances()
        shape = run_lengths(5, 7, 30, 33, compressed)
        assert shape["counts"] != change(shape["counts"])
        data["annotations"][5]["segmentation"] = shape | {"counts": change(shape["counts"])}
        assert scores(root, "segm", json.dumps(data)) is None
    data["annotations"][5]["segmentation"] = run_lengths(5, 7, 30, 33, compressed) | {"size": [WIDTH, HEIGHT]}
    assert scores(root, "segm", json.dumps(data)) is None


def test_compressed_runs_are_those_of_pycocotools():
    chance = np.random.default_rng(0)
    for _ in range(200):
        mask = np.asfortranarray(chance.random(chance.integers(1, 200, 2)) < chance.choice([0, 0.001, 0.5, 1]), dtype=np.uint8)
        flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
        counts = np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()
        assert run_counts(coco_mask.encode(mask)["counts"]).tolist() == counts
