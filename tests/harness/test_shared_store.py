"""Two experiments that overlap fill one store at once, are killed at random moments, and end like undisturbed runs."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment

TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]
KILLS = int(os.environ.get("ICMBENCH_KILLS", "4"))  # `tox run -e soak` sets 50, after which a run takes some minutes.
STREAMS_ONLY = RunOptions(shard=(1, 1))  # Writes no tables.


@pytest.fixture
def two_experiments(tmp_path, experiment):
    """The files of two experiments over the same photographs, with other labels, dataset names, blocks and some other codecs."""
    paths = []
    for name, dataset, label, other, size in (("a", "photos", "shift", "jpeg", 2), ("b", "pictures", "zlib", "picky", 3)):
        sections = yaml.safe_load(experiment().read_text())
        sections |= {
            "name": name,
            "shard_size": size,
            "anchor": label,
            "datasets": {dataset: {"kind": "images", "images": "photos"}},
        }
        sections["codecs"] = [{"name": "shift", "label": label, "points": [6, 4, 2]}, {"name": other, "points": [6, 4]}]
        for task in sections["tasks"]:
            task["dataset"] = dataset
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(sections))
    return paths


def scores(folder):
    return pd.read_csv(folder / "scores.csv").drop(columns=TIMES)


def add_photos(folder, count, seed):
    """Put more photographs into a folder that running processes may list at any moment."""
    chance = np.random.default_rng(seed)
    for k in range(count):
        noise = Image.fromarray(chance.integers(0, 255, (5, 5, 3), dtype=np.uint8))
        path = folder / f"more-{seed:03d}-{k}.png"
        noise.resize((40, 60), Image.Resampling.BICUBIC).save(path.with_suffix(".tmp"), "PNG")
        path.with_suffix(".tmp").rename(path)


def is_at_work(run_folder, process):
    """Whether a process has loaded its libraries and holds its lease."""
    return any(f"-{process.pid}-" in lease.name for lease in (run_folder / "running").glob("*.json"))


def test_two_processes_fill_one_store_under_kills(tmp_path, two_experiments, photos, calls, monkeypatch):
    """Kills fall on whatever the processes do. A run that ends before there were enough of them gets more photographs to code."""
    stores = {"ICMBENCH_STORE": str(tmp_path / "shared"), "ICMBENCH_SLOW_CODEC": "0.1"}
    chance = random.Random(0)
    running, kills, additions = {}, 0, 0
    pending = set(two_experiments)
    while pending:
        for path in pending - set(running):
            command = [sys.executable, "-m", "icmbench.harness.cli", "run", path, "--out", tmp_path / path.stem, "--images", "0"]
            pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            running[path] = additions, subprocess.Popen(command, env=os.environ | stores, **pipes)
        time.sleep(chance.random() * 2)
        for path, (begun_with, process) in list(running.items()):
            if process.poll() is None:
                if kills == KILLS or not is_at_work(tmp_path / path.stem, process) or chance.random() < 0.5:
                    continue
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                del running[path]
            else:
                errors = process.communicate()[1]
                assert process.returncode in (0, 1) and "Traceback" not in errors, errors
                del running[path]
                if kills < KILLS:
                    additions += 1
                    add_photos(photos, 10, additions)
                    pending = set(two_experiments)
                elif process.returncode == 0 and begun_with == additions:
                    pending.remove(path)
    counted = calls()
    images = len([*photos.iterdir()])
    more_than_once = {name: counted[f"compress {name}"] - points * images for name, points in (("shift", 3), ("picky", 2))}
    print(f"\n{kills} kills, {images} images, computed more than once: {more_than_once}")
    assert kills == KILLS
    # What is in flight when a process is killed, or when two work at the same unit, is at most a unit: three images at five points.
    assert 0 <= more_than_once["shift"] <= 3 * 5 * (kills + 2 + additions), counted
    leases = list((tmp_path / "shared" / "leases").iterdir())
    assert len(leases) <= kills, "only killed processes leave a lease"
    monkeypatch.delenv("ICMBENCH_STORE", raising=False)
    for path in two_experiments:
        assert not run(load_experiment(path), tmp_path / "alone" / path.stem).missing
        pd.testing.assert_frame_equal(scores(tmp_path / path.stem), scores(tmp_path / "alone" / path.stem), check_exact=True)


def test_what_is_in_the_store_is_not_computed_again(tmp_path, two_experiments, calls, monkeypatch):
    monkeypatch.setenv("ICMBENCH_STORE", str(tmp_path / "shared"))
    for path, expected in zip(two_experiments, (30, 0), strict=True):
        assert not run(load_experiment(path), tmp_path / path.stem, STREAMS_ONLY).outcome.failures
        counted = calls()
        assert counted.get("compress shift", 0) == expected
    assert counted["compress picky"] == 20
    assert "model" not in counted, "the reconstructions of both codecs are equal, so their predictions are too"


def test_renaming_everything_computes_nothing(tmp_path, experiment, calls):
    path = experiment()
    run(load_experiment(path), tmp_path / "run")
    before = scores(tmp_path / "run")
    calls()
    sections = yaml.safe_load(path.read_text())
    sections |= {"datasets": {"kodak": sections["datasets"]["photos"]}, "shard_size": 2, "anchor": "ours"}
    sections["codecs"][0]["label"] = "ours"
    for task in sections["tasks"]:
        task |= {"dataset": "kodak", "label": f"my {task['name']}"}
    path.write_text(yaml.safe_dump(sections))
    result = run(load_experiment(path), tmp_path / "run")
    assert calls() == {} and not result.missing
    assert result.outcome.codec_images == result.outcome.model_images == 0
    assert scores(tmp_path / "run").value.tolist() == before.value.tolist()


def test_inserting_an_image_computes_that_image(tmp_path, experiment, calls, photos):
    run(load_experiment(experiment()), tmp_path / "run")
    calls()
    Image.new("RGB", (40, 60), (9, 99, 199)).save(photos / "05.png")
    run(load_experiment(experiment()), tmp_path / "run")
    assert calls() == {"compress shift": 3, "decompress shift": 3, "distance": 3, "model": 4}


def test_an_image_swapped_in_place_with_its_size_and_time_kept_is_noticed(tmp_path, experiment, photos):
    paths = [photos / "0.bmp", photos / "1.bmp"]
    for path, colour in zip(paths, ((9, 99, 199), (199, 9, 99)), strict=True):
        Image.new("RGB", (40, 60), colour).save(path)
    run(load_experiment(experiment()), tmp_path / "run")
    before = scores(tmp_path / "run")
    stat = paths[0].stat()
    Image.new("RGB", (40, 60), (50, 60, 70)).save(paths[0])
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (paths[0].stat().st_size, paths[0].stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    run(load_experiment(experiment()), tmp_path / "run")
    after = scores(tmp_path / "run")
    assert before.images.iloc[0] != after.images.iloc[0] and before.value.tolist() != after.value.tolist()


def test_files_that_change_in_their_ctime_while_a_run_computes_are_hashed_again(tmp_path, experiment, photos, monkeypatch):
    from icmbench.harness.commands import run as command

    compute = command.compute

    def compute_and_unlink(*arguments):
        outcome = compute(*arguments)
        for path in [*photos.iterdir()]:
            os.link(path, tmp_path / path.name)  # As a package manager does that shares files between environments.
        return outcome

    monkeypatch.setattr(command, "compute", compute_and_unlink)
    assert not run(load_experiment(experiment()), tmp_path / "run").missing


def test_a_folder_belongs_to_one_experiment(tmp_path, experiment):
    run(load_experiment(experiment()), tmp_path / "run", STREAMS_ONLY)
    with pytest.raises(UserError, match="belongs to the experiment 'small', and this one is named 'other'"):
        run(load_experiment(experiment(name="other")), tmp_path / "run")


def test_an_edited_file_is_refused_while_another_command_writes(tmp_path, experiment):
    path = experiment(codecs=[{"name": "stuck", "points": [4]}], anchor=None)
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL)
    try:
        while not list((tmp_path / "run").glob("running/*.json")) and process.poll() is None:
            time.sleep(0.1)
        with pytest.raises(UserError, match=r"another command .* works there by another version of the experiment file"):
            run(load_experiment(experiment(codecs=[{"name": "shift"}])), tmp_path / "run")
    finally:
        process.kill()
        process.wait()
    assert not run(load_experiment(experiment(codecs=[{"name": "shift"}])), tmp_path / "run").missing


def test_two_points_of_one_fingerprint_are_refused(tmp_path, experiment):
    with pytest.raises(UserError, match=r"codecs\.0\.points: .* have one fingerprint"):
        run(load_experiment(experiment(codecs=[{"name": "vague", "points": [6, 4]}], anchor=None)), tmp_path / "run")


def test_damaged_tables_are_refused_and_made_anew(tmp_path, experiment, icmbench):
    path = experiment(codecs=[{"name": "shift"}, {"name": "jpeg", "points": [10, 30, 50]}])
    assert icmbench("run", path, "--out", tmp_path / "run").returncode == 0
    whole = (tmp_path / "run" / "scores.csv").read_bytes()
    (tmp_path / "run" / "scores.csv").write_bytes(whole[: whole.index(b"\n", len(whole) // 2) + 1])
    reported = icmbench("report", tmp_path / "run")
    assert reported.returncode == 2 and "scores.csv is not the file that was made with the other tables" in reported.stderr
    assert icmbench("run", path, "--out", tmp_path / "run").returncode == 0
    assert (tmp_path / "run" / "scores.csv").read_bytes() == whole
    assert json.loads((tmp_path / "run" / "derived.json").read_text())["files"]["scores.csv"]
    (tmp_path / "run" / "report" / "index.html").unlink()
    assert icmbench("run", path, "--out", tmp_path / "run").returncode == 0
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_streams_of_another_build_are_adopted_by_name(tmp_path, experiment, calls, monkeypatch):
    store = tmp_path / "shared"
    sections = {"codecs": [{"name": "shift", "points": [6, 4]}], "anchor": None, "store": str(store)}
    first = run(load_experiment(experiment(**sections)), tmp_path / "first")
    digests = [path.name for path in (store / "streams").iterdir()]
    calls()
    from harness_plugins import Shift

    def other_build(self, point, seed=0, make=Shift.__init__):
        make(self, point, seed)
        self.fingerprint += " of another build"

    monkeypatch.setattr(Shift, "__init__", other_build)
    sections["codecs"] = [{"name": "shift", "points": [6, 4], "adopt": digests}]
    second = run(load_experiment(experiment(**sections)), tmp_path / "second")
    assert calls() == {} and second.scores.value.tolist() == first.scores.value.tolist()
    sections["codecs"] = [{"name": "shift", "points": [6, 4], "adopt": ["0" * 20]}]
    with pytest.raises(UserError, match=r"codecs\.0\.adopt: .* holds no streams of '00000000000000000000'"):
        run(load_experiment(experiment(**sections)), tmp_path / "third")
    sections["codecs"] = [{"name": "jpeg", "points": [30], "adopt": digests}]
    with pytest.raises(UserError, match=r"codecs\.0\.adopt: .* is of codec 'shift', not of 'jpeg'"):
        run(load_experiment(experiment(**sections)), tmp_path / "third")
