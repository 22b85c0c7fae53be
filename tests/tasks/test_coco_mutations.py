"""Annotations in COCO's formats, damaged in one place at a time: refused before anything is coded, or scored as by the reference.

Hypothesis tries 80 mutations of each format; with the environment variable ICMBENCH_FUZZ=N it tries N.
"""

import copy
import json
import math
import os
import random
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icmbench.tasks.base import DatasetError
from icmbench.tasks.maps import read_map

from .coco_files import (
    FILES,
    HEIGHT,
    KINDS,
    WIDTH,
    captions,
    cocoeval,
    opened,
    panoptic,
    panopticapi,
    save_map,
    scores,
    segment_map,
    write_pictures,
)

EXAMPLES = int(os.environ.get("ICMBENCH_FUZZ") or 80)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode under numpy 2.


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("coco"))


NUMBERS = [math.nan, math.inf, -math.inf, 0, 1, -1, 0.5, 1e5, 1e300, 10**400, 2**70]
TWICE = "\0 again"
VALUES = [None, True, False, *NUMBERS, "", "0", "1", "x", [], {}, [[]]]


def places(value, path=()):
    """The paths of all values in a JSON."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def mutated(data, seed):
    """The file with one place damaged, as text."""
    chance, whole = random.Random(seed), json.dumps(data)
    text = whole
    while text == whole:  # Not every damage fits every place.
        text = damaged(copy.deepcopy(data), chance)
    return text


def damaged(data, chance):
    # First a kind of place, then one of that kind, so that hundreds of coordinates do not hide the few ids.
    groups = {}
    for path in places(data):
        if path:
            groups.setdefault(tuple(key for key in path if isinstance(key, str)), []).append(path)
    *above, key = chance.choice(groups[chance.choice(sorted(groups))])
    parent = data
    for step in above:
        parent = parent[step]
    value = parent[key]
    damage = chance.choice(["drop", "set", "set", "text", "duplicate", "swap", "extra", "truncate", "change", "cut", "twice"])
    if damage == "drop":
        del parent[key]
    elif damage == "set":
        parent[key] = chance.choice(VALUES)
    elif damage == "text":
        parent[key] = json.dumps(value)
    elif damage == "duplicate" and isinstance(parent, list):
        parent.insert(chance.randrange(len(parent) + 1), copy.deepcopy(value))
    elif damage == "swap":
        other = chance.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], value
    elif damage == "extra":
        target = value if isinstance(value, dict | list) else parent
        if isinstance(target, dict):
            target["extra"] = chance.choice(VALUES)
        else:
            target.append(copy.deepcopy(chance.choice(target)) if target and chance.random() < 0.5 else chance.choice(VALUES))
    elif damage == "truncate" and isinstance(value, list | str):
        parent[key] = value[: chance.randrange(len(value) + 1)]
    elif damage == "change" and type(value) in (int, float):
        parent[key] = chance.choice([-value, value + 1, value - 1, value * 2, float(value), value + 0.25, bool(value)])
    elif damage == "change" and isinstance(value, str):
        parent[key] = chance.choice([value.upper(), value + " ", value[::-1], value.replace("1", "2")])
    elif damage == "twice" and isinstance(parent, dict):  # One key with two values, of which Python's reader takes the last.
        parent[key + TWICE] = copy.deepcopy(value) if chance.random() < 0.3 else chance.choice(VALUES)
    text = json.dumps(data).replace(json.dumps(TWICE)[1:-1], "")
    if damage == "cut":
        text = text[: chance.randrange(len(text))]
    return text


OUTCOMES = Counter()


def mutations(test):
    """Call a test with seeds of mutations."""
    quiet = list(HealthCheck)
    limits = settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=quiet)
    return limits(given(st.integers(0, 2**40))(test))


def record(kind, values):
    OUTCOMES[kind, "refused" if values is None else "scored as by the reference"] += 1


@pytest.fixture(scope="module", autouse=True)
def _counts():
    yield
    if "ICMBENCH_FUZZ" in os.environ:
        print("\n", *(f"{kind}: {outcome} {n}\n" for (kind, outcome), n in sorted(OUTCOMES.items())))


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_damaged_objects_are_refused_or_scored_as_by_pycocotools(root, kind):
    original = FILES[KINDS[kind]]()

    @mutations
    def check(seed):
        text = mutated(original, seed)
        values = scores(root, kind, text)
        record(kind, values)
        if values is not None:
            np.testing.assert_allclose(list(values.values()), cocoeval(json.loads(text), kind), rtol=0, atol=1e-9)

    check()


def test_damaged_segments_are_refused_or_scored_as_by_panopticapi(root):
    original = panoptic()

    @mutations
    def check(seed):
        text = mutated(original, seed)
        values = scores(root, "panoptic", text)
        record("panoptic", values)
        if values is not None:
            np.testing.assert_allclose(list(values.values()), panopticapi(root, json.loads(text)), rtol=0, atol=1e-9)

    check()


def test_damaged_captions_are_refused_or_given_as_they_are(root):
    original = captions()

    @mutations
    def check(seed):
        text = mutated(original, seed)
        try:
            dataset = opened(root, "captions", text)
            targets = dataset.targets("captions", dataset.annotated("captions"))
        except DatasetError:
            return record("captions", None)
        record("captions", targets)
        rows = json.loads(text)["annotations"]
        expected = [[row["caption"] for row in rows if row["image_id"] == target["image_id"]] for target in targets]
        assert [target["captions"] for target in targets] == expected
        assert all(isinstance(caption, str) and caption.strip() for listed in expected for caption in listed) and all(expected)

    check()


def test_damaged_panoptic_png_are_refused(root, tmp_path):
    """One PNG is damaged in one place: pixels of another segment, of none or of an unknown one, another size, no PNG, no file."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    path, text = tmp_path / "masks" / "im2.png", json.dumps(panoptic())
    expected, whole = scores(tmp_path, "panoptic", text), path.read_bytes()
    assert expected is not None

    @mutations
    def check(seed):
        chance = random.Random(seed)
        labels = segment_map(2)
        row, column = chance.randrange(HEIGHT), chance.randrange(WIDTH)
        damage = chance.choice(["pixel", "pixel", "block", "size", "bytes", "cut", "gone"])
        if damage == "pixel":
            labels[row, column] = chance.choice([0, 4, 9, 700, 5, 256**3 - 1])
        elif damage == "block":
            labels[row:, column:] = chance.choice([0, 4, 9, 700, 5])
        elif damage == "size":
            labels = labels[chance.randrange(2) :, chance.randrange(1, 3) :]
        save_map(path, labels)
        if damage == "bytes":
            path.write_bytes(bytes(chance.randrange(256) for _ in range(100)))
        elif damage == "cut":
            path.write_bytes(whole[: chance.randrange(len(whole) - 20)])
        elif damage == "gone":
            path.unlink()
        values = scores(tmp_path, "panoptic", text)
        record("panoptic PNG", values)
        assert values is None or (np.array_equal(read_map(path), segment_map(2)) and values == expected)

    check()


def test_segments_are_named_with_their_image(root):
    data = panoptic()
    data["annotations"][1]["segments_info"][2]["id"] = 9
    with pytest.raises(
        DatasetError, match=r"panoptic\.json: segments_info \(id 9\) of image_id 2 and segments_info \(id 9\) of image_id 2"
    ):
        opened(root, "panoptic", json.dumps(data))
