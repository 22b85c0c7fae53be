"""Predictions made elsewhere in the formats that hold no boxes: classes, label maps, panoptic segments and answers."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from icmbench.tasks.classification import Classification
from icmbench.tasks.fingerprints import pixel_sha256
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.predictions import Predictions
from icmbench.tasks.openset import OpenSet
from icmbench.tasks.panoptic import PanopticSegmentation
from icmbench.tasks.referring import Referring
from icmbench.tasks.segmentation import SemanticSegmentation

from .prediction_folders import IDS, pictures, write_manifest


@pytest.fixture
def folder(tmp_path):
    """A folder with the manifest of three pictures."""
    return write_manifest(tmp_path / "predictions" / "jpeg" / "q=1", pictures())


class Labels:
    """A dataset of the three pictures, with labels of one kind."""

    name, ids, limit, preprocessing = "labels", IDS, None, "native"

    def __init__(self, targets, names=None, things=None):
        self._targets, self._names, self._things = dict(zip(IDS, targets, strict=True)), names, things

    def annotated(self, kind):
        return IDS

    def targets(self, kind, ids):
        return [self._targets[image_id] for image_id in ids]

    def categories(self, kind):
        return self._names

    def things(self, kind):
        return np.array(self._things)


def score(task):
    images = pictures()
    predictions = task.predict([images[image_id] for image_id in task.ids], task.ids)
    return task.aggregate(task.statistics(predictions, task.targets(task.ids)))


def write_classes(folder, *rows, ranks=5):
    columns = "image,class" if ranks == 1 else "image,class_1,class_2,class_3,class_4,class_5"
    (folder / "classes.csv").write_text("\n".join([columns, *rows]) + "\n")


def test_ranked_classes_give_both_accuracies(folder):
    write_classes(folder, "000000000139.jpg,3,1,2,4,5", "sub/7.png,9,8,7,6,5", "x,0,1,2,3,4")
    task = Classification(Labels([{"class_index": 3}, {"class_index": 5}, {"class_index": 9}]), Predictions(folder, "classes"))
    assert score(task) == {"top1": pytest.approx(100 / 3), "top5": pytest.approx(200 / 3)}
    predictions = task.predict([pictures()["sub/7.jpg"]], ["sub/7.jpg"])
    assert predictions[0]["classes"].tolist() == [9, 8, 7, 6, 5]


def test_one_class_alone_gives_no_top_5_accuracy(folder, tmp_path):
    (tmp_path / "names.txt").write_text("cat\nbig dog\nowl\n")
    write_classes(folder, "000000000139.jpg,big dog", "sub/7.jpg,2", "x.png,cat", ranks=1)
    model = Predictions(folder, "classes", names=tmp_path / "names.txt", ranks=1)
    task = Classification(Labels([{"class_index": 1}, {"class_index": 2}, {"class_index": 1}]), model)
    scores = score(task)
    assert scores["top1"] == pytest.approx(200 / 3) and np.isnan(scores["top5"])
    prediction = task.predict([pictures()["x.png"]], ["x.png"])[0]
    assert prediction["classes"].tolist() == [0], "classes that were not named are not listed"
    assert task.names(prediction) == ["cat"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x.png,1,2,3,4,4"], "line 2: image 'x.png' has a class twice"),
        (["x.png,1,2,3,4,5", "x,5,4,3,2,1"], "line 3: image 'x' stands in a line before"),
        (["y.png,1,2,3,4,5"], "line 2: image 'y.png' is none of the manifest"),
        (["x.png,1,2,3,4,1000"], "'1000' is no class; write an index from 0 to 999"),
        (["x.png,1,2,3,4,-5"], "'-5' is no class"),
        (["x.png,1,2,3,4,1.0"], "'1.0' is no class"),
        (["x.png,1,2"], "line 2: has 3 fields under 6 columns"),
        (["x.png,1,2,3,4,5"], "has no row of image '000000000139.jpg'"),
    ],
)
def test_wrong_classes_are_refused_by_line(folder, rows, message):
    write_classes(folder, *rows)
    with pytest.raises(ModelError, match=message):
        Predictions(folder, "classes")(list(pictures().values()))
    write_classes(folder, "x.png,1", ranks=1)
    with pytest.raises(ModelError, match=r"its columns are image,class, not .* `ranks: 1` reads image,class"):
        Predictions(folder, "classes")(list(pictures().values()))


@pytest.fixture
def two_categories(tmp_path):
    """A JSON of two categories, of which the second one is stuff."""
    path = tmp_path / "categories.json"
    categories = [{"id": 4, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
    path.write_text(json.dumps({"categories": categories}))
    return path


def write_map(path, samples, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(samples, np.uint8), mode).save(path)


def encoded(samples):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(samples, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def halves(width, left, right):
    samples = np.full((6, width), right, np.uint8)
    samples[:, : width // 2] = left
    return samples


def test_label_maps_are_read_by_the_numbers_of_categories(folder, two_categories):
    for k, image_id in enumerate(IDS):
        write_map(folder / "labels" / f"{image_id.rpartition('.')[0]}.png", halves(8 + k, 4, 9))
    classes = np.full(256, -1)
    classes[:2] = 0, 1
    targets = [{"mask": encoded(halves(8 + k, 1, 1)), "classes": classes} for k in range(3)]  # All sky.
    task = SemanticSegmentation(Labels(targets, ["cat", "sky"]), Predictions(folder, "labels", annotations=two_categories))
    right = 3 * (4 + 5 + 5)  # Half of each width, rounded up on the right, times the height 6, over all pixels: 6 * 27.
    assert score(task)["aAcc"] == pytest.approx(100 * 2 * right / (6 * 27))


@pytest.mark.parametrize(
    ("samples", "mode", "message"),
    [
        (halves(8, 4, 5), None, "000000000139.png: has a pixel of 5, which is no category of .*categories.json"),
        (halves(9, 4, 9), None, "000000000139.png: is 9x6, but the picture of '000000000139.jpg' is 8x6"),
        (np.zeros((6, 8, 3), np.uint8), "RGB", "is a picture in colours"),
        (None, None, "no such label map, so that '000000000139.jpg' has no prediction"),
    ],
)
def test_wrong_label_maps_are_refused(folder, two_categories, samples, mode, message):
    (folder / "labels").mkdir()
    if samples is not None:
        Image.fromarray(samples, mode).save(folder / "labels" / "000000000139.png")
    model = Predictions(folder, "labels", annotations=two_categories)
    with pytest.raises(ModelError, match=message):
        model([pictures()["000000000139.jpg"]])


def write_panoptic(folder, entries):
    (folder / "panoptic.json").write_text(json.dumps({"annotations": entries}))


def in_colours(ids):
    """COCO's picture of segment ids: R + 256 G + 65536 B."""
    ids = np.asarray(ids)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def test_panoptic_results_are_read(folder, two_categories):
    entries, targets = [], []
    for k, image_id in enumerate(IDS):
        name = f"{image_id.rpartition('.')[0]}.png"
        ids = np.where(halves(8 + k, 0, 1) == 1, 70000, 300)
        write_map(folder / "panoptic" / name, in_colours(ids), "RGB")
        segments = [{"id": 300, "category_id": 4}, {"id": 70000, "category_id": 9}]
        entries.append({"image_id": image_id, "segments_info": segments} | ({"file_name": name} if k else {}))
        mask = {"mask": encoded(halves(8 + k, 1, 2)), "segments": np.array([1, 2]), "classes": np.array([0, 1])}
        targets.append(mask | {"crowd": np.zeros(2, bool)})
    write_panoptic(folder, entries)
    model = Predictions(folder, "panoptic", annotations=two_categories)
    task = PanopticSegmentation(Labels(targets, ["cat", "sky"], [True, False]), model)
    assert score(task) == {"PQ": 100, "SQ": 100, "RQ": 100, "PQ_th": 100, "PQ_st": 100}
    assert model.is_thing.tolist() == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "y.png"}, r'annotations\[0\] \(image_id "y.png"\): `image_id`'),
        ({"segments_info": [{"id": 1, "category_id": 5}]}, "`category_id` is 5, which"),
        ({"segments_info": [{"id": 1, "category_id": 4}, {"id": 1, "category_id": 4}]}, "have the same `id`, 1"),
        ({"segments_info": [{"id": 0, "category_id": 4}]}, "`id` is 0"),
        ({"segments_info": None}, "`segments_info` is missing or null, not a list"),
        ({"file_name": "../x.png"}, "the `file_name` of image '000000000139.jpg' is no file of"),
        ({"segments_info": [{"id": 2, "category_id": 4}]}, r"holds segment 1, which .*panoptic.json does not list"),
        ({"file_name": "absent.png"}, "absent.png: no such label map"),
    ],
)
def test_wrong_panoptic_results_are_refused(folder, two_categories, change, message):
    write_map(folder / "panoptic" / "000000000139.png", in_colours(np.ones((6, 8), int)), "RGB")
    write_panoptic(folder, [{"image_id": 139, "segments_info": [{"id": 1, "category_id": 4}]} | change])
    model = Predictions(folder, "panoptic", annotations=two_categories)
    with pytest.raises(ModelError, match=message):
        model([pictures()["000000000139.jpg"]])


def test_a_panoptic_picture_that_is_not_listed_is_refused(folder, two_categories):
    write_panoptic(folder, [])
    model = Predictions(folder, "panoptic", annotations=two_categories)
    assert model.pixel_facts(pixel_sha256(pictures()["x.png"])) == {"prediction": None}
    with pytest.raises(ModelError, match=r"panoptic.json: does not list the image 'x.png'"):
        model([pictures()["x.png"]])


def write_answers(folder, *items):
    (folder / "answers.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


class Phrases(Labels):
    def __init__(self, sentences):
        super().__init__([{"sentences": texts, "boxes": [[0, 0, 4, 4]] * len(texts)} for texts in sentences])


def test_answers_are_found_by_picture_and_prompt(folder):
    write_answers(
        folder,
        {"image": "x.png", "prompt": "the dog", "answer": "[0, 0, 4, 4]"},
        {"image": "000000000139.jpg", "prompt": "the dog", "answer": "[0, 0, 4, 2]"},
        {"image": 139, "prompt": "the cat", "answer": "none"},
    )
    model = Predictions(folder, "answers", box_convention="absolute")
    task = Referring(Phrases([["the cat", "the dog"], [], ["the dog"]]), model, prompt="{sentence}")
    scores = score(task)
    assert scores["mean_iou"] == pytest.approx(50) and scores["parse_failures"] == pytest.approx(100 / 3)
    with pytest.raises(ModelError, match=r"answers.jsonl: has no answer about image 'sub/7.jpg' to the prompt \"the dog\""):
        model.answer([pictures()["sub/7.jpg"]], ["the dog"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "x.png", "prompt": "a"', "line 1: not JSON"),
        ('{"image": "x.png", "prompt": "a", "answer": 3}', "line 1: `answer` is 3, not a text"),
        ('{"image": "y.png", "prompt": "a", "answer": "b"}', 'line 1: image "y.png" is none of the manifest'),
        ('{"image": "x.png", "prompt": "a", "answer": "b", "extra": 1}', "is no object of `image`"),
        ('{"image": "x.png", "prompt": "a", "answer": "b", "region": -1}', "`region` is -1"),
        (
            '{"image": "x.png", "prompt": "a", "answer": "b"}\n{"image": "x", "prompt": "a", "answer": "c"}',
            "line 2: image 'x' has an",
        ),
    ],
)
def test_wrong_answers_are_refused_by_line(folder, line, message):
    (folder / "answers.jsonl").write_text(line)
    with pytest.raises(ModelError, match=message):
        Predictions(folder, "answers").answer([pictures()["x.png"]], ["a"])


def test_answers_about_regions_are_counted_by_picture(folder):
    write_answers(
        folder,
        *({"image": "x.png", "prompt": "what?", "region": k, "answer": f"x{k}"} for k in (1, 0)),
        {"image": 139, "prompt": "what?", "region": 0, "answer": "first"},
    )
    model, images = Predictions(folder, "answers"), pictures()
    region = np.ones((6, 8), bool)
    first, last = images["000000000139.jpg"], images["x.png"]
    assert model.answer([first, last, last], ["what?"] * 3, [region] * 3) == ["first", "x0", "x1"]
    with pytest.raises(ModelError, match=r"image '000000000139.jpg' and region 1"):
        model.answer([first, first], ["what?"] * 2, [region] * 2)
    assert OpenSet.name in model.task
