"""Box, mask and keypoint AP against pycocotools' own evaluation, to 1e-9."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import decode, encode

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.detection import Detection
from icmbench.tasks.instance_segmentation import InstanceSegmentation, run_lengths
from icmbench.tasks.keypoints import Keypoints

# pycocotools' decode warns under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

TASKS = {"bbox": Detection, "segm": InstanceSegmentation, "keypoints": Keypoints}


def cocoeval(labels, results, kind):
    """COCOeval's AP numbers in percent, with NaN for its -1.

    Args:
        labels: a dict in COCO's annotation format.
        results: a list in COCO's result format.
        kind: "bbox", "segm" or "keypoints".
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(labels)
        truth.createIndex()
        detections = truth.loadRes(copy.deepcopy(results))
        if kind == "keypoints":  # If a result has a box, loadRes takes its area instead of the keypoints' area.
            assert "bbox" not in results[0]
        run = COCOeval(truth, detections, kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [float("nan") if value == -1 else 100 * value for value in run.stats[: 5 if kind == "keypoints" else 6]]


class Answers:
    """A model with prepared outputs."""

    fingerprint = "answers"
    task = ("detection", "instance_segmentation", "keypoints")

    def __init__(self, categories, outputs):
        self.categories, self.outputs = categories, outputs

    def __call__(self, images):
        return self.outputs


class Case:
    """Labels in COCO's format and detections by file name, for COCOeval and for the task."""

    def __init__(self, tmp_path, labels, detections, kind):
        self.labels, self.detections, self.kind = labels, detections, kind
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for image in labels["images"]:
            (folder / image["file_name"]).touch()
        file = tmp_path / f"{kind}.json"
        file.write_text(json.dumps(labels))
        key = "keypoints" if kind == "keypoints" else "instances"
        dataset = Coco(folder, **{key: file})
        sizes = {image["file_name"]: (image["height"], image["width"]) for image in labels["images"]}
        self.categories = [category["id"] for category in sorted(labels["categories"], key=lambda category: category["id"])]
        self.task = TASKS[kind](dataset, Answers(dataset.categories(key), [detections[name] for name in dataset.ids]))
        images = [np.broadcast_to(np.uint8(0), (*sizes[name], 3)) for name in dataset.ids]
        self.predictions = self.task.predict(images, dataset.ids)
        self.targets = self.task.targets(dataset.ids)

    def results(self, names=None):
        """The detections in COCO's result format, in the order of the images in the labels."""
        rows = []
        for image in self.labels["images"]:
            detections = self.detections[image["file_name"]]
            for k in range(len(detections["scores"])):
                row = {"image_id": image["id"], "score": float(detections["scores"][k])}
                row["category_id"] = self.categories[detections["classes"][k]]
                if self.kind == "bbox":
                    x1, y1, x2, y2 = map(float, detections["boxes"][k])
                    row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
                elif self.kind == "segm":
                    row["segmentation"] = dict(detections["masks"][k])
                else:
                    row["keypoints"] = np.asarray(detections["keypoints"][k], dtype=np.float64).ravel().tolist()
                rows.append(row)
        return rows

    def scores(self, weights=None):
        return list(self.task.aggregate(self.task.statistics(self.predictions, self.targets), weights).values())

    def check(self):
        expected = cocoeval(self.labels, self.results(), self.kind)
        np.testing.assert_allclose(self.scores(), expected, rtol=0, atol=1e-9)
        return expected


def coco_labels(shared, kind):
    name = "person_keypoints" if kind == "keypoints" else "instances"
    return json.loads((shared / "data" / "coco" / "annotations" / f"{name}_val2017.json").read_text())


def perfect(labels, kind, crowds=True):
    """Detections that equal the labels, as float32, with distinct falling scores."""
    class_index = {
        category["id"]: k for k, category in enumerate(sorted(labels["categories"], key=lambda category: category["id"]))
    }
    sizes = {image["id"]: (image["height"], image["width"]) for image in labels["images"]}
    rows = {image["id"]: [] for image in labels["images"]}
    for row in labels["annotations"]:
        if (crowds or not row["iscrowd"]) and row.get("num_keypoints", 1):
            rows[row["image_id"]].append(row)
    by_name = {}
    for image in labels["images"]:
        own_rows = rows[image["id"]]
        boxes = np.array([row["bbox"] for row in own_rows], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        by_name[image["file_name"]] = {
            "boxes": boxes.astype(np.float32),
            "scores": np.linspace(0.9, 0.5, len(own_rows), dtype=np.float32),
            "classes": np.array([class_index[row["category_id"]] for row in own_rows], dtype=np.int64),
        }
        if kind == "segm":
            by_name[image["file_name"]]["masks"] = [run_lengths(row["segmentation"], *sizes[image["id"]]) for row in own_rows]
        if kind == "keypoints":
            by_name[image["file_name"]]["keypoints"] = np.array([row["keypoints"] for row in own_rows], np.float32).reshape(
                -1, 17, 3
            )
    return by_name


def perturbed(labels, kind, seed, spread):
    """Jittered, missed, doubled and misnamed detections, with scores in steps of 0.05 so that many are equal."""
    random = np.random.default_rng(seed)
    by_name = perfect(labels, kind)
    for detections in by_name.values():
        n = len(detections["scores"])
        keep = random.random(n) > 0.15
        pick = np.concatenate([np.flatnonzero(keep), random.integers(0, n, n // 3 if n else 0)]).astype(int)
        random.shuffle(pick)
        out = {"classes": detections["classes"][pick].copy(), "scores": np.round(random.random(len(pick)) * 20) / 20}
        out["scores"] = out["scores"].astype(np.float32)
        wrong = random.random(len(pick)) < 0.1
        out["classes"][wrong] = random.integers(0, len(labels["categories"]), wrong.sum())
        corners = detections["boxes"][pick]
        sides = np.tile(corners[:, 2:] - corners[:, :2], 2)
        jitter = random.normal(0, spread, corners.shape) * sides * (random.random(len(pick)) < 0.7)[:, None]
        out["boxes"] = np.sort((corners + jitter).reshape(-1, 2, 2), axis=1).reshape(-1, 4).astype(np.float32)
        if kind == "segm":
            out["masks"] = [moved(detections["masks"][k], random.integers(-4, 5, 2)) for k in pick]
        if kind == "keypoints":
            shift = random.normal(0, spread, (len(pick), 17, 2)) * sides[:, None, :2]
            out["keypoints"] = detections["keypoints"][pick].copy()
            out["keypoints"][..., :2] += shift
        detections.clear()
        detections.update(out)
    return by_name


def moved(mask, shift):
    return encode(np.asfortranarray(np.roll(decode(mask), shift, axis=(0, 1))))


@pytest.mark.parametrize("kind", TASKS)
def test_perfect_predictions_score_100(tmp_path, shared, kind):
    labels = coco_labels(shared, kind)
    case = Case(tmp_path, labels, perfect(labels, kind, crowds=False), kind)
    scores = case.check()
    assert [score for score in scores if not np.isnan(score)] == pytest.approx([100.0] * len(scores))


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(("seed", "spread"), [(0, 0.01), (1, 0.03), (2, 0.08)])
def test_perturbed_predictions_equal_pycocotools(tmp_path, shared, kind, seed, spread):
    labels = coco_labels(shared, kind)
    scores = Case(tmp_path, labels, perturbed(labels, kind, seed, spread), kind).check()
    assert 2 < scores[0] < 98


@pytest.mark.parametrize("seed", range(6))
def test_crowded_synthetic_sets_equal_pycocotools(tmp_path, seed):
    """Over 100 boxes of a class, ties of score and overlap, crowds, areas on the range limits, image ids not in order of names."""
    random = np.random.default_rng(seed)
    numbers = random.permutation(np.arange(1, 13))
    images = [{"id": int(n), "file_name": f"{k:02d}.jpg", "height": 200, "width": 300} for k, n in enumerate(numbers)]
    categories = [{"id": int(n), "name": f"c{n}"} for n in (3, 1, 7)]
    annotations, by_name = [], {}
    for image in images:
        grid = random.integers(0, 12, (random.integers(0, 9), 4)) * 16.0 + [0, 0, 16, 16]
        grid[:, 2:] = np.minimum(grid[:, 2:], 96)
        for box in grid:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(random.choice([1, 3])),  # No label has category 7.
                    "bbox": box.tolist(),
                    "area": float(random.choice([box[2] * box[3], 32.0**2, 96.0**2])),
                    "iscrowd": int(random.random() < 0.2),
                    "segmentation": [],
                }
            )
        n = int(random.choice([0, 5, 40, 260]))
        base = grid[random.integers(0, len(grid), n)] if len(grid) else random.integers(0, 12, (n, 4)) * 16.0 + [0, 0, 16, 16]
        base = base + random.integers(-1, 2, base.shape) * [4, 4, 0, 0]
        corners = np.concatenate([base[:, :2], base[:, :2] + base[:, 2:]], axis=1).reshape(-1, 4)
        scores = (np.ceil(random.random(n) * 8) / 8).astype(np.float32)
        classes = random.choice(3, n, p=[0.6, 0.3, 0.1])
        by_name[image["file_name"]] = {"boxes": corners.astype(np.float32), "scores": scores, "classes": classes}
    labels = {"images": images, "annotations": annotations, "categories": categories}
    Case(tmp_path, labels, by_name, "bbox").check()

    for detections in by_name.values():
        without_ties(detections, random)
    assert_weights_repeat_images(Case(tmp_path, labels, by_name, "bbox"), random.integers(0, 4, len(images)).astype(np.float64))


def without_ties(detections, random):
    """Give all detections distinct scores, because COCOeval interleaves equal scores of an image's copies."""
    detections["scores"] = random.random(len(detections["scores"]), dtype=np.float32)


def assert_weights_repeat_images(case, weights):
    """Scores with weights, in order of file names, equal COCOeval's scores of a list that repeats each image as often."""
    names = list(case.task.dataset.ids)
    labels = {"images": [], "annotations": [], "categories": case.labels["categories"]}
    results = []
    for image in sorted(case.labels["images"], key=lambda image: image["id"]):
        for _ in range(int(weights[names.index(image["file_name"])])):
            number = len(labels["images"]) + 1
            labels["images"].append({**image, "id": number})
            rows = [row for row in case.labels["annotations"] if row["image_id"] == image["id"]]
            start = len(labels["annotations"])
            labels["annotations"] += [{**row, "image_id": number, "id": start + k + 1} for k, row in enumerate(rows)]
            results += [{**row, "image_id": number} for row in case.results() if row["image_id"] == image["id"]]
    expected = cocoeval(labels, results, case.kind)
    np.testing.assert_allclose(case.scores(weights), expected, rtol=0, atol=1e-9)


def test_weights_repeat_real_images(tmp_path, shared):
    labels = coco_labels(shared, "bbox")
    by_name = perturbed(labels, "bbox", 3, 0.08)
    random = np.random.default_rng(0)
    for detections in by_name.values():
        without_ties(detections, random)
    case = Case(tmp_path, labels, by_name, "bbox")
    weights = np.bincount(random.integers(0, 79, 79), minlength=79).astype(np.float64)
    assert_weights_repeat_images(case, weights)
    assert case.scores(np.ones(79)) == case.scores() == pytest.approx(case.scores(np.full(79, 5.0)))


def assert_same(actual, expected):
    """Equal to the last bit, NaN included."""
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(actual[name], values, strict=True)


@pytest.mark.parametrize("kind", TASKS)
def test_replicates_scored_together_equal_each_alone_to_the_last_bit(tmp_path, shared, kind):
    """Weights of images that were drawn, of all images once, of no image, and thousands of times as large."""
    labels = coco_labels(shared, kind)
    case = Case(tmp_path, labels, perturbed(labels, kind, 4, 0.05), kind)
    statistics = case.task.statistics(case.predictions, case.targets)
    assert case.task.aggregate.takes_batches
    n = len(case.predictions)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 300).astype(np.float64)
    weights = np.concatenate([np.ones((1, n)), np.zeros((1, n)), 1e4 * drawn[:1], drawn])
    together = case.task.aggregate(statistics, weights)
    alone = [case.task.aggregate(statistics, row) for row in weights]
    assert_same(together, {name: np.array([scores[name] for scores in alone]) for name in alone[0]})
    assert_same(case.task.aggregate(statistics), alone[0])
    assert together["AP"].shape == (303,) and np.isnan(together["AP"][1]) and together["AP"][2] == together["AP"][3]


def test_no_detections_are_ap_0_and_sizes_without_labels_have_none(tmp_path):
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 50, 50], "area": 2500, "iscrowd": 0, "segmentation": []}
    labels = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 99, "width": 99}],
        "annotations": [box],
        "categories": [{"id": 1, "name": "thing"}],
    }
    none = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "classes": np.zeros(0, int)}
    case = Case(tmp_path, labels, {"a.jpg": none}, "bbox")
    ap, ap50, ap75, small, medium, large = case.scores()
    assert (ap, ap50, ap75, medium) == (0, 0, 0, 0)
    assert np.isnan(small) and np.isnan(large)
    assert case.task.is_empty(case.predictions[0])
    assert np.isnan(case.scores(np.zeros(1))).all()


@pytest.mark.parametrize("kind", TASKS)
def test_the_originals_agree_with_themselves(tmp_path, shared, kind):
    labels = coco_labels(shared, kind)
    case = Case(tmp_path, labels, perturbed(labels, kind, 5, 0.05), kind)
    targets = case.task.pseudo_targets(case.predictions)
    assert sum(len(target["classes"]) for target in targets) == sum((p["scores"] >= 0.3).sum() for p in case.predictions)
    scores = list(case.task.aggregate(case.task.statistics(case.predictions, targets)).values())
    # Among equal scores a detection may match the label of its double, which overlaps it fully too.
    assert scores[0] == pytest.approx(100.0)


def test_categories_are_matched_by_name(tmp_path, shared, caplog):
    annotations = shared / "data" / "coco" / "annotations" / "instances_val2017.json"
    dataset = Coco(shared / "data" / "coco" / "val2017", instances=annotations, limit=2)
    names = ["__background__", "Zebra", "N/A", *[name for name in dataset.categories("instances") if name not in ("zebra", "cat")]]
    task = Detection(dataset, Answers(names, []))
    category_map = task._category_map
    assert category_map[[0, 2]].tolist() == [-1, -1]
    assert dataset.categories("instances")[category_map[1]] == "zebra"
    assert "1 of the dataset's categories" in caplog.text and "cat" in caplog.text
    with pytest.raises(DatasetError, match="no name in common"):
        Detection(dataset, Answers(["tench", "goldfish"], []))


def test_boxes_that_are_not_finite_are_refused(tmp_path):
    labels = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}],
        "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    }
    bad = {"boxes": np.array([[0, 0, np.nan, 1]]), "scores": np.ones(1), "classes": np.zeros(1, int)}
    with pytest.raises(ValueError, match=r"a\.jpg: .* not finite"):
        Case(tmp_path, labels, {"a.jpg": bad}, "bbox")
