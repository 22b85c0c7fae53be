"""Recall against a ten-line reference, on COCO's captions, with embeddings of letter pairs."""

import numpy as np
import pytest

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.retrieval import Ranks, Retrieval, rank, recall


class Letters:
    """A model that embeds a text by its letter pairs, and an image as a prepared text with noise that grows with its brightness."""

    task = "retrieval"
    fingerprint = "letters"

    def __init__(self, words):
        self.words = words
        self.texts_seen = 0

    def embed_texts(self, texts):
        self.texts_seen += len(texts)
        rows = np.zeros((len(texts), 729), np.float32)
        for row, text in zip(rows, texts, strict=True):
            codes = [(ord(letter) - 96) % 27 for letter in text.lower()]
            np.add.at(row, np.array(codes[:-1]) * 27 + np.array(codes[1:]), 1)
        return rows

    def embed_images(self, images):
        noise = (
            np.random.default_rng(0).normal(size=(len(images), 729)) * np.array([image.mean() / 20 for image in images])[:, None]
        )
        return self.embed_texts(self.words[: len(images)]) + noise


@pytest.fixture(scope="module")
def coco(shared):
    root = shared / "data" / "coco"
    return Coco(root / "val2017", captions=root / "annotations" / "captions_val2017.json")


def ten_lines(images, texts, owner):
    """Recall at 1, 5 and 10 in both directions."""
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    similarity = unit(images.astype(float)) @ unit(texts.astype(float)).T
    values = {}
    for k in (1, 5, 10):
        top = np.argsort(-similarity, axis=1)[:, :k]
        values[f"R@{k}_i2t"] = 100 * np.mean([(owner[row] == i).any() for i, row in enumerate(top)])
        top = np.argsort(-similarity, axis=0)[:k]
        values[f"R@{k}_t2i"] = 100 * np.mean([owner[j] in top[:, j] for j in range(len(owner))])
    return values


def test_recall_equals_ten_lines_on_coco(coco):
    targets = coco.targets("captions", coco.annotated("captions"))
    model = Letters([" ".join(target["captions"]) for target in targets])
    task = Retrieval(coco, model)
    task.ready = task.context()
    images = [np.full((2, 2, 3), 60, np.uint8) for _ in task.ids]
    predictions = task.predict(images, task.ids)
    statistics = task.statistics(predictions, targets)
    values = task.aggregate(statistics)
    captions = [caption for target in targets for caption in target["captions"]]
    owner = np.repeat(np.arange(len(targets)), [len(target["captions"]) for target in targets])
    assert len(captions) == 395
    embeddings = np.stack([prediction["embedding"] for prediction in predictions])
    assert values == pytest.approx(ten_lines(embeddings, model.embed_texts(captions), owner), abs=1e-9)
    assert 10 < values["R@1_t2i"] < values["R@10_t2i"] < 100

    weights = np.zeros(len(targets))
    weights[:7] = 2
    first_seven = Ranks(statistics.image[:7], statistics.text[owner < 7], owner[owner < 7])
    assert task.aggregate(statistics, weights) == pytest.approx(recall(first_seven), abs=1e-9)


def test_perfect_embeddings_score_100():
    texts = np.eye(30)
    ranks = rank(texts[::3] + texts[1::3] + texts[2::3], texts, np.arange(30) // 3)
    assert set(recall(ranks).values()) == {100.0}


def test_indistinguishable_images_retrieve_nothing():
    images, texts = np.ones((20, 8)), np.random.default_rng(0).normal(size=(40, 8))
    values = recall(rank(images, texts, np.arange(40) // 2))
    assert values["R@10_t2i"] == 0 and values["R@1_i2t"] == 5  # One image owns the text that all images retrieve.
    assert recall(rank(np.zeros((20, 8)), texts, np.arange(40) // 2))["R@10_i2t"] == 0


def test_many_images_are_compared_in_parts():
    generator = np.random.default_rng(0)
    images, owner = generator.normal(size=(600, 16)), np.arange(900) % 600
    texts = images[owner] + generator.normal(size=(900, 16))
    assert recall(rank(images, texts, owner)) == pytest.approx(ten_lines(images, texts, owner), abs=1e-9)


def test_texts_are_embedded_once_for_all_codecs(coco):
    targets = coco.targets("captions", coco.annotated("captions"))
    model = Letters([target["captions"][0] for target in targets])
    task = Retrieval(coco, model)
    images = [np.full((2, 2, 3), 1, np.uint8) for _ in task.ids]
    scores = []
    for _ in range(3):  # Codecs.
        before = model.texts_seen
        scores.append(task.aggregate(task.statistics(task.predict(images, task.ids), targets)))
        assert model.texts_seen - before == len(images) + (len(task.texts) if len(scores) == 1 else 0)
    assert scores[0] == scores[1] == scores[2]


def test_failed_images_leave_the_rest_aligned(coco):
    targets = coco.targets("captions", coco.annotated("captions"))
    model = Letters([" ".join(target["captions"]) for target in targets])
    task = Retrieval(coco, model)
    predictions = task.predict([np.zeros((2, 2, 3), np.uint8) for _ in task.ids], task.ids)
    keep = [k for k in range(len(targets)) if k % 4]
    statistics = task.statistics([predictions[k] for k in keep], [targets[k] for k in keep])
    assert len(statistics.image) == len(keep)
    assert task.aggregate(statistics)["R@10_i2t"] > 95


def test_captions_decide_the_context_and_not_the_predictions(coco, shared):
    """When captions change, embeddings of images are found again, but not those of the captions, whose rows would not fit."""
    root = shared / "data" / "coco"
    captions = root / "annotations" / "captions_val2017.json"
    whole = Retrieval(coco, Letters([]))
    part = Retrieval(Coco(root / "val2017", captions=captions, limit=10), Letters([]))
    again = Retrieval(Coco(root / "val2017", captions=captions), Letters([]))
    assert whole.fingerprint == part.fingerprint
    assert whole.context_fingerprint == again.context_fingerprint != part.context_fingerprint
    assert whole.facts(whole.ids[0]) is part.facts(part.ids[0]) is None
    other = Letters([])
    other.fingerprint = "other letters"
    assert Retrieval(coco, other).fingerprint != whole.fingerprint


def test_captions_are_needed(coco):
    with pytest.raises(DatasetError, match="needs captions"):
        Retrieval(coco, Letters([]), reference="original")
