"""Coders and model processes: who does what, equal results, pixels that cross in memory, and processes that are lost."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.processes import shared_pixels
from icmbench.harness.processes.model_client import deal
from icmbench.harness.processes.shared_pixels import PixelReader, PixelWriter, make_folder, map_pixels, remove_pixels

LOADER = [
    {"name": "mean-colour", "dataset": "photos", "model": {"name": "loader"}, "reference": "original"},
    {"name": "distance", "dataset": "photos"},
]
TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]
ROLES = RunOptions(coders=2, models=1)


def scores(folder):
    return pd.read_csv(Path(folder) / "scores.csv").drop(columns=TIMES)


def test_the_model_is_loaded_in_one_process_and_scores_are_those_of_one_process(tmp_path, experiment, calls):
    path = experiment(tasks=LOADER, shard_size=2)
    alone = run(load_experiment(path), tmp_path / "one")
    calls()
    shared = run(load_experiment(path), tmp_path / "roles", ROLES)
    counts = calls()
    assert not shared.missing and not shared.outcome.failures
    assert sum(line.startswith("load ") for line in counts) == 1
    assert shared.outcome.model_images == alone.outcome.model_images and shared.outcome.codec_images == alone.outcome.codec_images
    pd.testing.assert_frame_equal(scores(tmp_path / "one"), scores(tmp_path / "roles"))
    assert not run(load_experiment(path), tmp_path / "roles", ROLES).outcome.codec_images
    assert not list(Path("/dev/shm").glob(f"icmbench-{os.getpid()}-*"))


def test_codecs_on_a_gpu_work_in_the_model_processes_which_get_the_gpus(tmp_path, experiment, calls):
    path = experiment(codecs=[{"name": "shift", "points": [4]}, {"name": "on-gpu", "points": [4]}], tasks=LOADER, shard_size=1)
    result = run(load_experiment(path), tmp_path / "run", RunOptions(coders=2, models=2, devices=("5", "7")))
    assert not result.missing and not result.outcome.failures
    places = {tuple(line.split(" with GPU ")) for line in calls() if line.startswith("coded in")}
    assert {gpu for _, gpu in places} <= {"5", "7"} and len(places) <= 2
    run(load_experiment(path), tmp_path / "one")
    pd.testing.assert_frame_equal(scores(tmp_path / "one"), scores(tmp_path / "run"))


def test_four_workers_see_the_four_gpus_that_are_dealt(tmp_path, experiment, calls, monkeypatch, capfd):
    monkeypatch.setenv("ICMBENCH_MEET", "4")
    path = experiment(codecs=[{"name": "on-gpu"}], anchor=None, tasks=LOADER, shard_size=1)
    assert not run(load_experiment(path), tmp_path / "run", RunOptions(workers=4, devices=("0", "1", "2", "3"))).missing
    seen = {line.rpartition(" ")[2] for line in calls() if line.startswith("coded in")}
    assert seen == {"0", "1", "2", "3"}
    told = capfd.readouterr().err
    assert all(f"has GPU {gpu}" in told for gpu in seen)


def test_a_model_process_that_is_killed_is_replaced_and_nothing_is_lost(tmp_path, experiment, calls, monkeypatch):
    monkeypatch.setenv("ICMBENCH_SLOW", "0.05")
    path = experiment(tasks=LOADER, shard_size=2)
    log, killed = Path(os.environ["ICMBENCH_CALLS"]), []

    def kill_the_first():
        while not killed:
            lines = log.read_text().splitlines() if log.exists() else []
            loads = [line for line in lines if line.startswith("load ")]
            if loads and lines.count("model") > 6:
                killed.append(int(loads[0].split()[1]))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_the_first, daemon=True)
    thread.start()
    result = run(load_experiment(path), tmp_path / "run", ROLES)
    thread.join(10)
    assert killed and not result.missing and not result.outcome.failures
    run(load_experiment(path), tmp_path / "one")
    pd.testing.assert_frame_equal(scores(tmp_path / "one"), scores(tmp_path / "run"))


def test_a_model_that_hangs_costs_its_cells_only(tmp_path, experiment):
    tasks = [{"name": "mean-colour", "dataset": "photos", "model": {"name": "stuck-model"}, "reference": "original"}, LOADER[1]]
    path = experiment(codecs=[{"name": "shift", "points": [4]}], tasks=tasks, timeout=2, limit=6, shard_size=1)
    result = run(load_experiment(path), tmp_path / "run", ROLES)
    failed = {failure.cell for failure in result.outcome.failures}
    assert failed and all("block 2" in cell for cell in failed), failed  # The third picture is dark.
    assert {cell for cell in result.missing if "mean-colour" in cell} >= {"photos / uncompressed - / block 2 / mean-colour"}


def test_a_model_that_cannot_be_built_is_told_before_anything_is_coded(tmp_path, experiment, calls):
    tasks = [{"name": "mean-colour", "dataset": "photos", "model": {"name": "hungry"}, "reference": "original"}]
    result = run(load_experiment(experiment(tasks=tasks)), tmp_path / "run", ROLES)
    assert not result.missing  # It runs out of memory on two images, so the batch is halved across the processes.
    with pytest.raises(UserError, match="no such file or folder"):
        tasks[0]["model"] = {"name": "averager", "weight": "absent.pth"}
        run(load_experiment(experiment(tasks=tasks)), tmp_path / "other", ROLES)


def test_pictures_cross_in_memory_and_on_a_disk_where_there_is_no_room(tmp_path, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    folder = make_folder()
    writer, reader = PixelWriter(folder), PixelReader()
    file = writer.write(picture[:, ::-1])
    assert Path(file.path).parent == folder and (reader.read(file) == picture[:, ::-1]).all()
    assert not reader.read(file).flags.writeable and reader.read(file) is reader.read(file)
    mapped = map_pixels(file)
    remove_pixels(file)
    assert (mapped == picture[:, ::-1]).all() and not list(folder.iterdir())

    def no_room(*arguments):
        monkeypatch.undo()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_pixels.os, "posix_fallocate", no_room)
    elsewhere = writer.write(picture)
    assert Path(elsewhere.path).parent != folder and (map_pixels(elsewhere) == picture).all() and not list(folder.iterdir())
    writer.close()
    assert not Path(elsewhere.path).exists()
    folder.rmdir()


def test_folders_of_runs_that_were_killed_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_pixels, "SHARED_MEMORY", tmp_path)
    left = tmp_path / "icmbench-999999999-abc"
    left.mkdir()
    (left / "picture").write_bytes(b"x")
    kept = tmp_path / f"icmbench-{os.getpid()}-abc"
    kept.mkdir()
    make_folder()
    assert not left.exists() and kept.exists()


def test_what_a_crashed_worker_left_behind_is_killed(tmp_path, experiment):
    path = experiment(codecs=[{"name": "daemon", "points": [4]}, {"name": "shift"}], tasks=LOADER[1:], limit=1)
    result = run(load_experiment(path), tmp_path / "run", RunOptions(workers=1))
    assert {failure.cell for failure in result.outcome.failures} == {"photos / daemon bits=4 / block 0"}
    assert set(result.scores.codec) == {"shift"}  # The fidelity of pixels does not score the originals.
    running = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert "sleep 86399" not in running


def test_tasks_are_dealt_where_memory_is_too_short_for_all_models(tmp_path, experiment, calls):
    tasks = [{**LOADER[0], "label": label} for label in ("first", "second")]
    path = experiment(tasks=[*tasks, LOADER[1]], shard_size=2)
    run(load_experiment(path), tmp_path / "one")
    calls()
    result = run(load_experiment(path), tmp_path / "roles", RunOptions(coders=2, models=2, deal_tasks=True))
    assert not result.missing and not result.outcome.failures
    loads = [line for line in calls() if line.startswith("load ")]
    assert len(loads) == len({line.split()[1] for line in loads}) == 2  # Each process has loaded one model, not two.
    pd.testing.assert_frame_equal(scores(tmp_path / "one"), scores(tmp_path / "roles"))


@pytest.mark.parametrize(
    ("labels", "count", "homes"),
    [("ab", 3, {"a": (0, 2), "b": (1,)}), ("abc", 2, {"a": (0,), "b": (1,), "c": (0,)}), ("", 2, {}), ("a", 2, {"a": (0, 1)})],
)
def test_every_task_has_a_process_and_every_process_a_task(labels, count, homes):
    assert deal([*labels], count, shares=True) == homes
    assert deal([*labels], count, shares=False) == dict.fromkeys(labels, tuple(range(count)))
