"""Annotations in COCO's formats that stay valid keep their scores, and segmentations become masks or are refused."""

import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.segmentations import run_counts

from .coco_files import (
    FILES,
    HEIGHT,
    KINDS,
    TASKS,
    WIDTH,
    Answers,
    cocoeval,
    instances,
    opened,
    panoptic,
    run_lengths,
    scores,
    write_pictures,
)

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


SHARES = {
    "bbox": lambda row: row.update(bbox=[n / side for n, side in zip(row["bbox"], (WIDTH, HEIGHT) * 2, strict=True)]),
    "keypoints": lambda row: row.update(keypoints=[n if k % 3 == 2 else n / WIDTH for k, n in enumerate(row["keypoints"])]),
    "area": lambda row: row.update(area=row["area"] / WIDTH / HEIGHT),
}


@pytest.mark.parametrize("key", SHARES)
def test_shares_where_pixels_should_be_are_refused(root, key):
    """They would be missed by every model; one such annotation among others is scored as pycocotools does."""
    kind = "keypoints" if key == "keypoints" else "bbox"
    data = FILES[KINDS[kind]]()
    SHARES[key](data["annotations"][0])
    assert scores(root, kind, json.dumps(data)) is not None
    for row in data["annotations"][1:]:
        SHARES[key](row)
    with pytest.raises(DatasetError, match=rf"json: (all|every) `{key}` .*; write (square )?pixels"):
        opened(root, KINDS[kind], json.dumps(data)).annotated(KINDS[kind])


def test_polygons_in_shares_are_refused(root):
    data = instances()
    data["annotations"][2]["segmentation"] = [[0.2, 0.1, 0.8, 0.1, 0.8, 0.9]]
    text = json.dumps(data)
    with pytest.raises(
        DatasetError, match=r"annotation 13 of image 'im2\.png': the `segmentation` lies within the first pixel, as if"
    ):
        TASKS["segm"](opened(root, "instances", text), Answers("segm", []))
    data["annotations"][2]["segmentation"] = [[0, 0, 1, 0, 1, 1, 0, 1]]  # An object of one pixel in the corner.
    assert scores(root, "segm", json.dumps(data)) is not None


def test_labels_that_may_be_right_are_scored_and_warned_of(root, caplog):
    """Boxes whose corners stand where their sizes should, copies of annotations, and areas of 0."""

    def corners(row):
        x, y, width, height = row["bbox"]
        row["bbox"] = [x, y, x + width, y + height]

    for change, sentence in (
        (lambda rows: [corners(row) for row in rows], "3 of the 7 boxes reach beyond their pictures; they are read as x, y, width"),
        (lambda rows: rows.append(rows[0] | {"id": 99}), "repeat image, category and box of another one: 1; each counts"),
        (lambda rows: [row.update(area=0) for row in rows], "every area is 0, so that all objects count as small"),
    ):
        data = instances()
        change(data["annotations"])
        caplog.clear()
        np.testing.assert_allclose(list(scores(root, "bbox", json.dumps(data)).values()), cocoeval(data, "bbox"), atol=1e-9)
        (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert sentence in warning and "instances.json" in warning
    caplog.clear()
    assert scores(root, "bbox", json.dumps(instances())) and not [r for r in caplog.records if r.levelname == "WARNING"]
