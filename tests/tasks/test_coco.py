"""COCO's JSON format, on a part of the real set and on small generated ones."""

import json

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco


@pytest.fixture(scope="module")
def root(shared):
    return shared / "data" / "coco"


def everything(root, **options):
    annotations = root / "annotations"
    return Coco(
        root / "val2017",
        instances=annotations / "instances_val2017.json",
        keypoints=annotations / "person_keypoints_val2017.json",
        panoptic=annotations / "panoptic_val2017.json",
        panoptic_masks=root / "panoptic_val2017",
        captions=annotations / "captions_val2017.json",
        **options,
    )


def test_images_are_those_that_any_file_lists(root):
    coco = everything(root)
    assert len(coco.ids) == 177
    assert {kind: len(coco.annotated(kind)) for kind in ("instances", "keypoints", "panoptic", "captions", "class")} == {
        "instances": 79,
        "keypoints": 79,
        "panoptic": 100,
        "captions": 79,
        "class": 0,
    }
    alone = Coco(root / "val2017", instances=root / "annotations" / "instances_val2017.json")
    assert alone.ids == coco.annotated("instances") == sorted(alone.ids)
    assert len(Coco(root / "val2017").ids) == 177


def test_limit_restricts_images_and_labels(root):
    whole, part = everything(root), everything(root, limit=10)
    assert part.ids == whole.ids[:10]
    assert set(part.annotated("instances")) == set(whole.annotated("instances")) & set(part.ids)
    assert part.limit == 10


def test_targets_equal_the_file(root):
    coco = everything(root)
    raw = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    numbers = {image["file_name"]: image["id"] for image in raw["images"]}
    names = {category["id"]: category["name"] for category in raw["categories"]}
    ids = coco.annotated("instances")
    assert sum(len(target["classes"]) for target in coco.targets("instances", ids)) == len(raw["annotations"]) == 624
    for image_id, target in zip(ids, coco.targets("instances", ids)):
        rows = [row for row in raw["annotations"] if row["image_id"] == numbers[image_id]]
        assert target["boxes"].shape == (len(rows), 4) and target["boxes"].dtype == np.float64
        assert target["boxes"].tolist() == [row["bbox"] for row in rows]
        assert target["areas"].tolist() == [row["area"] for row in rows]
        assert target["crowd"].tolist() == [row["iscrowd"] == 1 for row in rows]
        assert [coco.categories("instances")[k] for k in target["classes"]] == [names[row["category_id"]] for row in rows]
        assert target["segmentations"] == [row["segmentation"] for row in rows]
        assert coco.read(image_id).shape[:2] == (target["height"], target["width"])


def test_keypoints_captions_and_segments(root):
    coco = everything(root)
    people = coco.targets("keypoints", coco.annotated("keypoints"))
    assert all(target["keypoints"].shape[1:] == (17, 3) for target in people)
    assert sum((target["labelled"] > 0).sum() for target in people) == 68
    assert sum(len(target["captions"]) for target in coco.targets("captions", coco.annotated("captions"))) == 395
    assert len(coco.categories("panoptic")) == 133 and coco.things().sum() == 80
    (segments,) = coco.targets("panoptic", coco.annotated("panoptic")[:1])
    with Pillow.open(segments["mask"]) as picture:
        samples = np.asarray(picture).astype(np.int64) @ [1, 256, 65536]
    assert set(segments["segments"]) == set(np.unique(samples)) - {0}
    assert segments["areas"].tolist() == [(samples == k).sum() for k in segments["segments"]]


def test_labels_do_not_follow_other_pixels(root):
    coco = everything(root, preprocessing="resize:512x512")
    assert coco.read(coco.ids[0]).shape == (512, 512, 3)
    assert len(coco.annotated("captions")) == 79
    for kind in ("instances", "keypoints", "panoptic"):
        with pytest.raises(DatasetError, match=r"do not follow preprocessing 'resize:512x512'; use native"):
            coco.annotated(kind)


@pytest.fixture
def small(tmp_path):
    """Two images in a folder, and a function that writes their annotation file and opens the dataset."""
    for name in ("a.png", "b.png"):
        Pillow.new("RGB", (6, 4)).save(tmp_path / name)
    images = [{"id": 7, "file_name": "a.png", "height": 4, "width": 6}, {"id": 3, "file_name": "b.png", "height": 4, "width": 6}]

    def write(**changes):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 5, "name": "x"}]} | changes))
        return Coco(tmp_path, instances=path)

    return write


def row(**changes):
    return {"id": 1, "image_id": 7, "category_id": 5, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0, "segmentation": []} | changes


def test_images_without_objects_are_annotated_too(small):
    coco = small(annotations=[row()])
    assert coco.annotated("instances") == ["a.png", "b.png"]
    first, second = coco.targets("instances", coco.ids)
    assert (first["image_id"], len(first["boxes"])) == (7, 1)
    assert (second["image_id"], second["boxes"].shape, second["classes"].dtype) == (3, (0, 4), np.int64)


def test_errors_name_the_file_and_what_is_wrong(small, tmp_path):
    missing = [{"id": k, "file_name": f"{k}.png", "height": 4, "width": 6} for k in range(3)]
    with pytest.raises(DatasetError, match=r"3 of the 3 images that .*labels\.json lists are missing, the first is 0\.png"):
        small(images=missing)
    with pytest.raises(DatasetError, match=r"labels\.json: 1 annotated images have no entry.* 99"):
        small(annotations=[row(image_id=99)])
    with pytest.raises(DatasetError, match=r"labels\.json: not in COCO's format"):
        small(images=None)
    with pytest.raises(DatasetError, match=r"category 6"):
        small(annotations=[row(category_id=6)]).targets("instances", ["a.png"])
    with pytest.raises(DatasetError, match=r"annotation of 'a\.png' is not in COCO's format"):
        small(annotations=[row(bbox=[1, 2])]).targets("instances", ["a.png"])
    with pytest.raises(DatasetError, match=r"no 'keypoints' annotations; add the key"):
        small().targets("keypoints", ["a.png"])
    with pytest.raises(DatasetError, match=r"none\.json: no such annotations\. Download from the COCO project"):
        Coco(tmp_path, instances=tmp_path / "none.json")
    with pytest.raises(DatasetError, match="come together"):
        Coco(tmp_path, panoptic_masks=tmp_path)


def test_photographs_of_another_size_are_refused(small, tmp_path):
    coco = small()
    Pillow.new("RGB", (4, 6)).save(tmp_path / "b.png")
    with pytest.raises(DatasetError, match=r"b\.png: 4x6 pixels, but .*labels\.json states 6x4"):
        coco.read("b.png")
