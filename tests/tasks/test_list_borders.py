"""Lists of labels with one place damaged: each is refused, or read as an independent reader reads it.

A strict reader of each format, in plain code, says what a damaged file means; None, if it means nothing. Files that stay valid
(reordered, with further keys, without optional ones) must be accepted with the same labels.
"""

import copy
import json
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.flickr30k import Flickr30k
from icmbench.tasks.datasets.imagenet import ImageNet
from icmbench.tasks.datasets.refcoco import RefCoco

from .damage import damaged, damaged_text

EXAMPLES = 3000 if os.environ.get("ICMBENCH_FUZZ") else 250
thoroughly = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = ["a.jpg", "b.jpg", "c.jpg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    (folder / "images").mkdir()
    for name in NAMES:
        Pillow.new("RGB", (64, 48)).save(folder / "images" / name)
    return folder


def parse(text):
    """A JSON document, or None; an object with two values of one key has no meaning."""

    def unique(pairs):
        if len({key: None for key, _ in pairs}) != len(pairs) and len({(key, json.dumps(value)) for key, value in pairs}) != len(
            dict(pairs)
        ):
            raise ValueError
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except ValueError:
        return None


def is_text(value):
    return isinstance(value, str) and value == value.encode(errors="replace").decode() and value.strip() != ""


def is_box(value):
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(side) in (int, float) and abs(side) < 10**300 for side in value)
        and value[2] > 0
        and value[3] > 0
    )


def check(build, read, folder, name, text):
    """A file is refused, or what it says is what the independent reader says."""
    (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        found = build()
    except DatasetError as error:
        assert name in str(error) or "images" in str(error)
        assert "\n" not in str(error)
        return False
    assert found == read(text)
    return True


REFERENCES = [
    {"ref_id": k, "file_name": name, "sentence": f"thing {k}", "bbox_xywh": [4 * k, 2, 8 + k, 9.5]}
    for k, name in enumerate(["a.jpg", "a.jpg", "b.jpg", "c.jpg"])
]


def plain_references(folder):
    dataset = RefCoco(folder / "images", folder / "refs.json")
    return {
        name: list(zip(t["sentences"], t["boxes"].tolist(), strict=True))
        for name in dataset.ids
        for t in dataset.targets("referring", [name])
    }


def read_references(text):
    entries = parse(text)
    if not isinstance(entries, list) or not entries:
        return None
    phrases = {}
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or not is_text(entry.get("sentence"))
            or not is_box(entry.get("bbox_xywh"))
            or entry.get("file_name") not in NAMES
        ):
            return None
        phrases.setdefault(entry["file_name"], []).append((entry["sentence"], entry["bbox_xywh"]))
    return phrases


@thoroughly
@given(text=damaged(REFERENCES))
def test_damaged_references(folder, text):
    check(lambda: plain_references(folder), read_references, folder, "refs.json", text)


TOOLBOX = [
    {"ref_id": 5, "ann_id": 11, "image_id": 1, "split": "val", "file_name": "a_11.jpg", "sentences": [{"sent": "left cat"}]},
    {"ref_id": 6, "ann_id": 12, "image_id": 1, "split": "val", "sentences": [{"sent": "right cat"}, {"sent": "cat two"}]},
    {"ref_id": 7, "ann_id": 13, "image_id": 2, "split": "train", "sentences": [{"sent": "dog"}]},
]
INSTANCES = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": 2, "file_name": "b.jpg", "width": 64, "height": 48},
    ],
    "annotations": [
        {"id": 11, "image_id": 1, "bbox": [0, 1, 2, 3]},
        {"id": 12, "bbox": [4, 5, 6, 7.5]},
        {"id": 13, "bbox": [0, 0, 1, 1]},
    ],
}


def toolbox_references(folder):
    dataset = RefCoco(folder / "images", folder / "refs.json", folder / "instances.json", "val")
    for name in dataset.ids:
        dataset.read(name)  # Here sizes are compared with the photographs.
    return {
        name: list(zip(t["sentences"], t["boxes"].tolist(), strict=True))
        for name in dataset.ids
        for t in dataset.targets("referring", [name])
    }


def read_toolbox(text, instances):
    refs, instances = parse(text), parse(instances)
    if not isinstance(refs, list) or not isinstance(instances, dict):
        return None
    boxes, files, phrases, seen = {}, {}, {}, {}
    try:
        for entries, key, values in ((instances["annotations"], "bbox", boxes), (instances["images"], "file_name", files)):
            for entry in entries:
                number = entry["id"]
                assert type(number) in (int, str)
                assert number not in values or values[number][1] == entry
                values[number] = (entry.get(key), entry)
        for _, entry in files.values():
            sides = [entry.get("width"), entry.get("height")]
            assert all(side is None or type(side) in (int, float) for side in sides)
        for ref in refs:
            assert is_text(ref["split"])
            if "ref_id" in ref:
                assert type(ref["ref_id"]) in (int, str) and seen.setdefault(ref["ref_id"], ref) == ref
            if ref["split"] == "val":
                assert type(ref["image_id"]) in (int, str) and type(ref["ann_id"]) in (int, str)
                name, image = files[ref["image_id"]]
                box, annotation = boxes[ref["ann_id"]]
                assert name in NAMES and is_box(box) and box[0] < 64 and box[1] < 48
                assert annotation.get("image_id", ref["image_id"]) == ref["image_id"]
                assert ref["sentences"]
                for sentence in ref["sentences"]:
                    assert is_text(sentence["sent"])
                    phrases.setdefault(name, []).append((sentence["sent"], [float(side) for side in box]))
                assert image.get("width") in (None, 64) and image.get("height") in (None, 48)
    except (AssertionError, KeyError, TypeError, AttributeError):
        return None
    return phrases or None


@thoroughly
@given(text=damaged(TOOLBOX))
def test_damaged_references_of_the_toolbox(folder, text):
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    check(lambda: toolbox_references(folder), lambda text: read_toolbox(text, json.dumps(INSTANCES)), folder, "refs.json", text)


@thoroughly
@given(text=damaged(INSTANCES))
def test_damaged_instances_of_the_toolbox(folder, text):
    (folder / "refs.json").write_text(json.dumps(TOOLBOX))
    check(lambda: toolbox_references(folder), lambda text: read_toolbox(json.dumps(TOOLBOX), text), folder, "instances.json", text)


KARPATHY = {
    "dataset": "flickr30k",
    "images": [
        {"filename": name, "split": split, "imgid": k, "sentences": [{"raw": f"Caption {k} {j}.", "imgid": k} for j in range(2)]}
        for k, (name, split) in enumerate(zip(NAMES, ["test", "train", "test"], strict=True))
    ],
}


def captions(folder):
    dataset = Flickr30k(folder / "images", folder / "captions.json")
    return {name: target["captions"] for name in dataset.ids for target in dataset.targets("captions", [name])}


def read_captions(text):
    document, found, seen = parse(text), {}, {}
    try:
        for entry in document["images"]:
            assert is_text(entry["split"]) and entry["split"] in ("train", "val", "test", "restval") and is_text(entry["filename"])
            content = (entry["split"], entry.get("sentences"))
            assert seen.setdefault(entry["filename"], content) == content
            if entry["split"] == "test":
                assert entry["filename"] in NAMES and isinstance(entry["sentences"], list) and entry["sentences"]
                found[entry["filename"]] = [sentence["raw"] for sentence in entry["sentences"]]
                assert all(map(is_text, found[entry["filename"]]))
    except (AssertionError, KeyError, TypeError, AttributeError):
        return None
    return found or None


@thoroughly
@given(text=damaged(KARPATHY))
def test_damaged_captions(folder, text):
    check(lambda: captions(folder), read_captions, folder, "captions.json", text)


LABELS = "file,class_index\na.jpg,17\nb.jpg,3\nc.jpg,999\n"


def labels(folder, name):
    dataset = ImageNet(folder / "images", labels=folder / name)
    return {image_id: target["class_index"] for image_id in dataset.ids for target in dataset.targets("class", [image_id])}


def read_labels(text, header=True):
    """Labels of a CSV without quotes; lines of another number of fields than two have no meaning."""
    rows = [line.replace('"', "").replace("\ufeff", "") for line in text.replace("\r", "\n").split("\n")]
    rows = [[field.strip() for field in row.split(",")] if header else row.split() for row in rows if row.strip()]
    rows = [[row[0], row[1]] if len(row) == 3 and not row[2] else row for row in rows]
    if header and (not rows or sorted(rows[0]) != ["class_index", "file"]):
        return None
    order = [rows[0].index("file"), rows[0].index("class_index")] if header else [0, 1]
    found = {}
    for row in rows[header:]:
        if len(row) != 2:
            return None
        name, label = (row[k] for k in order)
        if name not in NAMES or not label.isascii() or not label.isdigit() or not 0 <= int(label) < 1000:
            return None
        if found.setdefault(name, int(label)) != int(label):
            return None
    return found or None


@thoroughly
@given(text=damaged_text(LABELS))
def test_damaged_label_tables(folder, text):
    check(lambda: labels(folder, "labels.csv"), read_labels, folder, "labels.csv", text)


@thoroughly
@given(text=damaged_text("a.jpg 17\nb.jpg 3\nc.jpg 999\n"))
def test_damaged_label_lists(folder, text):
    check(lambda: labels(folder, "val.txt"), lambda text: read_labels(text, header=False), folder, "val.txt", text)


@thoroughly
@given(seed=st.integers(0, 10**6))
def test_what_stays_valid_is_accepted(folder, seed):
    """Other orders of entries and keys, further keys, and no optional ones."""
    rng = random.Random(seed)

    def vary(node, keep=()):
        if isinstance(node, dict):
            items = [(key, vary(value)) for key, value in node.items()]
            items += [("extra", rng.choice([None, 5, "text", [None], {}]))] if rng.random() < 0.3 else []
            return dict(rng.sample(items, len(items)))
        return [vary(entry) for entry in node] if isinstance(node, list) else node

    def shuffled(document):
        return json.dumps(vary(document), ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 2]))

    (folder / "refs.json").write_text(shuffled(rng.sample(REFERENCES, len(REFERENCES))))
    found = plain_references(folder)
    assert {name: sorted(phrases) for name, phrases in found.items()} == {
        name: sorted(phrases) for name, phrases in read_references(json.dumps(REFERENCES)).items()
    }
    document = {**KARPATHY, "images": rng.sample(KARPATHY["images"], 3)}
    (folder / "captions.json").write_text(shuffled(document))
    assert captions(folder) == read_captions(json.dumps(KARPATHY))
    refs = copy.deepcopy(TOOLBOX)
    for ref in refs:
        for key in ("ref_id", "file_name"):
            if rng.random() < 0.5:
                ref.pop(key, None)
    instances = copy.deepcopy(INSTANCES)
    for entry in [*instances["images"], *instances["annotations"]]:
        for key in ("width", "height", "image_id"):
            if rng.random() < 0.5:
                entry.pop(key, None)
    (folder / "refs.json").write_text(shuffled(refs))
    (folder / "instances.json").write_text(shuffled({key: rng.sample(value, len(value)) for key, value in instances.items()}))
    assert toolbox_references(folder) == read_toolbox(json.dumps(TOOLBOX), json.dumps(INSTANCES))
    rows = rng.sample(["a.jpg{0}17{0}x", "b.jpg{0}3{0}", "c.jpg{0}999{0}y"], 3)
    rows += rng.choices(rows, k=rng.randrange(2))
    end = rng.choice(["\n", "\r\n"])
    text = rng.choice(["", "\ufeff"]) + end.join(["file{0}class_index{0}note", *rows]) + rng.choice(["", end, end + end])
    (folder / "labels.csv").write_text(text.format(rng.choice([",", ";", "\t", ", "])), newline="")
    assert labels(folder, "labels.csv") == {"a.jpg": 17, "b.jpg": 3, "c.jpg": 999}
