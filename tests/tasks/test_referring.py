"""Boxes in the answers of language models, in each declared convention, against COCO's boxes."""

import json

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.refcoco import RefCoco
from icmbench.tasks.referring import Referring, iou, parse_box


class Oracle:
    """A model that answers with prepared boxes, in one convention and in the phrasings of several models."""

    task = "referring"
    fingerprint = "oracle"
    phrasings = (
        '```json\n[{{"bbox_2d": [{}, {}, {}, {}], "label": "it"}}]\n```',
        "<box>({},{}),({},{})</box>",
        "It is at [[{}, {}], [{}, {}]].",
    )

    def __init__(self, convention="absolute"):
        self.box_convention = convention
        self.boxes = {}  # By sentence: x1, y1, x2, y2 in pixels.
        self.prompts = []

    def resized_size(self, height, width):
        return 28 * max(1, round(height / 28)), 28 * max(1, round(width / 28))

    def answer(self, images, prompts, regions=None):
        answers = []
        for image, prompt in zip(images, prompts, strict=True):
            self.prompts.append(prompt)
            height, width = image.shape[:2]
            sentence = prompt.split('"')[1]
            seen = {
                "absolute": (height, width),
                "absolute_resized": self.resized_size(height, width),
                "norm1000": (1000, 1000),
                "norm1": (1, 1),
            }[self.box_convention]
            box = self.boxes.get(sentence, np.array([0, 0, 0, 0])) * np.array([seen[1] / width, seen[0] / height] * 2)
            answers.append(self.phrasings[len(prompt) % 3].format(*(f"{side:.10f}" for side in box)))
        return answers


@pytest.fixture(scope="module")
def coco(shared):
    root = shared / "data" / "coco"
    return RefCoco(root / "val2017", root / "annotations" / "referring_val2017.json", limit=40)


def corners(target):
    return np.concatenate([target["boxes"][:, :2], target["boxes"][:, :2] + target["boxes"][:, 2:]], axis=1)


def overlap(a, b):
    """IoU by areas, one side at a time."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    shared = wide * high if wide > 0 and high > 0 else 0
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("convention", ["absolute", "absolute_resized", "norm1000", "norm1"])
def test_perfect_answers_score_100_in_every_convention(coco, convention):
    task = Referring(coco, Oracle(convention))
    targets, rows = coco.targets("referring", task.ids), []
    for image_id, target in zip(task.ids, targets, strict=True):
        task.model.boxes = dict(zip(target["sentences"], corners(target), strict=True))
        rows += task.predict([coco.read(image_id)], [image_id])
    values = task.aggregate(task.statistics(rows, targets))
    assert values == pytest.approx({"acc@0.5": 100, "mean_iou": 100, "parse_failures": 0, "several_boxes": 0}, abs=1e-6)


def test_shifted_answers_equal_plain_iou(coco):
    task = Referring(coco, Oracle())
    targets, rows, expected, owner = coco.targets("referring", task.ids), [], [], []
    for k, (image_id, target) in enumerate(zip(task.ids, targets, strict=True)):
        moved = corners(target)
        moved[:, ::2] += 9 * k
        task.model.boxes = dict(zip(target["sentences"], moved, strict=True))
        expected += [overlap(np.round(a, 10), b) for a, b in zip(moved, corners(target), strict=True)]
        owner += [k] * len(moved)
        rows += task.predict([np.zeros((700, 900, 3), np.uint8)], [image_id])
    statistics = task.statistics(rows, targets)
    expected = np.array(expected)
    values = task.aggregate(statistics)
    assert values["mean_iou"] == pytest.approx(100 * expected.mean(), abs=1e-8)
    assert values["acc@0.5"] == pytest.approx(100 * (expected >= 0.5).mean(), abs=1e-9) and 10 < values["acc@0.5"] < 90
    weights = np.arange(len(targets)) % 3
    repeated = np.repeat(expected, weights[owner])
    assert task.aggregate(statistics, weights)["mean_iou"] == pytest.approx(100 * repeated.mean(), abs=1e-8)


def test_an_answer_is_read_in_the_declared_convention_only(coco):
    task = Referring(coco, Oracle("norm1000"))
    target = coco.targets("referring", task.ids[:1])
    prediction = {"answers": [str(corners(target[0])[0].tolist())] * len(target[0]["sentences"]), "height": 426, "width": 640}
    assert task.aggregate(task.statistics([prediction], target))["acc@0.5"] == 0


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("[1, 2, 3.5, 4]", (1, 2, 3.5, 4)),
        ("(1,2),(3,4)", (1, 2, 3, 4)),
        ("first [1] then [10,20,30,40] and [0,0,1,1]", (0, 0, 1, 1)),
        ("<think>[9, 9, 9, 9] or [8, 8, 8, 8]?</think>[1, 2, 3, 4]", (1, 2, 3, 4)),
        ("It may be [9, 9, 9, 9]. No.</think> [1, 2, 3, 4]", (1, 2, 3, 4)),
        ("<think>It may be [9, 9, 9, 9]", None),
        ("[1, 2, 3, 4]<THINK>or [9, 9, 9, 9]", (1, 2, 3, 4)),
        ("◁think▷[9, 9, 9, 9]◁/think▷[1, 2, 3, 4]", (1, 2, 3, 4)),
        ("[THINK][9, 9, 9, 9][/THINK][1, 2, 3, 4]", (1, 2, 3, 4)),
        ("<think>[9, 9, 9, 9]</think><answer>(1,2),(3,4)</answer>", (1, 2, 3, 4)),
        ('["1", "2", "3.5", "4"]', (1, 2, 3.5, 4)),
        ("['1', '2', '3', '4']", (1, 2, 3, 4)),
        ("[1e2, 5E1, 3e+2, 2.5e-1]", (100, 50, 300, 0.25)),
        ("[1, 2, 3, 4] [1, 2, 3, 1e999]", (1, 2, 3, 4)),
        ("[NaN, 2, 3, 4]", None),
        ("[-0.5, .25, 1., 1]", (-0.5, 0.25, 1, 1)),
        ("[1, 2, 3]", None),
        ("[1, 2, 3, 4, 5]", None),
        ("x1=1, y1=2, x2=3, y2=4", None),
        ("", None),
    ],
)
def test_parsing(answer, box):
    assert parse_box(answer) == box


def test_the_first_box_counts_where_the_model_says_so(coco):
    assert parse_box("[1, 2, 3, 4], [5, 6, 7, 8]", "first") == (1, 2, 3, 4)
    model = Oracle()
    model.box_choice = "first"
    prediction = {"answers": ["[1, 2, 3, 4] [5, 6, 7, 8]"], "height": 9, "width": 9}
    assert Referring(coco, model).boxes(prediction)[0].tolist() == [1, 2, 3, 4]
    assert Referring(coco, Oracle()).boxes(prediction)[0].tolist() == [5, 6, 7, 8]
    model.box_choice = "best"
    with pytest.raises(ValueError, match="box_choice 'best' is unknown"):
        Referring(coco, model)


def test_answers_with_several_boxes_are_counted(coco):
    task = Referring(coco, Oracle())
    (target,) = coco.targets("referring", task.ids[:1])
    target = {**target, "boxes": np.array([[0, 0, 4, 4]] * 4), "sentences": list("abcd")}
    answers = [
        "[0, 0, 4, 4]",
        "[0,0,4,4], that is (0,0),(4,4)",
        "not [9,9,10,10] but [0,0,4,4]",
        "<think>[9,9,9,9]</think>[0,0,4,4]",
    ]
    values = task.aggregate(task.statistics([{"answers": answers, "height": 9, "width": 9}], [target]))
    assert values == {"acc@0.5": 100, "mean_iou": 100, "parse_failures": 0, "several_boxes": 25}


@pytest.mark.parametrize("noise", ["[", "[1", "[1,", " ", "[1 ", "9", "[9e9", "<think>", "</think>", '"'])
def test_the_search_for_boxes_is_linear(noise):
    """A search that goes back at each character would take hours on these."""
    assert parse_box(noise * 200_000 + "[1, 2, 3, 4]") in {(1, 2, 3, 4), None}
    assert parse_box("[1, 2" + noise * 200_000 + "</think>[1, 2, 3, 4]") == (1, 2, 3, 4)


def test_unreadable_answers_are_counted_and_score_zero(coco):
    task = Referring(coco, Oracle())
    targets = coco.targets("referring", task.ids[:2])
    first, second = (len(target["sentences"]) for target in targets)
    rows = [
        {"answers": ["I see no such thing."] * first, "height": 4, "width": 4},
        {"answers": [str(box.tolist()) for box in corners(targets[1])], "height": 4, "width": 4},
    ]
    assert [task.is_empty(row) for row in rows] == [True, False]
    values = task.aggregate(task.statistics(rows, targets))
    assert values["parse_failures"] == pytest.approx(100 * first / (first + second))
    assert values["acc@0.5"] == pytest.approx(100 * second / (first + second))


def test_degenerate_boxes():
    box = np.array([0.0, 0, 4, 4])
    assert iou(np.array([4.0, 4, 0, 0]), box) == 0 and iou(np.array([1.0, 1, 1, 3]), box) == 0
    assert iou(box, box) == 1 and iou(np.array([0.0, 0, 2, 4]), box) == 0.5


def test_every_sentence_is_asked_once(coco):
    task = Referring(coco, Oracle(), prompt='Where is "{sentence}"? {"bbox_2d": [...]}')
    image = np.zeros((30, 40, 3), np.uint8)
    rows = task.predict([image, image], task.ids[:2])
    asked = [sentence for target in coco.targets("referring", task.ids[:2]) for sentence in target["sentences"]]
    assert task.model.prompts == [f'Where is "{sentence}"? {{"bbox_2d": [...]}}' for sentence in asked]
    assert [len(row["answers"]) for row in rows] == [len(t["sentences"]) for t in coco.targets("referring", task.ids[:2])]
    assert task.fingerprint != Referring(coco, Oracle()).fingerprint  # The prompt decides for all images.


def test_the_sentences_of_an_image_are_its_facts_and_no_others(tmp_path):
    """Inserted, renamed and removed images leave the fingerprint and others' facts; a changed phrase changes its image's facts."""
    phrases = {"a.png": ["the cat", "the left one"], "b.png": ["the dog"]}

    def task_on(phrases, moved=0):
        for name in phrases:
            Pillow.new("RGB", (30, 20)).save(tmp_path / name)
        rows = [
            {"file_name": name, "sentence": text, "bbox_xywh": [moved, 2, 3, 4]}
            for name, texts in phrases.items()
            for text in texts
        ]
        (tmp_path / "phrases.json").write_text(json.dumps(rows))
        return Referring(RefCoco(tmp_path, tmp_path / "phrases.json"), Oracle())

    before = task_on(phrases)
    assert [before.facts(image_id) for image_id in phrases] == list(phrases.values())
    for others in ({"0.png": ["a boat"]}, {"1.png": ["a boat"]}, {}):
        task = task_on(others | phrases)
        assert task.fingerprint == before.fingerprint and [task.facts(image_id) for image_id in phrases] == list(phrases.values())
    alone = task_on({"a.png": phrases["a.png"]})
    assert alone.fingerprint == before.fingerprint and alone.facts("a.png") == before.facts("a.png")
    assert task_on(phrases, moved=5).facts("a.png") == before.facts("a.png")  # Boxes decide scores, not answers.
    for texts in (["the cat", "the right one"], ["the left one", "the cat"], ["the cat"]):  # Answers are stored in this order.
        changed = task_on(phrases | {"a.png": texts})
        assert changed.fingerprint == before.fingerprint and changed.facts("b.png") == before.facts("b.png")
        assert changed.facts("a.png") != before.facts("a.png")


def test_predictions_fit_arrow_and_can_be_drawn(coco):
    import pyarrow as pa

    task = Referring(coco, Oracle())
    row = {"answers": ["[30, 5, 2, 25]", "nothing"], "height": 30, "width": 40}
    (row,) = pa.Table.from_pylist([row], schema=task.schema).to_pylist()
    drawn = task.draw(np.zeros((30, 40, 3), np.uint8), row)
    assert drawn.max() == 255 and drawn[15, 15].max() == 0


def test_options_are_checked(coco):
    with pytest.raises(DatasetError, match="needs labelled expressions"):
        Referring(coco, Oracle(), reference="original")
    with pytest.raises(ValueError, match="does not say where the expression goes"):
        Referring(coco, Oracle(), prompt="Where?")
    with pytest.raises(ValueError, match="box_convention 'pixels' is unknown"):
        Referring(coco, Oracle("pixels"))
