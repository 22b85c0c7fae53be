"""Classification: the task's arithmetic, and EfficientNet-Lite on real photographs."""

import io

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError
from icmbench.tasks.classification import Classification
from icmbench.tasks.datasets.imagenet import ImageNet
from icmbench.tasks.datasets.packaged import PackagedPhotos
from icmbench.tasks.models.efficientnet_lite import EfficientNetLite0, EfficientNetLite2


class Scores:
    """A model with prepared scores."""

    task, fingerprint = "classification", "scores"

    def __init__(self, scores):
        self.scores = scores

    def __call__(self, images):
        return self.scores


class Labels:
    """A dataset of three class labels."""

    name, ids, limit, preprocessing = "labels", ["a", "b", "c"], None, "native"

    def annotated(self, kind):
        return self.ids

    def targets(self, kind, ids):
        return [{"class_index": k} for k in (2, 0, 6)]


def test_top1_and_top5():
    scores = np.tile(np.arange(8, 0, -1, dtype=np.float32), (3, 1))  # The scores fall from class 0 to class 7.
    task = Classification(Labels(), Scores(scores))
    predictions = task.predict([None] * 3, task.ids)
    assert predictions[0]["classes"].tolist() == [0, 1, 2, 3, 4]
    assert predictions[0]["scores"].tolist() == [8, 7, 6, 5, 4]
    statistics = task.statistics(predictions, task.targets(task.ids))
    assert task.aggregate(statistics) == pytest.approx({"top1": 100 / 3, "top5": 200 / 3})
    assert task.aggregate(statistics, np.ones(3)) == task.aggregate(statistics)
    assert task.aggregate(statistics, np.array([2.0, 1, 0])) == pytest.approx({"top1": 100 / 3, "top5": 100})
    assert np.isnan(task.aggregate(statistics, np.zeros(3))["top1"])


def test_of_equal_scores_the_lower_class_comes_first():
    task = Classification(Labels(), Scores(np.zeros((3, 8), np.float32)))
    assert task.predict([None] * 3, task.ids)[1]["classes"].tolist() == [0, 1, 2, 3, 4]


def test_agreement_with_the_original():
    scores = np.random.default_rng(0).random((3, 8), dtype=np.float32)
    task = Classification(Labels(), Scores(scores), reference="original")
    predictions = task.predict([None] * 3, task.ids)
    targets = task.pseudo_targets(predictions)
    assert [target["class_index"] for target in targets] == scores.argmax(1).tolist()
    assert task.aggregate(task.statistics(predictions, targets)) == {"top1": 100, "top5": 100}


def test_scores_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 8\), not \(3, classes\)"):
        Classification(Labels(), Scores(np.zeros((2, 8)))).predict([None] * 3, ["a", "b", "c"])


class Numbered(Labels):
    """A dataset of labels of any kind."""

    def __init__(self, *classes):
        self.classes = classes

    def targets(self, kind, ids):
        return [{"class_index": index} for index in self.classes]


class Sized(Scores):
    """A model that knows its classes before it is loaded."""

    def __init__(self, **known):
        self.__dict__.update(known)


def test_labels_that_the_model_has_no_class_for_are_refused_before_anything_is_coded():
    """Each would count as an error of the model, at every codec alike."""
    sentence = r"dataset 'labels': a label of image 'b' has class 1200, but model Sized has the 1000 classes 0 to 999; number"
    for known in ({"class_count": 1000}, {"categories": ["x"] * 1000}):
        Classification(Numbered(0, 999, np.int32(5)), Sized(**known))
        with pytest.raises(DatasetError, match=sentence):
            Classification(Numbered(0, 1200, 5), Sized(**known))
        assert Classification(Numbered(0, 1200, 5), Sized(**known), reference="original").ids
        with pytest.raises(DatasetError, match="image 'a' has class -1, but"):
            Classification(Numbered(-1, 0, 5), Sized(**known))
    with pytest.raises(DatasetError, match="has class -2"):
        Classification(Numbered(0, -2, 5), Scores(None))
    for strange in ("5", None, 5.5, float("nan"), True, [[1], [1, 2]]):
        with pytest.raises(DatasetError, match=r"'class_index' of image 'c' holds other than|image 'c' have no numbers as"):
            Classification(Numbered(0, 1, strange), Scores(None))


def test_a_model_that_says_its_classes_only_by_its_scores_is_compared_with_the_first():
    task = Classification(Numbered(0, 7, 8), Scores(np.zeros((2, 8), np.float32)))
    with pytest.raises(DatasetError, match="image 'c' has class 8, but model Scores has the 8 classes 0 to 7"):
        task.predict([None] * 2, ["a", "b"])


def jpeg(image, quality):
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Pillow.open(buffer))


def accuracy(task, quality=None):
    images = {image_id: task.dataset.read(image_id) for image_id in task.ids}
    predictions = [task.predict([jpeg(image, quality) if quality else image], [i])[0] for i, image in images.items()]
    return task.aggregate(task.statistics(predictions, task.targets(task.ids)))


def test_efficientnet_lite0_on_50_jpegs(shared):
    """Measured top-1: 90.0 of all 200 uncompressed, 80.0 at quality 20, 50.5 at quality 5; 80.0 of the first 50 at quality 20."""
    root = shared / "data" / "imagenet"
    task = Classification(ImageNet(root / "val", labels=root / "labels.csv", limit=50), EfficientNetLite0())
    assert accuracy(task, 20) == pytest.approx({"top1": 80.0, "top5": 96.0})


@pytest.mark.parametrize("model", [EfficientNetLite0, EfficientNetLite2])
def test_18_of_20_packaged_photographs_are_named(model):
    assert accuracy(Classification(PackagedPhotos(), model()))["top1"] == pytest.approx(90.0)


@pytest.mark.parametrize("model", [EfficientNetLite0, EfficientNetLite2])
def test_results_do_not_depend_on_the_batch(model):
    random = np.random.default_rng(0)
    shapes = [(300, 400), (57, 31), (1, 1), (224, 224), (260, 900)]
    images = [random.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in shapes]
    network = model()
    together = network(images)
    assert together.shape == (5, 1000) and together.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([network([image]) for image in images]), together)
    np.testing.assert_allclose(model(batch_size=4)(images), together, atol=1e-4)
    assert network([]).shape == (0, 1000)
    assert network.fingerprint == model().fingerprint
    assert '"file":"' in network.fingerprint


def test_the_best_class_is_drawn():
    task = Classification(Labels(), Scores(np.eye(3, 8, dtype=np.float32)))
    image = np.full((64, 160, 3), 128, np.uint8)
    drawn = task.draw(image, task.predict([None] * 3, task.ids)[1])
    assert drawn.shape == image.shape and (drawn != image).any(axis=-1).mean() > 0.02
    assert (drawn[40:] == 128).all() and (image == 128).all()
