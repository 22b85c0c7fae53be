"""The commands as a user types them."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from icmbench.codecs.diffusion.backbone.weights import read_state
from icmbench.harness.cli import main


def test_version_is_that_of_the_installed_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"icmbench {version('icmbench')}\n" == "icmbench 0.1.0\n"


def test_list_names_everything_and_loads_nothing_heavy():
    code = (
        "import sys; from icmbench.harness.cli import main; main(['list']);"
        "print(*sorted({'torch', 'pandas', 'matplotlib', 'onnxruntime', 'cv2', 'pycocotools', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *listing, heavy = done.stdout.split("\n")[:-1]
    for name in ("jpeg", "command", "detection", "coco", "yolox-onnx"):
        assert any(line.split()[:1] == [name] and len(line.split()) > 2 for line in listing), name
    assert heavy == ""


def test_plan_counts_missing_cells_and_estimates_from_what_is_measured(tmp_path, experiment, icmbench):
    first = icmbench("plan", experiment(), "--out", tmp_path / "run")
    assert first.returncode == 0, first.stderr
    assert "21 of 21 cells missing" in first.stdout and "7 rows not measured yet" in first.stdout
    assert icmbench("run", experiment(), "--out", tmp_path / "run").returncode == 0
    done = icmbench("plan", experiment(), "--out", tmp_path / "run").stdout
    assert "0 of 21 cells missing" in done
    more = icmbench("plan", experiment(codecs=[{"name": "shift", "points": [6, 4, 2, 1]}]), "--out", tmp_path / "run").stdout
    assert "6 of 27 cells missing" in more


def test_run_report_and_bdrate_agree(tmp_path, experiment, icmbench):
    codecs = [{"name": "jpeg", "points": [10, 30, 60, 90]}, {"name": "webp", "points": [5, 30, 60, 90]}]
    ran = icmbench("run", experiment(codecs=codecs, anchor="jpeg"), "--out", tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    assert "BD-rate" in ran.stdout and "webp" in ran.stdout
    before = (tmp_path / "run" / "bdrate.csv").read_bytes()
    assert icmbench("report", tmp_path / "run").returncode == 0
    assert (tmp_path / "run" / "bdrate.csv").read_bytes() == before
    table = icmbench("bdrate", tmp_path / "run" / "scores.csv", "--anchor", "jpeg")
    assert table.returncode == 0 and "webp" in table.stdout


def test_missing_cells_exit_with_one_and_are_named(tmp_path, experiment, icmbench):
    done = icmbench("run", experiment(codecs=[{"name": "small", "points": [4]}], anchor=None), "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "6 cells are missing" in done.stderr and "photos / small bits=4 / block 2 / distance" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "absent.yaml"], "absent.yaml: cannot read the experiment file"),
        (["report", "absent"], "absent: not the folder of a finished run"),
        (["bdrate", "absent.csv", "--anchor", "x"], "absent.csv: no such file"),
        (["encode", "--codec", "jpge", "a.png", "b"], "unknown codec 'jpge'; did you mean 'jpeg'?"),
        (["decode", "absent", "b.png"], "absent: no such file"),
    ],
)
def test_bad_input_is_one_sentence(icmbench, tmp_path, arguments, words):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    done = icmbench(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_encode_and_decode(tmp_path, photos, icmbench):
    stream, picture = tmp_path / "x.jpg", tmp_path / "x.png"
    done = icmbench("encode", "--codec", "jpeg", "--point", "30", "--set", "progressive=true", photos / "0.png", stream)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{stream.stat().st_size} bytes, ")
    assert icmbench("decode", "--codec", "jpeg", stream, picture).returncode == 0
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(Image.open(stream)))
    stream.write_bytes(stream.read_bytes()[:-9])
    cut = icmbench("decode", "--codec", "jpeg", stream, picture)
    assert cut.returncode == 2 and cut.stderr.count("\n") == 1
    assert icmbench("encode", "--codec", "jpeg", "--set", "qualty=3", photos / "0.png", stream).returncode == 2


def test_doctor_says_what_is_usable(icmbench):
    done = icmbench("doctor")
    assert done.returncode == 0
    assert "ok  jpeg" in done.stdout and "free disk" in done.stdout


class _PickledCode:
    """An object whose pickle creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_convert_runs_a_pickles_code_only_where_it_is_trusted(tmp_path, capsys, suffix):
    def convert(*arguments):
        code = main(["convert", *map(str, arguments)])
        return code, *capsys.readouterr()

    source, target, ran = tmp_path / "old.pth", tmp_path / f"new{suffix}", tmp_path / "ran"
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    weights["view"] = weights["a"].T
    torch.save({"state_dict": weights, "extra": _PickledCode(ran)}, source)
    code, _, errors = convert(source, target)
    assert code == 2 and "icmbench convert --trust" in errors and errors.count("\n") == 1
    assert not ran.exists() and not target.exists()
    code, printed, errors = convert("--trust", source, target)
    assert code == 0 and "3 tensors" in printed, errors
    assert ran.exists()
    state = read_state(target)
    assert state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)
    code, _, errors = convert("--trust", source, target)
    assert code == 2 and "is there already" in errors
    source.write_bytes(b"junk")
    code, _, errors = convert("--trust", source, tmp_path / f"other{suffix}")
    assert code == 2 and "old.pth cannot be read as weights" in errors
