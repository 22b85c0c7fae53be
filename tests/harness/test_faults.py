"""Codecs, models and images that misbehave: what is lost, and what the tables report."""

import errno
import os
import subprocess
import sys
import time
from typing import ClassVar

import fsspec
import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from icmbench.codecs.base import CodecError
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.work.attempt import ModelError, attempt


def test_a_tolerated_failure_leaves_every_codec_s_score(tmp_path, experiment, photos, calls, monkeypatch):
    monkeypatch.setenv("ICMBENCH_PICKY", "1")
    (photos / "7.png").write_bytes(b"no picture")
    path = experiment(codecs=[{"name": "shift", "points": [4]}, {"name": "picky", "points": [4]}], fail_on_error=2)
    result = run(load_experiment(path), tmp_path / "run")
    assert not result.missing, result.outcome.failures
    assert set(result.scores.failed) == {2} and set(result.scores.scored) == {8} and set(result.scores.expected) == {10}
    # All codecs are scored on the same images, so equal bytes give equal rates.
    rates = result.scores[result.scores.metric == "distance"].set_index("codec").bpp
    assert rates["shift"] == rates["picky"]
    assert any("2.png" in failure.cell and "too dark" in failure.reason for failure in result.outcome.failures)
    calls()
    again = run(load_experiment(path), tmp_path / "run")
    assert calls() == {} and not again.missing
    pd.testing.assert_frame_equal(again.scores, result.scores)


@pytest.mark.parametrize(("policy", "complete"), [(1, False), (2, True), (0.1, False), (0.2, True)])
def test_the_policy_is_a_count_or_a_share(tmp_path, experiment, photos, policy, complete):
    for name in ("1.png", "7.png"):
        (photos / name).write_bytes(b"no picture")
    result = run(load_experiment(experiment(fail_on_error=policy)), tmp_path / "run")
    assert (not result.missing) == complete
    assert complete or "2 of 10 images failed" in result.missing[0]


def test_a_stricter_policy_tries_again(tmp_path, experiment, calls, monkeypatch):
    monkeypatch.setenv("ICMBENCH_PICKY", "1")
    codecs = [{"name": "picky", "points": [4]}]
    run(load_experiment(experiment(codecs=codecs, anchor=None, fail_on_error=1)), tmp_path / "run")
    monkeypatch.delenv("ICMBENCH_PICKY")
    calls()
    result = run(load_experiment(experiment(codecs=codecs, anchor=None)), tmp_path / "run")
    assert calls()["compress picky"] == 1 and not result.missing and set(result.scores.failed) == {0}


def test_batches_are_halved_to_what_fits_and_to_what_fails():
    sizes = []

    def call(indices):
        sizes.append(len(indices))
        if len(indices) > 2:
            raise MemoryError
        if 5 in indices:
            raise ValueError("five")
        return [10 * k for k in indices]

    results = attempt(call, range(8), tolerant=True, callee="model")
    assert isinstance(results.pop(5), ValueError)
    assert results == {k: 10 * k for k in range(8) if k != 5}
    assert max(sizes[1:]) < 8
    with pytest.raises(ValueError, match="five"):
        attempt(call, range(8), tolerant=False, callee="model")


@pytest.mark.parametrize(("callee", "error"), [("codec", CodecError), ("model", ModelError)])
def test_a_broken_contract_names_the_codec_or_the_model(callee, error):
    with pytest.raises(error, match=f"the {callee} gave 0 results for 3 images"):
        attempt(lambda indices: [], range(3), tolerant=False, callee=callee)
    with pytest.raises(error, match=rf"the {callee} wanted to end the process \(sys.exit, 0\)"):
        attempt(lambda indices: sys.exit(0), range(3), tolerant=False, callee=callee)


def test_two_runs_on_one_folder_at_once(tmp_path, experiment):
    path = experiment(codecs=[{"name": "shift"}, {"name": "shaky", "points": [4]}], shard_size=2)
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--out", str(tmp_path / "run")]
    both = [subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode in (0, 1) and "Traceback" not in errors, errors
    final = run(load_experiment(path), tmp_path / "run")
    assert not final.missing and not final.outcome.failures
    assert final.scores[final.scores.codec == "shaky"].realisation.nunique() == 1


def test_a_full_disk_is_reported_and_what_was_written_is_kept(tmp_path, experiment, calls):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        path = experiment(codecs=[{"name": "shift", "points": [6, 4, 2, 1, 0]}])
        command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--out", str(disk / "run")]
        full = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert full.returncode in (1, 2)
        assert "free some disk space" in full.stderr and "Traceback" not in full.stderr
        calls()
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        assert calls().get("compress shift", 0) < 50
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_task_cannot_change_the_pixels_for_the_next(tmp_path, experiment):
    tasks = [{"name": "vandal", "dataset": "photos"}, {"name": "distance", "dataset": "photos"}]
    result = run(load_experiment(experiment(codecs=[{"name": "shift", "points": [4]}], tasks=tasks)), tmp_path / "run")
    assert {failure.cell.split(" / ")[-1] for failure in result.outcome.failures} == {"vandal"}
    assert "read-only" in result.outcome.failures[0].reason
    assert result.scores.value.between(5, 10).all() and set(result.scores.task) == {"distance"}


def test_a_task_that_fails_for_one_codec_leaves_a_report(tmp_path, experiment, icmbench):
    codecs = [{"name": "shift", "points": [4, 2]}, {"name": "jpeg", "points": [20, 50]}]
    tasks = [{"name": "distance", "dataset": "photos"}, {"name": "choosy", "dataset": "photos"}]
    done = icmbench("run", experiment(codecs=codecs, tasks=tasks), "--out", tmp_path / "run")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "photos / jpeg quality=20 / block 0 / choosy" in done.stderr
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_a_task_that_cannot_be_scored_costs_the_others_nothing(tmp_path, experiment):
    tasks = [{"name": "unscorable", "dataset": "photos"}, {"name": "distance", "dataset": "photos"}]
    result = run(load_experiment(experiment(tasks=tasks)), tmp_path / "run")
    assert set(result.scores.task) == {"distance"}
    assert any(cell.startswith("unscorable: cannot be scored: ZeroDivisionError") for cell in result.missing)


def test_a_flipped_byte_is_noticed(tmp_path, experiment):
    path = experiment(codecs=[{"name": "shift", "points": [4]}])
    run(load_experiment(path), tmp_path / "run")
    shard = next((tmp_path / "run" / "store" / "predictions").rglob("0*.parquet"))
    whole = shard.read_bytes()
    for position in range(4, len(whole) - 8, 97):
        shard.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        try:
            scores = run(load_experiment(path), tmp_path / "run").scores
        except UserError as error:
            assert "damaged" in str(error)
        else:
            assert set(scores.codec) == {"uncompressed", "shift"}  # No value depends on this byte.


def test_workers_do_not_outlive_their_parent(tmp_path, experiment):
    import psutil

    path = experiment(codecs=[{"name": "stuck", "points": [4]}], anchor=None)
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--out", str(tmp_path / "run"), "--workers", "2"]
    parent = subprocess.Popen(command, env=dict(os.environ))
    deadline = time.monotonic() + 60
    while len(children := psutil.Process(parent.pid).children(recursive=True)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)  # The workers need this time to start watching their parent.
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert children and not alive


HABITS = {
    "text": "compress gave str",
    "nothing": "compress gave no bytes",
    "none": "compress gave NoneType",
    "array": "compress gave ndarray",
    "fewer": "gave 1 results for 2 images",
    "floats": "is float64 (40, 60, 3), not uint8 (40, 60, 3)",
    "grey": "is uint8 (40, 60), not uint8 (40, 60, 3)",
    "list": "is list, not uint8 (40, 60, 3)",
    "rotated": "is uint8 (60, 40, 3), not uint8 (40, 60, 3)",
}


def test_a_result_that_is_no_stream_or_no_picture_is_named(tmp_path, experiment, photos):
    for name in ("1.png", "2.png"):  # Images of one shape are coded in one batch.
        Image.fromarray(np.asarray(Image.open(photos / "0.png")) ^ int(name[0])).save(photos / name)
    codecs = [{"name": "odd", "label": habit, "points": [4], "set": {"habit": habit}} for habit in HABITS]
    tasks = [{"name": "distance", "dataset": "photos"}]
    path = experiment(codecs=[*codecs, {"name": "shift", "points": [4]}], tasks=tasks, limit=3)
    result = run(load_experiment(path), tmp_path / "run")
    reasons = {failure.cell.split(" / ")[1].split()[0]: failure.reason for failure in result.outcome.failures}
    assert reasons.keys() == HABITS.keys()
    assert all(words in reasons[habit] for habit, words in HABITS.items()), reasons
    assert set(result.missing) == {f"photos / {habit} bits=4 / block 0 / distance" for habit in HABITS}
    assert set(result.scores.codec) == {"shift"}


class FullAfter(MemoryFileSystem):
    """An object store that is full after a number of files."""

    protocol = "filling"
    store: ClassVar[dict] = {}
    # Leases, a reference, an identity, the record of the run, a context, source hashes and signs of life come before streams.
    capacity = 14

    def pipe_file(self, path, value, mode="overwrite", **options):
        if len(self.store) >= FullAfter.capacity:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().pipe_file(path, value, mode=mode, **options)


def test_a_full_object_store_is_reported_and_what_was_written_is_kept(experiment, calls, monkeypatch):
    fsspec.register_implementation("filling", FullAfter, clobber=True)
    path = experiment(codecs=[{"name": "shift", "points": [6, 4]}])
    with pytest.raises(UserError, match=r"cannot write .*No space left on device.*: free some disk space"):
        run(load_experiment(path), "filling://run")
    calls()
    monkeypatch.setattr(FullAfter, "capacity", 1000)
    result = run(load_experiment(path), "filling://run")
    assert not result.missing and calls()["compress shift"] < 20


def test_a_read_only_store_is_reported_and_can_still_be_read(tmp_path, experiment, icmbench):
    disk = tmp_path / "disk"
    disk.mkdir()
    path = experiment(codecs=[{"name": "shift", "points": [4]}], anchor=None)
    mounted = not subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode
    if not mounted and os.getuid() == 0:
        pytest.skip("cannot mount a read-only file system here, and root may write anywhere")
    try:
        run(load_experiment(path), disk / "run", RunOptions(shard=(1, 1)))
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        else:
            for folder in [disk, *(inner for inner in disk.rglob("*") if inner.is_dir())]:
                folder.chmod(0o555)
        done = icmbench("run", path, "--out", disk / "run")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "cannot write" in done.stderr and "choose a folder that can be written" in done.stderr
        planned = icmbench("plan", path, "--out", disk / "run")
        assert planned.returncode == 0 and "0 of 9 cells missing" in planned.stdout, planned.stdout + planned.stderr
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
        else:
            for folder in [disk, *(inner for inner in disk.rglob("*") if inner.is_dir())]:
                folder.chmod(0o755)
