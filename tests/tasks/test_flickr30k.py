"""Flickr30K in Karpathy's layout, made from COCO's photographs and captions."""

import json
import shutil

import pytest

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.flickr30k import Flickr30k


@pytest.fixture(scope="module")
def root(shared, tmp_path_factory):
    """Six photographs, four of them in the test split."""
    folder = tmp_path_factory.mktemp("flickr30k")
    (folder / "flickr30k-images").mkdir()
    coco = json.loads((shared / "data" / "coco" / "annotations" / "captions_val2017.json").read_text())
    entries = []
    for k, image in enumerate(coco["images"][:6]):
        shutil.copy(shared / "data" / "coco" / "val2017" / image["file_name"], folder / "flickr30k-images")
        captions = [row["caption"] for row in coco["annotations"] if row["image_id"] == image["id"]]
        sentences = [{"raw": caption, "tokens": caption.split(), "imgid": k} for caption in captions]
        entries.append({"filename": image["file_name"], "split": "train" if k < 2 else "test", "sentences": sentences, "imgid": k})
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))
    return folder


def build(root, file="dataset_flickr30k.json", **options):
    return Flickr30k(root / "flickr30k-images", root / file, **options)


def test_the_test_split_has_five_captions_an_image(root, shared):
    dataset = build(root)
    assert len(dataset.ids) == 4 and dataset.ids == sorted(dataset.ids) == dataset.annotated("captions")
    targets = dataset.targets("captions", dataset.ids)
    assert [len(target["captions"]) for target in targets] == [5] * 4
    entries = {entry["filename"]: entry for entry in json.loads((root / "dataset_flickr30k.json").read_text())["images"]}
    assert targets[1]["captions"][2] == entries[dataset.ids[1]]["sentences"][2]["raw"]
    assert dataset.read(dataset.ids[0]).ndim == 3
    assert build(root, split="train", limit=1).ids == build(root, split="train").ids[:1]


def test_preprocessing_is_applied_to_the_photographs(root):
    dataset = build(root, preprocessing="short:96,crop:96x96")
    assert dataset.read(dataset.ids[0]).shape == (96, 96, 3) and dataset.annotated("captions") == dataset.ids


def test_errors_name_the_remedy(root, tmp_path):
    with pytest.raises(DatasetError, match=r"none\.json: no such captions\. Request the photographs from the Flickr30K project"):
        build(root, "none.json")
    with pytest.raises(DatasetError, match=r"no images of split 'val', but test \(4\), train \(2\); give another `split`"):
        build(root, split="val")
    (root / "bad.json").write_text('{"images": [{"split": "test"}]}')
    with pytest.raises(DatasetError, match=r"bad\.json: images\[0\]: `filename` is missing; correct"):
        build(root, "bad.json")
    (root / "lost.json").write_text('{"images": [{"split": "test", "filename": "x.jpg", "sentences": []}]}')
    with pytest.raises(DatasetError, match=r"the first is x\.jpg"):
        build(root, "lost.json")
    assert build(root).annotated("class") == []
    with pytest.raises(DatasetError, match="has no 'class' annotations, only `captions`"):
        build(root).targets("class", [])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"raw": None}], r"images\[0\]\.sentences\[0\]: `raw` is null; correct the file"),
        ([{"raw": 5}], "`raw` is 5, not a text"),
        ([], "`sentences` is empty"),
        ([{"raw": " "}], r"images\[0\]\.sentences\[0\]: `raw` is the text ' ', in which nothing can be read; correct"),
        ([{"raw": "\u200b\ufeff"}], "in which nothing can be read"),
        ([{"raw": "\ud800"}], "half a Unicode character"),
    ],
)
def test_every_caption_is_a_text(root, entries, message):
    name = build(root).ids[0]
    (root / "faulty.json").write_text(json.dumps({"images": [{"filename": name, "split": "test", "sentences": entries}]}))
    with pytest.raises(DatasetError, match=message):
        build(root, "faulty.json")


def test_a_file_stands_there_once(root):
    name = build(root).ids[0]
    entry = {"filename": name, "split": "test", "sentences": [{"raw": "A dog."}]}
    (root / "twice.json").write_text(json.dumps({"images": [entry, {**entry, "imgid": 7}]}))
    assert build(root, "twice.json").ids == [name]
    for other in ({"sentences": [{"raw": "A cat."}]}, {"split": "train"}):
        (root / "twice.json").write_text(json.dumps({"images": [entry, {**entry, **other}]}))
        with pytest.raises(DatasetError, match=r"images\[1\]: `filename` .* stands in images\[0\] with other contents"):
            build(root, "twice.json")
    (root / "twice.json").write_text('{"images": [{"filename": "a.jpg", "split": "test", "split": "val", "sentences": []}]}')
    with pytest.raises(
        DatasetError,
        match=r'twice\.json: an object \(filename "a\.jpg"\) has the key "split" twice, with "test" and "val"; keep one',
    ):
        build(root, "twice.json")
    (root / "twice.json").write_text(json.dumps({"images": [entry, {**entry, "filename": "b.jpg", "split": "tset"}]}))
    with pytest.raises(DatasetError, match=r"images\[1\]: `split` is 'tset', not one of train, val, test, restval"):
        build(root, "twice.json")
