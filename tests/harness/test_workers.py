"""Worker processes that are lost, hang, leak or print; a clock that jumps."""

import functools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment

DISTANCE = [{"name": "distance", "dataset": "photos"}]
MISBEHAVING = {"stuck": "took longer than", "crash": "process died", "clinging": "process died", "quitting": "sys.exit"}


def test_codecs_that_hang_crash_or_quit_cost_their_cells_only(tmp_path, experiment, calls):
    codecs = [{"name": codec, "points": [4]} for codec in [*MISBEHAVING, "shift"]]
    result = run(load_experiment(experiment(codecs=codecs, timeout=3, limit=3)), tmp_path / "run", RunOptions(workers=2))
    left = [int(line.split()[1]) for line in calls() if line.startswith("left")]  # What the codec `clinging` leaves behind.
    assert left and not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in left)
    reasons = {failure.cell: failure.reason for failure in result.outcome.failures}
    assert set(reasons) == {f"photos / {codec} bits=4 / block 0" for codec in MISBEHAVING}
    assert all(words in reasons[f"photos / {codec} bits=4 / block 0"] for codec, words in MISBEHAVING.items()), reasons
    tasks = ("mean-colour", "distance")
    assert set(result.missing) == {f"photos / {codec} bits=4 / block 0 / {task}" for codec in MISBEHAVING for task in tasks}
    assert "shift" in set(result.scores.codec)


def test_an_encoder_that_hangs_is_killed_and_long_error_messages_pass(tmp_path, experiment):
    command = {"encode": ["sh", "-c", "sleep 98765", "{point}", "{input}", "{stream}"], "decode": ["true", "{stream}", "{output}"]}
    codecs = [{"name": "command", "points": [4], "set": command}, {"name": "verbose", "points": [4, 2]}, {"name": "shift"}]
    path = experiment(codecs=codecs, tasks=DISTANCE, timeout=4, limit=2)
    result = run(load_experiment(path), tmp_path / "run", RunOptions(workers=2))
    reasons = {failure.cell.split(" / ")[1].split()[0]: failure.reason for failure in result.outcome.failures}
    assert "took longer than" in reasons["command"] and len(reasons["verbose"]) > 2**20
    assert set(result.scores.codec) == {"shift"}
    assert not [process for process in psutil.process_iter(["cmdline"]) if "98765" in " ".join(process.info["cmdline"] or [])]


def test_ctrl_c_ends_all_workers(tmp_path, experiment):
    path = experiment(tasks=DISTANCE, shard_size=1)
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--out", str(tmp_path / "run"), "--workers", "2"]
    environment = os.environ | {"ICMBENCH_SLOW_CODEC": "0.2"}
    # Below a background job of a shell, the signal is ignored unless its default handling is restored.
    restore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=restore
    )
    while process.poll() is None and len(list((tmp_path / "run").rglob("*.parquet"))) < 4:
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # A terminal signals the whole process group.
    _, errors = process.communicate()
    assert process.returncode == 130 and errors.endswith("icmbench: stopped; the same command goes on from here\n")
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=5)[1]


@pytest.mark.parametrize(
    ("start", "words"), [("raise ImportError('broken')", "exit code 1"), ("import time; time.sleep(99)", "not a word")]
)
def test_workers_that_cannot_start_end_the_run(tmp_path, experiment, monkeypatch, start, words):
    monkeypatch.setattr("icmbench.harness.processes.workers.START_SECONDS", 1.0 if "sleep" in start else 99.0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "psutil.py").write_text(start)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}{os.pathsep}{os.environ['PYTHONPATH']}")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "broken"), *sys.path])
    with pytest.raises(UserError, match=rf"worker processes cannot start .*{words}.*__main__"):
        run(load_experiment(experiment(tasks=DISTANCE)), tmp_path / "run", RunOptions(workers=2))


def add_pictures(photos, count):
    """Add pictures to the ten of the fixture, so that there are `count`."""
    for k in range(10, count):
        Image.fromarray(np.asarray(Image.open(photos / "0.png")) ^ k).save(photos / f"{k}.png")


def test_a_codec_that_leaks_gets_new_processes(tmp_path, experiment, photos, calls):
    codecs = [{"name": "leaky", "points": [4]}, {"name": "shift", "points": [4]}]
    path = experiment(codecs=codecs, tasks=DISTANCE, anchor=None, timeout=100, limit=8)
    result = run(load_experiment(path), tmp_path / "run")
    assert not result.missing and not result.outcome.failures
    # This block has more pictures than fit into the memory of as many processes as a unit may lose; what they computed is kept.
    path = experiment(codecs=codecs, tasks=DISTANCE, anchor=None, timeout=100, shard_size=16, batch_size=1)
    add_pictures(photos, 16)
    result = run(load_experiment(path), tmp_path / "other")
    assert {failure.reason.partition(" (")[0] for failure in result.outcome.failures} == {"its worker process ran out of memory"}
    assert result.missing == ["photos / leaky bits=4 / block 0 / distance"]
    assert set(result.scores.codec) == {"shift"}
    calls()
    result = run(load_experiment(path), tmp_path / "other")
    assert not result.missing and calls()["compress leaky"] <= 8


def test_the_unit_of_a_killed_worker_is_computed_by_another(tmp_path, experiment):
    path = experiment(tasks=DISTANCE, timeout=100, shard_size=1)
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--out", str(tmp_path / "run"), "--workers", "2"]
    process = subprocess.Popen(command, env=os.environ | {"ICMBENCH_SLOW_CODEC": "0.1"}, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(list((tmp_path / "run").rglob("*.parquet"))) < 12:
        time.sleep(0.01)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (pd.read_csv(tmp_path / "run" / "scores.csv").scored == 10).all()


CLOCK = """
import time
system_time, start = time.time, time.monotonic()
def jumping():
    seconds = time.monotonic() - start
    return system_time() + (0 if seconds < 3 else 3e7 if seconds < 6 else -3e7)
time.time = jumping
"""


def test_a_clock_that_jumps_changes_nothing(tmp_path, experiment, calls, icmbench, monkeypatch):
    path = experiment(tasks=DISTANCE, timeout=60)
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path / 'clock'}{os.pathsep}{os.environ['PYTHONPATH']}")
        done = icmbench("run", path, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "run" / "scores.csv")
    assert (table[["encode_seconds", "decode_seconds", "task_seconds"]].dropna() >= 0).all(axis=None)
    for number, file in enumerate((tmp_path / "run").rglob("*.parquet")):
        os.utime(file, ns=(0, (number % 2) * 2**62))  # As if written in 1970, or in 2116.
    calls()
    assert not run(load_experiment(path), tmp_path / "run").missing and calls() == {}


def test_a_codec_that_prints_and_runs_out_of_memory_gets_smaller_batches(tmp_path, experiment, icmbench):
    tasks = [{"name": "mean-colour", "dataset": "photos", "model": {"name": "hungry"}, "reference": "original"}]
    path = experiment(codecs=[{"name": "chatty", "points": [4]}], tasks=tasks, anchor=None)
    for options in ([], ["--workers", "2"]):
        done = icmbench("run", path, "--out", tmp_path / f"run{len(options)}", *options)
        assert done.returncode == 0, done.stderr
        assert "CHATTER" not in done.stdout
        assert all(f"CHATTER of {printer}" in done.stderr for printer in ("Python", "the system", "C"))
        table = pd.read_csv(tmp_path / f"run{len(options)}" / "scores.csv")
        assert set(table.codec) == {"uncompressed", "chatty"} and (table.scored == 10).all()
