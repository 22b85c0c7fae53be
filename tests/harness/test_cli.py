"""The commands as a user types them."""

import os
import signal
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from icmbench.codecs.diffusion.backbone.weights import read_state
from icmbench.harness.cli import main
from icmbench.harness.config import plugins
from icmbench.harness.config.descriptions import describe, imported_description


def test_version_is_that_of_the_installed_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"icmbench {version('icmbench')}\n" == "icmbench 0.1.0\n"


# Packages that are not in Python's own library. Those named here must not be loaded by a command that does not use them.
HEAVY = {"numpy", "pandas", "pyarrow", "scipy", "matplotlib", "pydantic", "yaml", "rich", "PIL", "torch", "onnxruntime", "cv2"}


def modules_after(*arguments, environment=None):
    """Standard output of a command in a process of its own, and the modules that it has loaded."""
    code = (
        "import atexit, sys; from icmbench.harness.cli import main\n"
        "atexit.register(lambda: print('MODULES', *sys.modules))\n"
        f"main({[*arguments]!r})"
    )
    without_plugins = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ICMBENCH_VTM")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=without_plugins | (environment or {})
    )
    printed, _, modules = done.stdout.rpartition("MODULES ")
    return printed, {*modules.split()}


def test_list_names_everything_and_loads_nothing_heavy():
    printed, modules = modules_after("list")
    for name in ("jpeg", "command", "detection", "coco", "yolox-onnx", "cadc"):
        assert any(line.split()[:1] == [name] and len(line.split()) > 2 for line in printed.split("\n")), name
    assert not HEAVY & modules
    # The one plug-in that is asked whether it is usable, and no other.
    own = {name for kind in plugins.KINDS for point in plugins.available(kind).values() if (name := point.module) in modules}
    assert own == {"icmbench.codecs.vtm"}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], ["list", "recipes"]])
def test_help_and_version_load_nothing_heavy(arguments):
    printed, modules = modules_after(*arguments)
    assert printed and not HEAVY & modules
    assert not any(name.startswith(("icmbench.tasks.", "icmbench.codecs.v")) for name in modules)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_what_list_reads_from_source_is_what_the_classes_say(kind):
    own = {name: point for name, point in plugins.available(kind).items() if point.module.startswith("icmbench.")}
    assert len(own) >= 7
    for name, point in own.items():
        assert describe(point) == imported_description(point.load()), name


FACTS = {"extra": "a", "weights": "w x"}
SOURCES = {
    "plain": ('class Plug(Base):\n    """One line.\n\n    More.\n    """\n\n    extra = "a"\n', ("One line.", FACTS, False)),
    "inherited": ("class Plug(Base):\n    extra: str = 'a'\n\n    def usable(self): ...\n", ("Base's.", FACTS, True)),
    "late": ('class Plug(Base):\n    """One."""\n\n    def run(self): ...\n\n    weights = "w"\n', None),
    "computed": ('class Plug(Base):\n    """One."""\n\n    weights = "w".upper()\n', None),
    "foreign base": ('from collections import Counter\n\n\nclass Plug(Counter):\n    """One."""\n', None),
    "function": ("def Plug(point): ...\n", None),
    "broken": ('class Plug(Base):\n    """One.\nclass that is prose\n"""\n', None),
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
def test_what_cannot_be_read_for_certain_is_left_to_the_import(case, tmp_path, monkeypatch):
    from importlib.metadata import EntryPoint

    from icmbench.harness.config import descriptions

    source, expected = SOURCES[case]
    head = 'WHERE = "x"\n\n\nclass Base:\n    """Base\'s."""\n\n    weights = f"w {WHERE}"\n\n\n'
    text = source if source.startswith("from") else head + source
    monkeypatch.setattr(descriptions, "_source", lambda module: text)
    for cached in (descriptions._describe_class, descriptions._head, descriptions._blocks):
        cached.cache_clear()
    found = describe(EntryPoint("plug", "icmbench.nowhere:Plug", "icmbench.codecs"))
    for cached in (descriptions._describe_class, descriptions._head, descriptions._blocks):
        cached.cache_clear()
    assert found == expected
    assert describe(EntryPoint("plug", "elsewhere:Plug", "icmbench.codecs")) is None


def test_the_handler_of_sigterm_is_put_back(capsys):
    def own(number, frame): ...

    before = signal.signal(signal.SIGTERM, own)
    try:
        assert main(["list", "recipes"]) == 0
        assert main(["report", "nowhere"]) == 2
        with pytest.raises(SystemExit):
            main(["--version"])
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_main_runs_outside_the_main_thread(capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["list", "recipes"])))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize("place", ["out/bdrate.csv", "out/report/curves.csv", "link"])
@pytest.mark.parametrize("argument", ["curves", "published"])
def test_bdrate_does_not_replace_its_input(tmp_path, capsys, monkeypatch, place, argument):
    monkeypatch.chdir(tmp_path)
    text = "codec,bpp,AP\na,0.1,20\na,0.2,30\nb,0.2,20\nb,0.4,30\n"
    inside = tmp_path / ("out/report/curves.csv" if place == "link" else place)
    inside.parent.mkdir(parents=True)
    inside.write_text(text)
    path = inside
    if place == "link":
        path = tmp_path / "link.csv"
        path.hardlink_to(inside)
    (tmp_path / "other.csv").write_text(text)
    files = [path] if argument == "curves" else [tmp_path / "other.csv", "--published", path]
    code = main(["bdrate", *map(str, files), "--anchor", "a", "--out", "out"])
    said = capsys.readouterr()
    assert code == 2 and f"{path}: is read, and writing out/" in said.err and said.err.count("\n") == 1 and not said.out
    assert inside.read_text() == text
    assert main(["bdrate", *map(str, files), "--anchor", "a", "--out", "elsewhere"]) in (0, 2 if argument == "published" else 0)


def test_report_and_pack_export_do_not_replace_what_they_read(tmp_path, experiment, icmbench):
    codecs = [{"name": "shift", "points": [6, 4]}]
    assert icmbench("run", experiment(codecs=codecs), "--out", tmp_path / "run").returncode == 0
    scores = (tmp_path / "run" / "scores.csv").read_bytes()
    done = icmbench("pack", "export", tmp_path / "run", "--codec", "shift", "--out", tmp_path / "run" / "scores.csv")
    assert done.returncode == 2 and "scores.csv: is read, and writing" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "run" / "scores.csv").read_bytes() == scores
    curves = tmp_path / "run" / "report" / "paper.csv"
    curves.write_text("codec,bpp,distance\na,0.1,20\na,0.2,30\n")
    done = icmbench("report", tmp_path / "run", "--published", curves)
    assert done.returncode == 2 and "paper.csv: is read, and writing" in done.stderr and done.stderr.count("\n") == 1
    pack = tmp_path / "run" / "shift.pack"
    for _ in range(2):
        assert icmbench("pack", "export", tmp_path / "run", "--codec", "shift", "--out", pack).returncode == 0


def test_plan_counts_missing_cells_and_estimates_from_what_is_measured(tmp_path, experiment, icmbench):
    first = icmbench("plan", experiment(), "--out", tmp_path / "run")
    assert first.returncode == 0, first.stderr
    assert "21 of 21 cells missing" in first.stdout and "unknown, because nothing was measured" in first.stdout
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
