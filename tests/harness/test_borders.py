"""Every command with every kind of damaged input: an exit code, one sentence that names the input, and never a traceback."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from icmbench.harness.cli import main
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with the photographs, the experiment file and the run folder of a finished run; made once and copied."""
    return tmp_path_factory.mktemp("template")


@pytest.fixture
def finished(tmp_path, experiment, template):
    """The folder of a finished run over ten pictures."""
    path = experiment(codecs=[{"name": "shift", "points": [6, 4]}])
    if not (template / "run").exists():
        assert not run(load_experiment(path), template / "run", RunOptions(images=1), source=path).missing
    shutil.copytree(template / "run", tmp_path / "run")
    return tmp_path / "run"


def make_folder(path):
    path.mkdir()


def make_dangling_link(path):
    path.symlink_to(f"nowhere-{path.name}")


def make_self_link(path):
    path.symlink_to(path.name)


DAMAGE = {
    "absent": lambda path: None,
    "folder": make_folder,
    "dangling": make_dangling_link,
    "loop": make_self_link,
    "pipe": os.mkfifo,
    "empty": lambda path: path.touch(),
    "zeros": lambda path: path.write_bytes(bytes(300)),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "list": lambda path: path.write_text("[1, null, {}]"),
    "text": lambda path: path.write_text("one: {two: three}\n"),
    "nested": lambda path: path.write_text("[" * 100_000),
}
# Every path argument of every command; {x} is the damaged file, {out} one that does not exist, {good} a picture.
COMMANDS = [
    "run {x} --out {out}",
    "plan {x} --out {out}",
    "plan {good_yaml} --out {x}",
    "run {good_yaml} --out {x}",
    "report {x}",
    "report {run} --published {x}",
    "compare {x} {run}",
    "compare {run} {x}",
    "bdrate {x} --anchor shift",
    "bdrate {scores} --anchor shift --published {x}",
    "bdrate {scores} --anchor shift --out {x}",
    "encode --codec jpeg {x} {out}",
    "encode --codec jpeg {good} {x}",
    "encode --codec elic --set weights={x} {good} {out}",
    "encode --codec diff-icmh --set profile=tiny --set weights={x} {good} {out}",
    "encode --codec diff-icmh --set profile=tiny --set tags={x} {good} {out}",
    "encode --codec slim --set profile=tiny --set captions={x}.json {good} {out}",
    "decode {x} {out}.png",
    "decode --codec jpeg {x} {out}.png",
    "decode --codec elic --set weights=tiny {x} {out}.png",
    "decode --codec jpeg {jpeg} {x}.png",
    "train {x} --out {out}",
    "train elic --write {x}",
    "pack export {x} --codec shift --out {out}",
    "pack export {run} --codec shift --out {x}/pack",
    "pack verify {x}",
    "convert {x} {out}.pth",
    "convert --trust {x} {out}.safetensors",
]


@pytest.fixture
def places(tmp_path, finished, photos):
    """Where the placeholders of `COMMANDS` lie, but for {x}."""
    Image.open(photos / "0.png").save(tmp_path / "a.jpg")
    return {
        "run": finished,
        "good_yaml": tmp_path / "experiment.yaml",
        "scores": finished / "scores.csv",
        "good": photos / "0.png",
        "jpeg": tmp_path / "a.jpg",
        "out": tmp_path / "out",
    }


def call(capfd, *arguments):
    """Exit code and standard error of a command in this process."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    return code, capfd.readouterr().err


def assert_one_sentence(code, errors, command, *names):
    assert code in (0, 1, 2), command
    assert "Traceback" not in errors and "a defect of icmbench" not in errors, f"{command}: {errors}"
    lines = [line for line in errors.split("\n") if line.startswith("icmbench: ")]
    if code == 2:
        assert len(lines) == 1, f"{command}: {errors}"
        assert any(name in lines[0] for name in names), f"{command}: {errors}"
        assert not any(word in lines[0] for word in ("weights_only", "torch.load", "safe_globals")), errors


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_command_with_damaged_paths(tmp_path, places, capfd, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    for index, template in enumerate(COMMANDS):
        damaged = tmp_path / f"damaged-{index}"
        DAMAGE[damage](damaged)
        if "{x}.png" in template or "{x}.json" in template:
            DAMAGE[damage](damaged.with_name(f"{damaged.name}.png" if ".png" in template else f"{damaged.name}.json"))
        writes = any(word in template for word in ("--out {x}", "{good} {x}", "--write {x}", "{x}.png", "{x}/pack"))
        if writes and damage == "pipe" and "{good} {x}" in template:
            continue  # A pipe may be written to: somebody reads it.
        arguments = [word.format(x=damaged, **places) for word in template.split()]
        code, errors = call(capfd, *arguments)
        assert_one_sentence(code, errors, f"{damage}: {template}", f"damaged-{index}")
        assert writes or code == 2 or template == "compare {run} {x}", f"{damage}: {template} gave {code}"


FILES = [
    *("environment.json", "pictures.json", "scores.csv", "analyses/bit-split.csv", "derived.json", "images.parquet"),
    "store/contexts/*.npz",
]
HOSTILE = {
    **{name: DAMAGE[name] for name in ("folder", "dangling", "loop", "pipe", "empty", "zeros", "noise", "list", "nested")},
    "object": lambda path: path.write_text("{}"),
    "types": lambda path: path.write_text(
        json.dumps({"experiment": 3, "primary": [], "series": {"a": 1}, "datasets": 2, "python": []})
    ),
    "deep types": lambda path: path.write_text(
        json.dumps({"experiment": {"name": [], "anchor": {}}, "primary": {"a": 3}, "series": [{"label": "shift"}], "datasets": {}})
    ),
    "newer": lambda path: path.write_text(json.dumps({"format": 99})),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (n, d)
        for n in FILES
        for d in HOSTILE
        if n.endswith(("environment.json", "scores.csv")) or d in ("folder", "pipe", "noise", "types")
    ],
)
def test_every_command_on_a_damaged_run_folder(finished, tmp_path, capfd, name, damage):
    path = next(finished.glob(name))
    path.unlink(missing_ok=True)
    HOSTILE[damage](path)
    experiment = tmp_path / "experiment.yaml"
    for arguments in (
        ("report", finished),
        ("report", finished, "--bundle"),
        ("compare", finished, finished),
        ("pack", "export", finished, "--codec", "shift", "--out", tmp_path / "pack"),
        ("plan", experiment, "--out", finished),
        ("run", experiment, "--out", finished),
    ):
        code, errors = call(capfd, *arguments)
        assert_one_sentence(code, errors, f"{damage} {name}: {arguments[0]}", str(finished))


def test_damaged_shards_are_named(finished, tmp_path, capfd):
    for pattern in ("sources/**/0*.parquet", "store/streams/**/0*.parquet", "store/predictions/**/0*.parquet"):
        path = sorted(finished.glob(pattern))[0]
        content = path.read_bytes()
        for damage in ("folder", "pipe", "empty", "zeros", "noise"):
            path.unlink()
            HOSTILE[damage](path)
            for command in ("run", "plan"):
                code, errors = call(capfd, command, tmp_path / "experiment.yaml", "--out", finished)
                assert code in (0, 1, 2) and "Traceback" not in errors and "a defect" not in errors, f"{damage} {pattern}: {errors}"
                assert code == 0 or path.name in errors, f"{damage} {pattern} {command}: {errors}"
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(content)


def test_an_option_whose_path_is_absent_names_codec_and_path(tmp_path, experiment, capfd):
    path = experiment(codecs=[{"name": "shift"}, {"name": "opener", "points": [1], "set": {"table": "nowhere.txt"}}], anchor=None)
    code, errors = call(capfd, "run", path, "--out", tmp_path / "run")
    assert code == 2 and "icmbench: codecs.1 (opener): " in errors and "nowhere.txt" in errors and errors.count("\n") == 1


@pytest.mark.parametrize("value", ['"\\ud800"', '"a\\udc80b"'])
@pytest.mark.parametrize("key", ["label", "name"])
def test_half_characters_are_refused_by_name(tmp_path, experiment, capfd, key, value):
    path = experiment()
    path.write_text(
        path.read_text().replace("- name: shift", f"- name: shift\n  {key}: {value}".replace("name: shift\n  name", "name"))
    )
    code, errors = call(capfd, "run", path, "--out", tmp_path / "run")
    assert code == 2 and f"codecs.0.{key}" in errors and "surrogate" in errors and errors.count("\n") == 1


def test_a_name_with_a_newline_is_printed_in_one_line(tmp_path, capfd):
    for arguments in (
        ["report", tmp_path / "a\nb"],
        ["run", tmp_path / "a\nb.yaml"],
        ["encode", "--codec", "jpeg", tmp_path / "a\nb", "x"],
    ):
        code, errors = call(capfd, *arguments)
        assert code == 2 and errors.count("\n") == 1 and "a\\nb" in errors


@pytest.mark.parametrize(
    "redirection", [">&-", "2>&-", ">&- 2>&-", "<&-", ">/dev/full", "2>/dev/full", "| head -c 1", "2>&1 | head -c 1", "| true"]
)
@pytest.mark.parametrize("arguments", ["list", "list codecs", "--help", "report nowhere", "run"])
def test_closed_and_full_streams(redirection, arguments, tmp_path):
    command = f"set -o pipefail; '{sys.executable}' -m icmbench.harness.cli {arguments} {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode in (0, 1, 2), done
    assert "Traceback" not in done.stderr + done.stdout and "Exception ignored" not in done.stderr


def test_an_unexpected_error_is_one_sentence_and_a_traceback_on_request(monkeypatch, capfd):
    def fail(kind):
        raise KeyError("inside")

    monkeypatch.setattr("icmbench.harness.commands.listing.print_list", fail)
    code, errors = call(capfd, "list")
    assert code == 2 and "KeyError: 'inside'" in errors and "a defect of icmbench" in errors and errors.count("\n") == 1
    monkeypatch.setenv("ICMBENCH_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main(["list"])


@pytest.mark.parametrize("spelling", ["x.png", "./x.png", "folder/../x.png", "link.png", "hard.png"])
def test_encode_and_decode_never_replace_their_input(tmp_path, capfd, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (8, 8)).save("x.png")
    (tmp_path / "link.png").symlink_to("x.png")
    os.link("x.png", "hard.png")
    before = (tmp_path / "x.png").read_bytes()
    for arguments in (["encode", "--codec", "jpeg", "x.png", spelling], ["decode", "--codec", "jpeg", "x.png", spelling]):
        code, errors = call(capfd, *arguments)
        assert code == 2 and "is the file x.png itself" in errors
    assert (tmp_path / "x.png").read_bytes() == before


def test_the_pictures_of_a_run_are_no_photographs(tmp_path, photos, experiment, monkeypatch, capfd):
    for path in photos.iterdir():
        path.rename(tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    datasets = {"photos": {"kind": "images", "images": "."}}
    path = experiment(datasets=datasets, codecs=[{"name": "shift", "points": [6, 4]}])
    sizes = []
    for _ in range(3):
        code, errors = call(capfd, "run", path, "--keep", "reconstructions")
        assert code == 0, errors
        sizes.append(json.loads((tmp_path / "runs" / "small" / "environment.json").read_text())["datasets"]["photos"]["images"])
    assert sizes == [10, 10, 10]


def test_a_damaged_context_is_named(tmp_path):
    from icmbench.harness.store.store import Store

    def compute():
        return {"a": np.arange(3)}

    assert Store(tmp_path).context("task 1", compute)["a"].tolist() == [0, 1, 2]
    assert Store(tmp_path).context("task 2", lambda: {"a": np.arange(4)})["a"].tolist() == [0, 1, 2, 3]
    [path, other] = sorted((tmp_path / "contexts").iterdir(), key=lambda path: path.stat().st_size)
    good = path.read_bytes()
    flips = {f"flip {k}": good[:k] + bytes([good[k] ^ 1]) + good[k + 1 :] for k in range(0, len(good), 37)}
    for content in [good[:-9], b"", bytes(range(256)), other.read_bytes(), *flips.values()]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"\.npz is damaged .*delete it"):
            Store(tmp_path).context("task 1", compute)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="no regular file"):
        Store(tmp_path).context("task 1", compute)
