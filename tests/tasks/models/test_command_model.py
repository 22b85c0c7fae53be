"""A user's program as a task model: what it sees, what is read of it, and how it fails."""

import json
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest

from icmbench.tasks.models.command import Command
from icmbench.tasks.models.errors import ModelError

START = """
import json, os, pathlib, sys, time
images, output = map(pathlib.Path, sys.argv[1:3])
listed = json.loads((images / "manifest.json").read_text())["images"]
"""
BOXES = """
from PIL import Image
boxes = []
for entry in listed:
    with Image.open(images / entry["file"]) as picture:
        bbox = [0, 0, *picture.size]
    boxes.append({"image_id": int(entry["id"]), "category_id": 18, "bbox": bbox, "score": 0.5})
(output / "boxes.json").write_text(json.dumps(boxes[1:]))
"""
ANSWERS = """
from PIL import Image
lines = []
for question in map(json.loads, (images / "questions.jsonl").read_text().splitlines()):
    pixels = ""
    if "mask" in question:
        with Image.open(images / question["mask"]) as mask:
            pixels = sum(1 for value in mask.tobytes() if value == 255)
    question.pop("mask", None)
    lines.append(json.dumps(question | {"answer": f"{question['image']} {question['prompt']} {pixels}"}))
(output / "answers.jsonl").write_text("\\n".join(lines))
"""


def pictures(count):
    return [np.full((4, 5 + k, 3), k, np.uint8) for k in range(count)]


@pytest.fixture
def make(tmp_path):
    """A function that makes a model of a script's text; keyword arguments are further options."""

    def make(script, format="boxes", arguments=(), **options):
        (tmp_path / "predict.py").write_text(textwrap.dedent(START + script))
        command = [sys.executable, "predict.py", "{images}", "{output}", *arguments]
        return Command(command, format, folder=tmp_path, **options)

    return make


def test_a_program_predicts_on_a_folder_of_pictures(make):
    model = make(BOXES)
    first, second, third = model(pictures(3))
    assert first["boxes"].shape == (0, 4), "no box in a picture that the program was shown"
    assert second["boxes"].tolist() == [[0, 0, 6, 4]] and third["boxes"].tolist() == [[0, 0, 7, 4]]
    assert model.categories[second["classes"][0]] == "dog" and model.task == ("detection",)
    assert model([]) == []


def test_a_program_answers_questions(make):
    model = make(ANSWERS, "answers")
    first, second = pictures(2)
    assert model.answer([first, second, first], ["a?", "b?", "c?"]) == ["0 a? ", "1 b? ", "0 c? "]
    region = np.zeros((4, 5), bool)
    region[1, 1:3] = True
    assert model.answer([first, first], ["what?", "what?"], [region, ~region]) == ["0 what? 2", "0 what? 18"]
    assert "openset_marked" in model.task


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("print('no weights', file=sys.stderr); sys.exit(3)", "ended with code 3, for 2 pictures:\nno weights"),
        ("os.kill(os.getpid(), 9)", "was killed by signal 9"),
        ("", r"ended well but wrote no boxes.json into \{output\}"),
        ("(output / 'boxes.json').write_text('[')", "boxes.json: not JSON"),
        ("(output / 'boxes.json').write_text('[{\"image_id\": 2}]')", "`image_id` is 2, which"),
    ],
)
def test_a_program_that_fails_is_told_in_one_sentence(make, script, message):
    with pytest.raises(ModelError, match=message):
        make(script)(pictures(2))


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
    script = tmp_path / "hang.sh"
    script.write_text(f"sleep 600 &\necho $! > {tmp_path}/child\nsleep 600\n")
    command = ["sh", str(script), "{images}", "{output}"]
    model = Command(command, "boxes", timeout_seconds=10, timeout_seconds_per_image=0)
    with pytest.raises(ModelError, match=r"did not end within 10 s, for 2 pictures \(raise timeout_seconds"):
        model(pictures(2))
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 60
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


def test_the_fingerprint_holds_program_files_folders_and_revision(make, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "a.bin").write_bytes(b"1")
    (tmp_path / "slow.cfg").write_text("x")
    arguments = ["--weights=./weights", "slow.cfg"]
    prints = {make(BOXES, arguments=arguments).fingerprint}
    assert make(BOXES, arguments=arguments).fingerprint in prints
    (weights / "a.bin").write_bytes(b"12")
    prints.add(make(BOXES, arguments=arguments).fingerprint)
    (tmp_path / "slow.cfg").write_text("xy")
    prints.add(make(BOXES, arguments=arguments).fingerprint)
    prints.add(make(BOXES + "#", arguments=arguments).fingerprint)
    prints.add(make(BOXES + "#", arguments=arguments, revision="torch 2.1").fingerprint)
    prints.add(make(BOXES + "#", arguments=arguments, first=1).fingerprint)
    assert len(prints) == 5, "`first` says nothing without `names`"
    facts = json.loads(make(BOXES, arguments=arguments).fingerprint)
    assert {"predict.py", "slow.cfg", "--weights=./weights", sys.executable} == set(facts["sha256"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["python3", "{images}"], r"uses \{output\} nowhere"),
        (["no-such-program", "{images}", "{output}"], "no program 'no-such-program' on PATH"),
        (["python3", "{images}", "{output}", "{quality}"], r"no placeholder \{quality\}"),
        (["python3", "{images}", "{output"], "a literal brace is doubled"),
        ("python3 {images} {output}", "a list of words"),
        ([], "a list of words"),
    ],
)
def test_a_wrong_command_line_is_refused(command, message):
    with pytest.raises(ModelError, match=message):
        Command(command, "boxes")


def test_nothing_stays_behind(make, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    make(BOXES)(pictures(1))
    assert [path.name for path in tmp_path.iterdir()] == ["predict.py"]
