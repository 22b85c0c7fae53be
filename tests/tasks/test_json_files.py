"""JSON files of annotations: a key that an object holds twice is refused, and everything else is read as Python reads it."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets import json_files
from icmbench.tasks.datasets.json_files import read_json

from .coco_files import FILES, opened, write_pictures


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("json") / "labels.json"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("coco"))


class Pairs(list):
    """An object as a list of keys and values, in which a key may stand twice."""


KEYS = st.sampled_from(["a", "b", "bbox", "ü", 'a": ', "a :", "\t", ""])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from(["x", '": ', " :", ':"', "http://x:80", math.inf])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(st.tuples(KEYS, inner), max_size=3).map(Pairs)),
    max_leaves=12,
)


def spelled(value, space):
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}{space}:{spelled(inner, space)}" for key, inner in value) + "}"
    return "[" + ",".join(spelled(inner, space) for inner in value) + "]" if isinstance(value, list) else json.dumps(value)


def plain(value):
    """The document, or ValueError if it gives one key two values."""
    if isinstance(value, Pairs):
        found = {}
        for key, inner in value:
            if key in found and repr(found[key]) != repr(plain(inner)):
                raise ValueError
            found[key] = plain(inner)
        return found
    return [plain(inner) for inner in value] if isinstance(value, list) else value


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(
    value=VALUES, space=st.sampled_from(["", " ", "\t", "\n ", "\r\n"]), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])
)
def test_a_key_with_two_values_is_refused_and_nothing_else(file, value, space, encoding):
    file.write_bytes(spelled(value, space).encode(encoding))
    try:
        expected = plain(value)
    except ValueError:
        with pytest.raises(DatasetError, match=r"labels\.json: an object .*has the key .* twice, with .* and .*; keep one of them"):
            read_json(file)
    else:
        assert read_json(file) == expected


@pytest.mark.parametrize("kind", FILES)
def test_coco_files_are_read_once(root, kind, monkeypatch):
    """Files without such keys are not read a second time, which would take longer."""
    monkeypatch.setattr(json_files, "_unique", lambda pairs: pytest.fail("read a second time"))
    for indent in (None, 2):
        assert opened(root, kind, json.dumps(FILES[kind](), indent=indent)).ids


@pytest.mark.parametrize(
    ("key", "value"), [("bbox", [1, 2, 3, 4]), ("iscrowd", 1), ("category_id", 7), ("image_id", 1), ("area", 5), ("note", None)]
)
def test_a_key_twice_in_one_annotation_is_refused(root, key, value):
    """The last value used to be taken without a word."""
    data = FILES["instances"]()
    data["annotations"][2]["again"] = value
    text = json.dumps(data).replace('"again"', json.dumps(key))
    if key == "note":
        assert opened(root, "instances", text).ids
    else:
        with pytest.raises(
            DatasetError, match=rf'instances\.json: an object \(id 13\) has the key "{key}" twice, with .*; keep one'
        ):
            opened(root, "instances", text)


def test_a_list_of_the_file_twice_is_refused(root):
    text = json.dumps(FILES["instances"]())
    with pytest.raises(DatasetError, match=r'instances\.json: an object has the key "annotations" twice, with \[\] and \[\{'):
        opened(root, "instances", text.replace('"annotations":', '"annotations": [], "annotations":'))


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}}', "[1, 2", '{"a" 1}', "\xff", "[" * 100_000])
def test_what_is_no_json_is_named(file, text):
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"labels\.json: not JSON \(.*\); give the annotations as a whole JSON file"):
        read_json(file)
