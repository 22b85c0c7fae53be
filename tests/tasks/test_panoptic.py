"""PQ against its definition, and against panopticapi where it is installed, on COCO's panoptic annotations."""

import json

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.maps import encode_map, read_map
from icmbench.tasks.panoptic import PanopticSegmentation, match_segments, panoptic_scores, panoptic_statistics


class Answers:
    """A model with prepared outputs."""

    task = "panoptic"
    fingerprint = "answers"

    def __init__(self, outputs, coco):
        self.outputs, self.categories, self.is_thing = outputs, coco.categories("panoptic"), coco.things()

    def __call__(self, images):
        return self.outputs


@pytest.fixture(scope="module")
def root(shared):
    return shared / "data" / "coco"


def panoptic(root, limit=None):
    json_file, masks = root / "annotations" / "panoptic_val2017.json", root / "panoptic_val2017"
    return Coco(root / "val2017", panoptic=json_file, panoptic_masks=masks, limit=limit)


@pytest.fixture(scope="module")
def coco(root):
    return panoptic(root)


@pytest.fixture(scope="module")
def targets(coco):
    return coco.targets("panoptic", coco.ids)


def perfect(target):
    segments = read_map(target["mask"]).astype(np.int32)
    return {"segments": segments, "segment_ids": target["segments"], "classes": target["classes"]}


def perturbed(target, k):
    """Segments that are shifted, every seventh in another class, every ninth removed, and one added on unlabelled pixels."""
    output = perfect(target)
    segments = np.roll(output["segments"], (k % 11, 2 * k % 19), (0, 1))
    ids, classes = output["segment_ids"], output["classes"].copy()
    classes[(np.arange(len(ids)) + k) % 7 == 0] += 1
    segments[np.isin(segments, ids[(np.arange(len(ids)) + k) % 9 == 4])] = 0
    segments[(output["segments"] == 0) & (segments == 0)] = 99
    return {"segments": segments, "segment_ids": np.append(ids, 99), "classes": np.append(classes % 133, k % 133)}


def run(coco, outputs, **options):
    task = PanopticSegmentation(coco, Answers(outputs, coco), **options)
    images = [np.zeros((*output["segments"].shape, 3), np.uint8) for output in outputs]
    return task, task.predict(images, coco.ids)


def definition(outputs, targets, is_thing, weights=None):
    """Panoptic quality as its paper defines it, segment by segment."""
    tallies = np.zeros((133, 4))
    for k, (output, target) in enumerate(zip(outputs, targets, strict=True)):
        truth = read_map(target["mask"])
        tally = np.zeros((133, 4))
        matched_truth, matched = set(), set()
        predicted = {i: (output["segments"] == i, c) for i, c in zip(output["segment_ids"], output["classes"], strict=True)}
        predicted = {i: (mask, c) for i, (mask, c) in predicted.items() if mask.any()}
        labels = list(zip(target["segments"], target["classes"], target["crowd"], strict=True))
        for i, c, crowd in labels:
            for j, (mask, d) in predicted.items():
                if c == d and not crowd:
                    iou = ((truth == i) & mask).sum() / ((truth == i) | (mask & (truth != 0))).sum()
                    if iou > 0.5:
                        tally[c] += [iou, 1, 0, 0]
                        matched_truth.add(i)
                        matched.add(j)
            if i not in matched_truth and not crowd:
                tally[c, 3] += 1
        for j, (mask, d) in predicted.items():
            crowds = [i for i, c, crowd in labels if crowd and c == d][-1:]
            if j not in matched and np.isin(truth[mask], [0, *crowds]).mean() <= 0.5:
                tally[d, 2] += 1
        tallies += tally * (1 if weights is None else weights[k])
    iou, tp, fp, fn = tallies[(tallies[:, 1:].sum(axis=1)) > 0].T
    things = is_thing[(tallies[:, 1:].sum(axis=1)) > 0]
    pq, sq = iou / (tp + fp / 2 + fn / 2), np.where(tp > 0, iou / np.maximum(tp, 1e-9), 0)
    values = {"PQ": pq, "SQ": sq, "RQ": tp / (tp + fp / 2 + fn / 2), "PQ_th": pq[things], "PQ_st": pq[~things]}
    return {name: 100 * value.mean() for name, value in values.items()}


def test_perfect_predictions_score_100(coco, targets):
    task, predictions = run(coco, [perfect(target) for target in targets])
    values = task.aggregate(task.statistics(predictions, task.targets(task.ids)))
    assert values == {"PQ": 100, "SQ": 100, "RQ": 100, "PQ_th": 100, "PQ_st": 100}


def test_perturbed_predictions_equal_the_definition(root, targets):
    coco, targets = panoptic(root, limit=25), targets[:25]
    wrong = [perturbed(target, k) for k, target in enumerate(targets)]
    task, predictions = run(coco, wrong)
    statistics = task.statistics(predictions, targets)
    values = task.aggregate(statistics)
    assert values == pytest.approx(definition(wrong, targets, coco.things()), abs=1e-9)
    assert 20 < values["PQ"] < 90 and statistics.fp.sum() > 10 and statistics.fn.sum() > 10
    weights = np.random.default_rng(0).integers(0, 3, len(wrong)).astype(float)
    assert task.aggregate(statistics, weights) == pytest.approx(definition(wrong, targets, coco.things(), weights), abs=1e-9)


def test_perturbed_predictions_equal_panopticapi(coco, targets, root, tmp_path):
    evaluation = pytest.importorskip("panopticapi.evaluation", reason="panopticapi is installed from its repository only")
    wrong = [perturbed(target, k) for k, target in enumerate(targets)]
    task, predictions = run(coco, wrong)
    labels = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())
    entries = {entry["image_id"]: entry for entry in labels["annotations"]}
    images = {image["file_name"]: image["id"] for image in labels["images"]}
    pairs = []
    for name, output in zip(coco.ids, wrong, strict=True):
        entry = entries[images[name]]
        rgb = np.stack([output["segments"] >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
        Pillow.fromarray(rgb).save(tmp_path / entry["file_name"])
        present = np.unique(output["segments"])
        infos = [
            {"id": int(i), "category_id": labels["categories"][c]["id"]}
            for i, c in zip(output["segment_ids"], output["classes"], strict=True)
            if i in present
        ]
        pairs.append((entry, {**entry, "segments_info": infos}))
    categories = {category["id"]: category for category in labels["categories"]}
    sums = evaluation.pq_compute_single_core(0, pairs, str(root / "panoptic_val2017"), str(tmp_path), categories)
    (every, _), (things, _), (stuff, _) = (sums.pq_average(categories, isthing=kind) for kind in (None, True, False))
    expected = {"PQ": every["pq"], "SQ": every["sq"], "RQ": every["rq"], "PQ_th": things["pq"], "PQ_st": stuff["pq"]}
    values = task.aggregate(task.statistics(predictions, targets))
    assert values == pytest.approx({name: 100 * value for name, value in expected.items()}, abs=1e-9)


def test_areas_of_the_annotations_are_pixel_counts(targets):
    """panopticapi takes a labelled segment's area from the JSON file, this project from the map."""
    for target in targets[:20]:
        ids, counts = np.unique(read_map(target["mask"]), return_counts=True)
        stated = dict(zip(target["segments"], target["areas"], strict=True))
        assert {i: n for i, n in zip(ids, counts, strict=True) if i in stated} == stated


def labelled(rows, classes, crowd=()):
    ids = np.arange(1, len(classes) + 1)
    return {
        "mask": encode_map(np.array(rows)),
        "segments": ids,
        "classes": np.array(classes, dtype=np.int64),
        "crowd": np.isin(ids, crowd),
    }


def test_void_and_crowd_do_not_punish():
    target = labelled([[1, 1, 0, 0], [2, 2, 2, 2]], [0, 1], crowd=[2])
    # Segment 1 covers an unlabelled pixel too; segment 2 lies in the crowd of its class.
    counts = match_segments(np.array([[1, 1, 1, 0], [2, 2, 0, 0]]), np.array([0, 1]), target, 2)
    assert counts.tolist() == [[1, 0], [1, 0], [0, 0], [0, 0]]
    # A segment in the crowd of another class is superfluous.
    assert match_segments(np.array([[0] * 4, [1, 1, 0, 0]]), np.array([0]), target, 2)[2:].tolist() == [[1, 0], [1, 0]]
    # A prediction of class -1, which the labels do not have, does not count.
    assert match_segments(np.array([[1, 1, 0, 0], [0] * 4]), np.array([-1]), target, 2)[2:].tolist() == [[0, 0], [1, 0]]


def test_iou_of_one_half_is_no_match():
    target = labelled([[1, 1, 2, 2]], [0, 1])
    counts = match_segments(np.array([[1, 0, 2, 2]]), np.array([0, 1]), target, 2)
    assert counts.tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]]


def test_no_segments_anywhere():
    empty = labelled([[0, 0]], [])
    counts = match_segments(np.zeros((1, 2), int), np.array([], int), empty, 2)
    assert not counts.any()
    assert np.isnan(panoptic_scores(panoptic_statistics([counts], np.array([True, False])))["PQ"])


def test_agreement_with_the_originals(root, targets):
    few = panoptic(root, limit=5)
    task, originals = run(few, [perfect(target) for target in targets[:5]], reference="original")
    pseudo = task.pseudo_targets(originals)
    assert task.aggregate(task.statistics(originals, pseudo))["PQ"] == 100
    _, predictions = run(few, [perturbed(target, k) for k, target in enumerate(targets[:5])], reference="original")
    assert 0 < task.aggregate(task.statistics(predictions, pseudo))["PQ"] < 90


def test_predictions_fit_arrow_and_can_be_empty(root, targets):
    import pyarrow as pa

    nothing = {"segments": np.zeros((4, 5), np.int32), "segment_ids": np.array([]), "classes": np.array([])}
    task, predictions = run(panoptic(root, limit=2), [perfect(targets[0]), nothing])
    rows = pa.Table.from_pylist(predictions, schema=task.schema).to_pylist()
    assert [task.is_empty(row) for row in rows] == [False, True]
    assert task.draw(np.zeros((4, 5, 3), np.uint8), rows[1]).max() == 0


def test_errors_name_what_does_not_fit(root):
    output = {"segments": np.full((2, 2), 7, np.int32), "segment_ids": np.array([8]), "classes": np.array([0])}
    with pytest.raises(ValueError, match="holds segment 7, which its segment_ids do not list"):
        run(panoptic(root, limit=1), [output])
    with pytest.raises(DatasetError, match="annotations of these images"):
        match_segments(np.zeros((1, 1), int), np.array([]), labelled([[0, 0]], []), 1)


class Segments:
    """A dataset of another package: one image with two segments."""

    name, ids, limit, preprocessing = "segments", ["a"], None, "native"

    def __init__(self, **changes):
        self.changes = changes

    def annotated(self, kind):
        return self.ids

    def categories(self, kind="panoptic"):
        return ["cat", "sky"]

    def things(self, kind="panoptic"):
        return np.array([True, False])

    def targets(self, kind, ids):
        return [labelled([[1, 1, 2, 2]], [0, 1]) | self.changes]


def test_labels_of_other_packages_index_the_categories_before_anything_is_coded():
    model = Answers([], Segments())
    assert PanopticSegmentation(Segments(), model).ids == ["a"]
    for changes, sentence in (
        ({"classes": np.array([1, 2])}, "dataset 'segments': a label of image 'a' has class 2, but .* has the 2 classes 0 to 1"),
        ({"classes": np.array([-1, 0])}, "has class -1"),
        ({"classes": np.array([0.5, 1])}, "'classes' of image 'a' holds other than whole numbers"),
        ({"classes": np.array([0])}, "the labels of image 'a' are not aligned"),
    ):
        with pytest.raises(DatasetError, match=sentence):
            PanopticSegmentation(Segments(**changes), model)
        assert PanopticSegmentation(Segments(**changes), model, reference="original").ids
