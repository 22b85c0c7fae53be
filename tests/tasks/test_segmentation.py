"""mIoU, aAcc and mAcc against mmsegmentation's definition, on COCO's panoptic maps read as semantic ones."""

import json

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError
from icmbench.tasks.categories import match_categories
from icmbench.tasks.maps import encode_map, paint, read_map
from icmbench.tasks.segmentation import SemanticSegmentation, confusion, segmentation_scores

IGNORE = 255


class Maps:
    """A dataset of label maps in memory, with sample 255 ignored."""

    name, limit, preprocessing = "maps", None, "native"

    def __init__(self, maps, names):
        self.maps, self.names = maps, names
        self.ids = sorted(maps)
        self.packed = {i: encode_map(labels) for i, labels in maps.items()}

    def annotated(self, kind):
        return self.ids if kind == "semantic" else []

    def categories(self, kind):
        return self.names

    def targets(self, kind, ids):
        samples = np.arange(IGNORE + 1)
        return [{"mask": self.packed[i], "classes": np.where(samples == IGNORE, -1, samples)} for i in ids]


class Answers:
    """A model with prepared outputs."""

    task = "semantic_segmentation"
    fingerprint = "answers"

    def __init__(self, maps, categories):
        self.maps, self.categories = list(maps), categories

    def __call__(self, images):
        return self.maps


@pytest.fixture(scope="module")
def coco(shared):
    """24 label maps of COCO's panoptic categories, with void as 255."""
    root = shared / "data" / "coco"
    annotations = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())
    index = {category["id"]: k for k, category in enumerate(annotations["categories"])}
    maps = {}
    for entry in annotations["annotations"][:24]:
        segments = read_map(root / "panoptic_val2017" / entry["file_name"])
        table = np.full(segments.max() + 1, IGNORE)
        for segment in entry["segments_info"]:
            table[segment["id"]] = index[segment["category_id"]]
        maps[entry["file_name"]] = table[segments]
    return Maps(maps, [category["name"] for category in annotations["categories"]])


def perturb(labels, k):
    """A wrong prediction: the labels shifted, some classes replaced, and a strip erased."""
    moved = np.roll(labels, (3 * k % 17, -5 * k % 23), (0, 1))
    moved = np.where(moved == IGNORE, k % 133, moved)
    moved = np.where(moved % 7 == k % 7, (moved + 1) % 133, moved)
    moved[: 10 + k] = 0
    return moved


def run(dataset, predictions, names=None, **options):
    task = SemanticSegmentation(dataset, Answers(predictions, names or dataset.names), **options)
    images = [np.zeros((*labels.shape, 3), np.uint8) for labels in dataset.maps.values()]
    return task, task.predict(images, task.ids)


def iou_metric(predictions, labels, classes, weights=None):
    """mmsegmentation's IoUMetric restated: torch.histc of each image, sums over images, means without NaN."""
    torch = pytest.importorskip("torch")
    areas = torch.zeros(4, classes, dtype=torch.float64)
    for k, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
        prediction, label = torch.from_numpy(prediction).double(), torch.from_numpy(label).double()
        prediction, label = prediction[label != IGNORE], label[label != IGNORE]
        histograms = [
            torch.histc(values, bins=classes, min=0, max=classes - 1)
            for values in (prediction[prediction == label], prediction, label)
        ]
        areas[:3] += torch.stack(histograms) * (1 if weights is None else weights[k])
    intersection, predicted, labelled = areas[:3]
    return {
        "mIoU": 100 * torch.nanmean(intersection / (predicted + labelled - intersection)).item(),
        "aAcc": 100 * (intersection.sum() / labelled.sum()).item(),
        "mAcc": 100 * torch.nanmean(intersection / labelled).item(),
    }


def test_perfect_predictions_score_100(coco):
    task, predictions = run(coco, [np.where(m == IGNORE, 0, m) for m in coco.maps.values()])
    assert task.aggregate(task.statistics(predictions, task.targets(task.ids))) == {"mIoU": 100, "aAcc": 100, "mAcc": 100}


def test_perturbed_predictions_equal_the_definition(coco):
    wrong = [perturb(labels, k) for k, labels in enumerate(coco.maps.values())]
    task, predictions = run(coco, wrong)
    statistics = task.statistics(predictions, task.targets(task.ids))
    expected = iou_metric(wrong, coco.maps.values(), 133)
    assert task.aggregate(statistics) == pytest.approx(expected, abs=1e-9)
    assert 5 < expected["mIoU"] < 90
    weights = np.random.default_rng(0).integers(0, 4, len(task.ids)).astype(float)
    assert task.aggregate(statistics, weights) == pytest.approx(iou_metric(wrong, coco.maps.values(), 133, weights), abs=1e-9)


def test_a_class_absent_from_a_resample_takes_no_part_in_the_mean():
    first = (np.array([[0, 0]]), np.array([[0, 0]]))
    second = (np.array([[1, 0]]), np.array([[1, 1]]))
    statistics = confusion([first, second], 3)
    assert segmentation_scores(statistics)["mIoU"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert segmentation_scores(statistics, np.array([1.0, 0.0]))["mIoU"] == 100
    assert np.isnan(segmentation_scores(confusion([(first[0], first[0] - 1)], 3))["aAcc"])


def test_model_categories_are_matched_by_name(coco):
    order = np.random.default_rng(1).permutation(133)
    names = [*(coco.names[k].upper() for k in order), "unicorn"]
    position = np.argsort(order)
    task, predictions = run(coco, [position[np.where(m == IGNORE, 0, m)] for m in coco.maps.values()], names)
    assert task.aggregate(task.statistics(predictions, task.targets(task.ids)))["mIoU"] == 100
    task, predictions = run(coco, [np.full_like(m, 133) for m in coco.maps.values()], names)
    assert task.aggregate(task.statistics(predictions, task.targets(task.ids))) == {"mIoU": 0, "aAcc": 0, "mAcc": 0}


def test_synonyms():
    model_names = ["building", "sky", "screen", "window ", "door, double door", "silver screen"]
    dataset_names = ["door;double door", "windowpane;window", "Building;edifice", "sky", "screen door;screen"]
    dataset_names.append("silver screen;screen")
    assert match_categories(model_names, dataset_names).tolist() == [2, 3, 4, 1, 0, 5]
    with pytest.raises(DatasetError, match="no category for 1 of the dataset's 2, the first is 'cow'"):
        match_categories(["sheep"], ["cow", "sheep"])
    with pytest.raises(DatasetError, match="several categories of the model mean 'sheep'"):
        match_categories(["sheep", "Sheep"], ["sheep"])


def test_agreement_with_the_originals(coco):
    right = [np.where(m == IGNORE, 0, m) for m in coco.maps.values()]
    task, originals = run(coco, right, reference="original")
    targets = task.pseudo_targets(originals)
    assert task.aggregate(task.statistics(originals, targets))["mIoU"] == 100
    wrong = [perturb(labels, k) for k, labels in enumerate(coco.maps.values())]
    _, predictions = run(coco, wrong, reference="original")
    values = task.aggregate(task.statistics(predictions, targets))
    assert values == pytest.approx(iou_metric(wrong, right, 133), abs=1e-9)


def test_maps_survive_encoding_and_fit_arrow(coco):
    import pyarrow as pa

    task, predictions = run(coco, [np.where(m == IGNORE, 0, m) for m in coco.maps.values()])
    table = pa.Table.from_pylist(predictions, schema=task.schema)
    assert (read_map(table["labels"][3].as_py()) == np.where(coco.maps[task.ids[3]] == IGNORE, 0, coco.maps[task.ids[3]])).all()
    deep = np.arange(600).reshape(20, 30) * 109
    assert (read_map(encode_map(deep)) == deep).all()
    with pytest.raises(ValueError, match=r"0\.\.65535"):
        encode_map(np.array([[-1]]))


def test_errors_name_what_does_not_fit(coco):
    task = SemanticSegmentation(coco, Answers([np.zeros((2, 3), int)], coco.names))
    with pytest.raises(ValueError, match=r"label map is \(2, 3\), the image \(4, 4\)"):
        task.predict([np.zeros((4, 4, 3), np.uint8)], ["a"])
    prediction = {"labels": encode_map(np.zeros((2, 3), int))}
    with pytest.raises(DatasetError, match="annotations of these images"):
        task.statistics([prediction], [{"mask": encode_map(np.zeros((4, 4), int)), "classes": np.arange(2)}])
    with pytest.raises(DatasetError, match="holds 150, which stands for no class"):
        task.statistics([prediction], [{"mask": encode_map(np.full((2, 3), 150)), "classes": np.arange(150)}])


def test_classes_that_the_dataset_does_not_have_are_refused():
    """A table of classes may list more of them, as long as no pixel has one."""
    fitting, beyond = (Maps({"a": np.array([[0, value, IGNORE]])}, ["sky", "sea"]) for value in (1, 2))
    task, predictions = run(fitting, [np.array([[0, 1, 1]])])
    assert task.aggregate(task.statistics(predictions, task.targets(task.ids)))["mIoU"] == 100
    with pytest.raises(DatasetError, match="dataset 'maps': a label map holds class 2, but the categories are 0 to 1; number"):
        task.statistics(predictions, beyond.targets("semantic", ["a"]))
    with pytest.raises(DatasetError, match="image 'a': a label map holds class 2, but the categories are 0 to 1; number"):
        run(beyond, [])


class Files:
    """A dataset of another package: photographs, and label maps beside them, with one class for each sample."""

    name, limit = "files", None

    def __init__(self, folder, count=40, preprocessing="native"):
        self.folder, self.preprocessing = folder, preprocessing
        self.ids = [f"{k:03d}.png" for k in range(count)]
        self.read_ids = []
        for image_id in self.ids:
            Pillow.new("RGB", (6, 4)).save(folder / image_id)
            self.save(image_id, Pillow.fromarray(np.full((4, 6), 1, np.uint8)))

    def save(self, image_id, picture):
        (self.folder / "maps").mkdir(exist_ok=True)
        picture.save(self.folder / "maps" / image_id)

    def path(self, image_id):
        return self.folder / image_id

    def read(self, image_id):
        self.read_ids.append(image_id)
        return np.zeros((4, 6, 3), np.uint8)

    def annotated(self, kind):
        return self.ids if kind == "semantic" else []

    def categories(self, kind):
        return ["sky", "sea"]

    def targets(self, kind, ids):
        return [{"mask": self.folder / "maps" / i, "classes": np.arange(-1, 2)} for i in ids]


def test_label_maps_are_looked_at_before_anything_is_coded(tmp_path):
    """Headers of all, and pixels of some of each kind of PNG; 038 is not among the 8 that are spread over 40 maps of one kind."""
    dataset = Files(tmp_path)
    model = Answers([], ["sky", "sea"])
    assert SemanticSegmentation(dataset, model).ids == dataset.ids and not dataset.read_ids
    wrong = [
        (Pillow.new("L", (5, 4)), r"038\.png: 5x4 pixels, but its photograph .*038\.png has 6x4; give the annotations of these"),
        (Pillow.new("LA", (6, 4)), r"038\.png: a label map is greyscale, palette or RGB, and this one is greyscale with alpha"),
        (Pillow.new("RGB", (6, 4), (1, 1, 1)), r"038\.png: a label map holds 65793, which stands for no class; give maps of these"),
        (Pillow.fromarray(np.full((4, 6), 300, np.uint16)), r"038\.png: a label map holds 300, which stands for no class"),
    ]
    for picture, sentence in wrong:
        dataset.save("038.png", picture)
        with pytest.raises(DatasetError, match=sentence):
            SemanticSegmentation(dataset, model)
    (tmp_path / "maps" / "038.png").write_bytes(b"no PNG")
    with pytest.raises(DatasetError, match=r"038\.png: damaged or no PNG"):
        SemanticSegmentation(dataset, model)
    (tmp_path / "maps" / "038.png").unlink()
    with pytest.raises(DatasetError, match=r"038\.png: no such label map"):
        SemanticSegmentation(dataset, model)


def test_samples_without_a_class_in_a_whole_folder_are_found(tmp_path):
    dataset = Files(tmp_path)
    for image_id in dataset.ids[1:]:
        dataset.save(image_id, Pillow.fromarray(np.full((4, 6), 7, np.uint8)))
    with pytest.raises(DatasetError, match=r"maps/\d+\.png: a label map holds 7, which stands for no class"):
        SemanticSegmentation(dataset, Answers([], ["sky", "sea"]))


def test_images_that_are_not_their_files_decide_the_size_themselves(tmp_path):
    """A dataset of another package may cut its images out of larger pictures, or preprocess labels as well."""
    dataset = Files(tmp_path)
    for image_id in dataset.ids:
        Pillow.new("RGB", (60, 40)).save(tmp_path / image_id)
    assert SemanticSegmentation(dataset, Answers([], ["sky", "sea"])).ids
    assert dataset.read_ids == dataset.ids[:1]
    dataset = Files(tmp_path, preprocessing="resize:12x8")
    for image_id in dataset.ids:
        dataset.save(image_id, Pillow.new("L", (12, 8)))
    assert SemanticSegmentation(dataset, Answers([], ["sky", "sea"])).ids and not dataset.read_ids


def test_label_maps_on_disk(tmp_path):
    Pillow.fromarray(np.array([[[1, 2, 3]]], np.uint8)).save(tmp_path / "rgb.png")
    assert read_map(tmp_path / "rgb.png").tolist() == [[1 + 256 * 2 + 65536 * 3]]
    palette = Pillow.fromarray(np.array([[0, 5]], np.uint8))
    palette.putpalette([7] * 768)
    palette.save(tmp_path / "palette.png")
    assert read_map(tmp_path / "palette.png").tolist() == [[0, 5]]
    with pytest.raises(DatasetError, match=r"none\.png: no such label map"):
        read_map(tmp_path / "none.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"bad\.png: damaged or no PNG"):
        read_map(tmp_path / "bad.png")
    Pillow.new("LA", (2, 2)).save(tmp_path / "alpha.png")
    with pytest.raises(DatasetError, match=r"alpha\.png: a label map is greyscale, palette or RGB"):
        read_map(tmp_path / "alpha.png")


def test_drawing_leaves_unlabelled_pixels():
    image = np.full((2, 2, 3), 100, np.uint8)
    drawn = paint(image, np.array([[-1, 0], [1, 1]]))
    assert (drawn[0, 0] == 100).all() and (drawn[0, 1] != drawn[1, 1]).any() and (drawn[1, 0] == drawn[1, 1]).all()
