"""RefCOCO in the refer toolbox's layout and as a plain JSON."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.refcoco import RefCoco

REFS = [
    {"ref_id": 5, "ann_id": 11, "image_id": 1, "split": "testA", "file_name": "a_11.jpg", "sentences": [{"sent": "left cat"}]},
    {
        "ref_id": 6,
        "ann_id": 12,
        "image_id": 1,
        "split": "testA",
        "file_name": "a_12.jpg",
        "sentences": [{"sent": "right cat"}, {"sent": "cat two"}],
    },
    {"ref_id": 7, "ann_id": 13, "image_id": 2, "split": "train", "file_name": "b_13.jpg", "sentences": [{"sent": "dog"}]},
]
INSTANCES = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"id": 11, "bbox": [0, 1, 2, 3]}, {"id": 12, "bbox": [4, 5, 6, 7.5]}, {"id": 13, "bbox": [0, 0, 1, 1]}],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train2014").mkdir()
    for name in "ab":
        Pillow.new("RGB", (16, 12)).save(tmp_path / "train2014" / f"{name}.jpg")
    (tmp_path / "refs(unc).json").write_text(json.dumps(REFS))
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    return tmp_path


def build(folder, refs="refs(unc).json", **options):
    return RefCoco(folder / "train2014", folder / refs, **options)


def test_refer_toolbox(folder):
    dataset = build(folder, instances=folder / "instances.json", split="testA")
    assert dataset.ids == ["a.jpg"] == dataset.annotated("referring") and dataset.annotated("instances") == []
    (target,) = dataset.targets("referring", dataset.ids)
    assert target["sentences"] == ["left cat", "right cat", "cat two"]
    assert target["boxes"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7.5], [4, 5, 6, 7.5]]
    assert dataset.read("a.jpg").shape == (12, 16, 3)


def test_plain_json_of_coco(shared):
    root = shared / "data" / "coco"
    dataset = RefCoco(root / "val2017", root / "annotations" / "referring_val2017.json")
    targets = dataset.targets("referring", dataset.ids)
    assert sum(len(target["sentences"]) for target in targets) == 123 == sum(len(target["boxes"]) for target in targets)
    assert targets[0]["sentences"][0] == "the dining table" and targets[0]["boxes"][0].tolist() == [321.21, 231.22, 125.56, 88.93]
    assert RefCoco(root / "val2017", root / "annotations" / "referring_val2017.json", limit=3).ids == dataset.ids[:3]


def test_a_pickle_is_refused_and_its_conversion_works(folder):
    with (folder / "refs(unc).p").open("wb") as file:
        pickle.dump(REFS, file, protocol=0)
    with pytest.raises(DatasetError, match="can run any code when it is read, so it is refused") as caught:
        build(folder, "refs(unc).p", instances=folder / "instances.json", split="testA")
    command = str(caught.value).split("convert it once with python -c ")[1].split('"')[1]
    subprocess.run([sys.executable, "-c", command], check=True)
    assert build(folder, instances=folder / "instances.json", split="testA").ids == ["a.jpg"]


def test_errors_name_the_remedy(folder):
    with pytest.raises(DatasetError, match=r"no split None; give `split`: testA \(2\), train \(1\)"):
        build(folder, instances=folder / "instances.json")
    with pytest.raises(DatasetError, match=r"give the instances\.json beside it"):
        build(folder, split="testA")
    with pytest.raises(DatasetError, match="do not follow preprocessing 'resize:8x8'"):
        build(folder, instances=folder / "instances.json", split="testA", preprocessing="resize:8x8")
    with pytest.raises(DatasetError, match=r"refs\.json: no such annotations\. Download the annotations of RefCOCO"):
        build(folder, "refs.json")
    (folder / "bad.json").write_text('[{"sentence": "x", "file_name": "a.jpg"}]')
    with pytest.raises(DatasetError, match=r"bad\.json: references\[0\]: `bbox_xywh` is missing; correct"):
        build(folder, "bad.json")
    (folder / "short.json").write_text('[{"sentence": "x", "file_name": "a.jpg", "bbox_xywh": [1, 2]}]')
    with pytest.raises(DatasetError, match=r"`bbox_xywh` is \[1, 2\], not the four numbers \[x, y, width, height\]"):
        build(folder, "short.json")
    (folder / "lost.json").write_text('[{"sentence": "x", "file_name": "c.jpg", "bbox_xywh": [1, 2, 3, 4]}]')
    with pytest.raises(DatasetError, match=r"the first is c\.jpg"):
        build(folder, "lost.json")
    (folder / "text.json").write_text("refs")
    with pytest.raises(DatasetError, match=r"text\.json: not JSON"):
        build(folder, "text.json")
    dataset = build(folder, instances=folder / "instances.json", split="train")
    with pytest.raises(DatasetError, match="has no 'class' annotations"):
        dataset.targets("class", dataset.ids)
    assert np.asarray(dataset.targets("referring", ["b.jpg"])[0]["boxes"]).dtype == np.float64


def test_a_photograph_of_another_size_than_stated_is_refused(folder):
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (16, 12)).save(folder / "train2014" / "a.jpg", exif=exif)
    stated = {**INSTANCES, "images": [{**image, "width": 16, "height": 12} for image in INSTANCES["images"]]}
    (folder / "instances.json").write_text(json.dumps(stated))
    dataset = build(folder, instances=folder / "instances.json", split="testA")
    with pytest.raises(
        DatasetError, match=r"a\.jpg: is 12x16 where .* states 16x12: its EXIF orientation turns it, so the boxes do not"
    ):
        dataset.read("a.jpg")
    stated["images"][1]["width"] = "16"
    (folder / "instances.json").write_text(json.dumps(stated))
    with pytest.raises(DatasetError, match=r"images\[1\]: `width` is the text '16', not a whole number of pixels"):
        build(folder, instances=folder / "instances.json", split="testA")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"bbox_xywh": [1, 2, 0, 4]},
            r"references\[1\]: `bbox_xywh` is \[1, 2, 0, 4\], which must be finite with a width and height",
        ),
        ({"bbox_xywh": [1, 2, float("nan"), 4]}, "must be finite"),
        ({"bbox_xywh": [1, 2, "3", 4]}, "not the four numbers"),
        ({"sentence": None}, r"references\[1\]: `sentence` is null; correct the file"),
        ({"file_name": 5}, "`file_name` is 5, not a text"),
        ({"sentence": "\t"}, r"references\[1\]: `sentence` is .*, in which nothing can be read"),
    ],
)
def test_every_value_is_named(folder, entry, message):
    sound = {"sentence": "x", "file_name": "a.jpg", "bbox_xywh": [1, 2, 3, 4]}
    (folder / "plain.json").write_text(json.dumps([sound, {**sound, **entry}]))
    with pytest.raises(DatasetError, match=message):
        build(folder, "plain.json")
    (folder / "plain.json").write_text(json.dumps([sound, {**sound, "bbox_xywh": [16, 2, 3, 4]}]))
    with pytest.raises(DatasetError, match=r"the box of 'x' starts at 16, 2, outside a\.jpg of 16x12"):
        build(folder, "plain.json").read("a.jpg")
    (folder / "plain.json").write_text(json.dumps([sound]))
    with pytest.raises(DatasetError, match="a plain list of phrases and boxes, without splits; leave out `split`"):
        build(folder, "plain.json", split="val")


def test_boxes_and_sizes_are_compared_before_anything_is_coded(folder):
    sound = {"sentence": "x", "file_name": "b.jpg", "bbox_xywh": [-1, -1, 3, 4]}
    (folder / "plain.json").write_text(json.dumps([sound]))
    assert build(folder, "plain.json").annotated("referring") == ["b.jpg"]
    for box, place in (([16, 2, 3, 4], "starts at 16, 2"), ([-3, 2, 3, 4], "ends at 0, 6"), ([1, -9, 3, 4], "ends at 4, -5")):
        (folder / "plain.json").write_text(json.dumps([sound, {**sound, "bbox_xywh": box}]))
        with pytest.raises(DatasetError, match=rf"plain\.json: the box of 'x' {place}, outside b\.jpg of 16x12; correct"):
            build(folder, "plain.json").annotated("referring")
    for stated in ({"width": 17, "height": 12}, {"height": 13}):
        document = {**INSTANCES, "images": [{**image, **stated} for image in INSTANCES["images"]]}
        (folder / "instances.json").write_text(json.dumps(document))
        with pytest.raises(DatasetError, match=r"is 16x12 where .* states 1[67]x1[23]: it is another one"):
            build(folder, instances=folder / "instances.json", split="testA").annotated("referring")
    images = [{**INSTANCES["images"][0], "width": 16}, {**INSTANCES["images"][0], "width": 17, "id": 99}]
    (folder / "instances.json").write_text(json.dumps({**INSTANCES, "images": [*images, *INSTANCES["images"][1:]]}))
    with pytest.raises(
        DatasetError, match=r"images\[1\]: states a width of 17 and a height of None, but another entry of 'a\.jpg'"
    ):
        build(folder, instances=folder / "instances.json", split="testA")


def test_references_without_a_phrase_and_boxes_in_shares_are_refused(folder):
    (folder / "empty.json").write_text(json.dumps([REFS[0], {**REFS[1], "sentences": []}, REFS[2]]))
    with pytest.raises(DatasetError, match=r"empty\.json: references\[1\]: `sentences` is empty, so that it asks for nothing"):
        build(folder, "empty.json", instances=folder / "instances.json", split="testA")
    entry = {"sentence": "x", "file_name": "a.jpg"}
    boxes = [[0.25, 0.5, 0.5, 0.25], [0, 0, 1, 1]]
    (folder / "plain.json").write_text(json.dumps([{**entry, "bbox_xywh": box} for box in boxes]))
    with pytest.raises(DatasetError, match=r"plain\.json: all boxes lie within the first pixel, as if they were shares of"):
        build(folder, "plain.json")
    (folder / "plain.json").write_text(json.dumps([{**entry, "bbox_xywh": [0, 0, 1, 1]}]))
    assert build(folder, "plain.json").annotated("referring") == ["a.jpg"]
