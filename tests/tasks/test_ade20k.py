"""ADE20K in its own layout, made of COCO's photographs, panoptic maps and instances."""

import json
import shutil

import numpy as np
import pytest

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.ade20k import Ade20k
from icmbench.tasks.maps import encode_map, read_map
from icmbench.tasks.segmentation import SemanticSegmentation

IMAGES = 5


@pytest.fixture(scope="module")
def root(shared, tmp_path_factory):
    """ADE20K's folder, with COCO's 133 categories as the first of its 150 classes and sample 0 for unlabelled pixels."""
    coco, root = shared / "data" / "coco", tmp_path_factory.mktemp("data") / "ADEChallengeData2016"
    for folder in ("images/validation", "annotations/validation", "ade20k_panoptic_val"):
        (root / folder).mkdir(parents=True)
    labels = json.loads((coco / "annotations" / "panoptic_val2017.json").read_text())
    names = [category["name"] for category in labels["categories"]] + [f"unused {k}, nothing {k}" for k in range(134, 151)]
    table = [f"{k + 1}{' ' if k == 21 else ''}\t0.1\t10\t10\t{name}" for k, name in enumerate(names)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *table]) + "\n")

    index = {category["id"]: k for k, category in enumerate(labels["categories"])}
    images, panoptic, instances = [], [], []
    for k, entry in enumerate(labels["annotations"][:IMAGES]):
        name = f"ADE_val_{k + 1:08d}"
        shutil.copy(coco / "val2017" / entry["file_name"].replace(".png", ".jpg"), root / "images" / "validation" / f"{name}.jpg")
        shutil.copy(coco / "panoptic_val2017" / entry["file_name"], root / "ade20k_panoptic_val" / f"{name}.png")
        segments = read_map(coco / "panoptic_val2017" / entry["file_name"])
        classes = np.zeros(segments.max() + 1, np.int64)
        for info in entry["segments_info"]:
            classes[info["id"]] = index[info["category_id"]] + 1
        (root / "annotations" / "validation" / f"{name}.png").write_bytes(encode_map(classes[segments]))
        images.append({"id": name, "file_name": f"{name}.jpg", "height": segments.shape[0], "width": segments.shape[1]})
        infos = [{**info, "category_id": index[info["category_id"]]} for info in entry["segments_info"]]
        panoptic.append({"image_id": name, "file_name": f"{name}.png", "segments_info": infos})
        instances += [
            {
                "id": len(instances) + j,
                "image_id": name,
                "category_id": info["category_id"],
                "bbox": info["bbox"],
                "area": info["area"],
            }
            for j, info in enumerate(infos)
        ]
    categories = [{"id": k, "name": name, "isthing": int(k < 80)} for k, name in enumerate(names)]
    (root / "ade20k_panoptic_val.json").write_text(
        json.dumps({"images": images, "annotations": panoptic, "categories": categories})
    )
    (root / "ade20k_instance_val.json").write_text(
        json.dumps({"images": images, "annotations": instances, "categories": categories[:133]})
    )
    return root


@pytest.fixture
def bare(root, tmp_path):
    """The same folder without the prepared instance and panoptic sets."""
    return shutil.copytree(root, tmp_path / "bare", ignore=shutil.ignore_patterns("ade20k_*"))


def test_semantic_maps_ignore_label_0(root):
    dataset = Ade20k(root)
    assert len(dataset.ids) == IMAGES and dataset.annotated("semantic") == dataset.ids
    assert len(dataset.categories("semantic")) == 150 and dataset.categories("semantic")[0] == "person"
    for target in dataset.targets("semantic", dataset.ids):
        samples = read_map(target["mask"])
        assert (target["classes"][samples] == samples - 1).all() and (target["classes"][samples] == -1).any()
    assert Ade20k(root, limit=2).annotated("semantic") == dataset.ids[:2]


class Maps:
    """A model that gives prepared label maps."""

    task, fingerprint = "semantic_segmentation", "maps"

    def __init__(self, maps, categories):
        self.maps, self.categories = maps, categories

    def __call__(self, images):
        return self.maps


def test_the_labels_as_predictions_score_100(root):
    dataset = Ade20k(root)
    labels = [read_map(target["mask"]) for target in dataset.targets("semantic", dataset.ids)]
    guesses = [np.where(label == 0, 7, label - 1) for label in labels]  # Class 7 on unlabelled pixels is ignored.
    task = SemanticSegmentation(dataset, Maps(guesses, [name.split(",")[0] for name in dataset.categories("semantic")]))
    predictions = task.predict([dataset.read(image_id) for image_id in dataset.ids], dataset.ids)
    assert task.aggregate(task.statistics(predictions, task.targets(dataset.ids))) == {"mIoU": 100, "aAcc": 100, "mAcc": 100}


def test_instance_and_panoptic_sets(root):
    dataset = Ade20k(root)
    assert dataset.annotated("panoptic") == dataset.annotated("instances") == dataset.ids
    (panoptic,), (instances,) = dataset.targets("panoptic", dataset.ids[:1]), dataset.targets("instances", dataset.ids[:1])
    assert set(np.unique(read_map(panoptic["mask"]))) <= {0, *panoptic["segments"]}
    assert (panoptic["classes"] == instances["classes"]).all() and len(instances["boxes"]) == len(panoptic["segments"])
    assert dataset.things().sum() == 80 and len(dataset.categories("instances")) == 133


def test_what_is_missing_is_named_with_its_source(root, bare, tmp_path):
    dataset = Ade20k(bare)
    assert dataset.annotated("semantic") == Ade20k(root).ids and dataset.annotated("captions") == []
    with pytest.raises(
        DatasetError, match=r"ade20k_panoptic_val\.json: no such annotations; make them with Mask2Former's datasets/prep"
    ):
        dataset.annotated("panoptic")
    with pytest.raises(DatasetError, match=r"ade20k_instance_val\.json: no such"):
        dataset.annotated("instances")
    with pytest.raises(DatasetError, match=r"nowhere: no such folder\. Download ADEChallengeData2016\.zip"):
        Ade20k(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"annotations/training: no such annotations"):
        Ade20k(bare, split="training")
    (bare / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(DatasetError, match="not the table of classes 1 to 150"):
        Ade20k(bare).categories("semantic")
    table = (root / "objectInfo150.txt").read_text().splitlines()
    for row, message in (
        (table[7].rpartition("\t")[0], "class 7 has '10' as its name"),
        (f"7\t{table[3]}", "class 7 has 'car' as its"),
    ):
        (bare / "objectInfo150.txt").write_text("\n".join([*table[:7], row, *table[8:]]))
        with pytest.raises(DatasetError, match=message):
            Ade20k(bare).categories("semantic")


def test_maps_do_not_follow_preprocessing(root):
    with pytest.raises(DatasetError, match="use native, or reference: original"):
        Ade20k(root, preprocessing="resize:64x64").annotated("semantic")
    assert Ade20k(root, preprocessing="resize:64x64").read("ADE_val_00000001.jpg").shape == (64, 64, 3)


def test_maps_are_compared_with_their_photographs_before_anything_is_coded(bare):
    last = bare / "annotations/validation" / f"ADE_val_{IMAGES:08d}.png"
    labels = read_map(last)
    last.write_bytes(encode_map(labels[:-1]))
    with pytest.raises(DatasetError, match=r"ADE_val_00000005\.png: .* pixels, but its photograph .*ADE_val_00000005\.jpg has"):
        Ade20k(bare).annotated("semantic")
    with pytest.raises(DatasetError, match=r"ADE_val_00000005\.png: .* pixels, but its photograph"):
        Ade20k(bare).read(f"ADE_val_{IMAGES:08d}.jpg")
    last.unlink()
    with pytest.raises(DatasetError, match=r"ADE_val_00000005\.png: no such label map"):
        Ade20k(bare).annotated("semantic")
    assert Ade20k(bare).read(f"ADE_val_{IMAGES:08d}.jpg").shape[:2] == labels.shape  # Without labels it can still be coded.
    labels[3, 5] = 151
    last.write_bytes(encode_map(labels))
    dataset = Ade20k(bare)
    assert len(dataset.annotated("semantic")) == IMAGES
    with pytest.raises(DatasetError, match=r"ADE_val_00000005\.png: holds the sample 151, but classes have 1 to 150 and 0 is"):
        dataset.read(f"ADE_val_{IMAGES:08d}.jpg")
