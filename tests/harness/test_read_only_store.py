"""A store that can only be read serves a run that needs nothing new, and is refused in one sentence by one that does."""

import errno
import os
import subprocess
import sys

import pandas as pd
import pytest

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.merging import merge
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.config.selection import Selection
from icmbench.harness.store import folder as folders

TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]
SHIFT = {"name": "shift", "points": [6, 4]}
COLOUR = {"name": "mean-colour", "dataset": "photos", "model": {"name": "averager"}, "reference": "original"}
DISTANCE = {"name": "distance", "dataset": "photos"}


@pytest.fixture
def close(tmp_path, monkeypatch):
    """A function after whose call nobody can write into the store `shared`, as if it belonged to another user."""

    def forbid():
        def write(target, data, replace, write=folders.write_whole):
            if target.is_relative_to(tmp_path / "shared"):
                raise PermissionError(errno.EACCES, "Permission denied", str(target))
            return write(target, data, replace)

        def remove(folder, name, remove=folders.Folder.remove):
            assert not folder.full_path(name).startswith(str(tmp_path / "shared"))
            remove(folder, name)

        monkeypatch.setattr(folders, "write_whole", write)
        monkeypatch.setattr(folders.Folder, "remove", remove)

    return forbid


def load(experiment, **sections):
    return load_experiment(experiment(**{"store": "shared", "codecs": [SHIFT], "bootstrap": 0} | sections))


def scores(folder):
    return pd.read_csv(folder / "scores.csv").drop(columns=TIMES)


def test_a_run_that_needs_nothing_new_works_in_a_new_folder_and_in_its_own(tmp_path, experiment, close, calls, capsys):
    run(load(experiment), tmp_path / "first", RunOptions(images=0))
    calls()
    close()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*")}
    for name in ("first", "second", "second"):
        capsys.readouterr()
        result = run(load(experiment), tmp_path / name, RunOptions(images=0))
        assert not result.missing and not result.outcome.failures and calls() == {}
        pd.testing.assert_frame_equal(scores(tmp_path / name), scores(tmp_path / "first"), check_exact=True)
        note = "can only be read, so that its owner's `icmbench store clean` does not know that this run needs it"
        assert capsys.readouterr().err.count(f"{tmp_path / 'shared'} {note}") == 1
    assert (tmp_path / "second" / "images.parquet").read_bytes() == (tmp_path / "first" / "images.parquet").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*")} == before
    part = run(load(experiment), tmp_path / "third", RunOptions(only=Selection(task=("distance",))))
    assert set(part.scores.task) == {"distance"} and calls() == {}
    assert not run(load(experiment), tmp_path / "fourth", RunOptions(shard=(1, 2))).outcome.failures
    assert calls() == {}


def test_what_is_missing_is_said_before_anything_is_computed(tmp_path, experiment, close, calls):
    run(load(experiment, tasks=[DISTANCE]), tmp_path / "first", RunOptions(images=0))
    calls()
    close()
    sentence = r"shared can only be read, and lacks a part of photos / shift bits=6 / block 0 and 2 more cells: name a `store` that"
    with pytest.raises(UserError, match=sentence):
        run(load(experiment, tasks=[DISTANCE], codecs=[{"name": "shift", "points": [6, 4, 2]}]), tmp_path / "second")
    with pytest.raises(UserError, match=r"shared can only be read, and lacks the context of task 'mean-colour'"):
        run(load(experiment, tasks=[DISTANCE, COLOUR]), tmp_path / "third")
    with pytest.raises(UserError, match=r"shared can only be read, and lacks a part of photos / shift bits=2 / block 0 and 5 more"):
        run(load(experiment, tasks=[DISTANCE]), tmp_path / "first", RunOptions(keep=True))
    assert calls() == {}


def test_kept_pictures_and_tolerated_failures_count_as_there(tmp_path, experiment, close, calls, photos):
    (photos / "0.png").write_bytes(b"no picture")
    run(load(experiment, fail_on_error=1), tmp_path / "first", RunOptions(keep=True, images=0))
    calls()
    close()
    result = run(load(experiment, fail_on_error=1), tmp_path / "second", RunOptions(keep=True, images=0))
    assert not result.missing and set(result.scores.failed) == {1} and calls() == {}
    with pytest.raises(UserError, match=r"0\.png"):
        run(load(experiment), tmp_path / "third")


def test_runs_with_one_store_that_can_only_be_read_are_merged(tmp_path, experiment, close, calls, capsys):
    for name, task in (("a", COLOUR), ("b", DISTANCE)):
        path = experiment(store="shared", codecs=[SHIFT], tasks=[task], bootstrap=0)
        run(load_experiment(path), tmp_path / name, RunOptions(images=0), source=path)
    close()
    calls()
    capsys.readouterr()
    merged = merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "merged"), base=tmp_path, image_count=0)
    assert not merged.tables.missing and set(merged.tables.scores.task) == {"mean-colour", "distance"} and calls() == {}
    assert "shared can only be read" in capsys.readouterr().err


def test_a_disk_that_is_mounted_read_only(tmp_path, experiment, calls):
    path = experiment(codecs=[SHIFT], store="shared", bootstrap=0)
    run(load_experiment(path), tmp_path / "first", RunOptions(images=0))
    shared = str(tmp_path / "shared")
    mounted = subprocess.run(["mount", "--bind", shared, shared], capture_output=True)
    if mounted.returncode or subprocess.run(["mount", "-o", "remount,ro,bind", shared], capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        calls()
        command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--images", "0", "--out"]
        done = subprocess.run([*command, str(tmp_path / "second")], capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0 and "shared can only be read" in done.stderr and calls() == {}
        experiment(codecs=[{"name": "shift", "points": [1]}], store="shared")
        refused = subprocess.run([*command, str(tmp_path / "third")], capture_output=True, text=True, env=dict(os.environ))
        assert refused.returncode == 2 and "lacks a part of photos / shift bits=7 / block 0" in refused.stderr and calls() == {}
        assert "Traceback" not in refused.stderr
    finally:
        subprocess.run(["umount", shared], check=True)
