"""What a long run says while it works, in a log and to another shell; parts of an experiment; keys that are overridden."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from PIL import Image

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.commands.status import print_status
from icmbench.harness.config.devices import deal_gpus, resolve_device
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.config.selection import Selection
from icmbench.harness.config.settings import override
from icmbench.harness.processes.estimate import estimate
from icmbench.harness.processes.heartbeats import Beat, stage
from icmbench.harness.processes.pool import Staff
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.whole_files import process_space
from icmbench.harness.work.activity import Part

DISTANCE = [{"name": "distance", "dataset": "photos"}]
COMMAND = [sys.executable, "-m", "icmbench.harness.cli"]


def start(path, folder, *arguments):
    environment = os.environ | {"ICMBENCH_SLOW_CODEC": "0.4"}
    command = [*COMMAND, "run", str(path), "--out", str(folder), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_a_log_tells_how_far_a_run_has_come(tmp_path, experiment):
    codecs = [{"name": "shift", "points": [4]}, {"name": "picky", "points": [4]}]
    process = start(experiment(codecs=codecs, tasks=DISTANCE), tmp_path / "run", "--progress", "0.5", "--workers", "2")
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    lines = log.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in lines), log
    assert "20 reconstructions lack something; 2 workers" in lines[0]
    states = [re.search(r"([\d.]+)%: (\d+) of 20 reconstructions", line) for line in lines]
    shares = [float(match[1]) for match in states if match]
    assert len(shares) > 3 and shares == sorted(shares)
    assert any("images/s of one worker: " in line and "shift 2." in line for line in lines), log
    assert any("remaining" in line and "memory" in line and "at work: " in line for line in lines)
    assert sum("finished on photos: " in line for line in lines) >= 1
    assert "shift bits=4" in log and "picky bits=4" in log


def test_status_tells_of_a_run_that_works_and_of_one_that_was_killed(tmp_path, experiment, icmbench):
    path, folder = experiment(codecs=[{"name": "shift"}], tasks=DISTANCE, shard_size=1), tmp_path / "run"
    process = start(path, folder, "--workers", "2", "--progress", "0")
    wait_until(lambda: len(list(folder.glob("progress/*/*.json"))) == 3)
    told = icmbench("status", folder)
    assert told.returncode == 0, told.stderr
    assert "small: process" in told.stdout and "of 40 reconstructions" in told.stdout
    assert told.stdout.count("MiB: ") == 2  # One line for each worker.
    part = icmbench("status", folder, "--only", "codec=shift", "--only", "point=4").stdout
    assert "counted: codec=shift, point=4" in part and "of 10 reconstructions" in part
    process.kill()
    process.communicate()
    told = icmbench("status", folder).stdout
    assert "was killed" in told and "the same command goes on" in told and "no tables were made yet" in told
    assert icmbench("run", path, "--out", folder).returncode == 0
    assert not list(folder.glob("progress"))
    assert "nothing is missing" in icmbench("status", folder).stdout
    missing = icmbench("status", tmp_path / "absent")
    assert missing.returncode == 2 and "no such run folder" in missing.stderr


def command_facts(**changes):
    parts = [["d", "fast", "1", "", 10, None], ["d", "slow", "1", "", 10, None], ["d", "fast", "1", "t", 10, None]]
    return {"since": 0.0, "images": 20, "returned": 0, "failures": 0, "parts": parts} | changes


def beat(**facts):
    common = {"machine": "elsewhere", "pid": 1, "started": 1.0, "beat": time.time(), "first": time.time() - 10.0}
    return Beat("progress/x/y.json", common | {"tallies": [], "at_work": [], "finished": 0, "done": 0} | facts)


def test_remaining_time_counts_a_slow_codec_in_full():
    tallies = [["d", "fast", "1", "", 5, 1.0], ["d", "slow", "1", "", 1, 8.0], ["d", "fast", "1", "t", 5, 1.0]]
    now = estimate(command_facts(), [beat(tallies=tallies, finished=4, done=2)])
    assert (now.done, now.images) == (6, 20)
    # 5 images at 0.2 s, 9 at 8 s, 5 predictions at 0.2 s; ten seconds of work took ten seconds of the clock.
    assert now.remaining == pytest.approx(74, rel=0.01)
    assert now.codec_rates == pytest.approx({"fast": 5.0, "slow": 0.125}) and now.task_rates == pytest.approx({"t": 5.0})


def test_what_was_never_timed_is_said_and_old_costs_serve():
    tallies = [["d", "fast", "1", "", 10, 10.0], ["d", "fast", "1", "t", 10, 0.0]]
    now = estimate(command_facts(), [beat(tallies=tallies)])
    assert now.untimed == ("slow",) and "remaining time unknown, not timed yet: slow" in now.line()
    parts = command_facts()["parts"]
    parts[1][5] = 3.0
    now = estimate(command_facts(parts=parts), [beat(tallies=tallies)])
    assert not now.untimed and now.remaining == pytest.approx(30, rel=0.01)
    only_fast = estimate(command_facts(), [beat(tallies=tallies)], select=lambda part: part.codec == "fast")
    assert (only_fast.done, only_fast.images, only_fast.remaining) == (10, 10, 0.0)


def test_a_worker_that_is_dead_or_silent_is_told_from_one_that_is_slow():
    alive = psutil.Process()
    here = Beat("x", {"beat": time.time() - 100, "pid": alive.pid, "machine": process_space(), "started": alive.create_time()})
    assert here.state == "silent"
    assert Beat("x", here.facts | {"beat": time.time()}).state == "works"
    assert Beat("x", here.facts | {"started": 1.0}).state == "dead"
    assert Beat("x", here.facts | {"machine": "elsewhere"}).state == "silent"


def test_a_part_is_computed_alone_and_leaves_the_tables_of_the_whole(tmp_path, experiment, icmbench, calls):
    path, folder = experiment(codecs=[{"name": "shift"}, {"name": "picky"}]), tmp_path / "run"
    part = icmbench("run", path, "--out", folder, "--only", "codec=picky", "--only", "point=4", "--only", "task=distance")
    assert part.returncode == 0, part.stderr
    assert "a part: the tables of the whole" in part.stdout and "picky" in part.stdout and "shift" not in part.stdout
    counts = calls()
    assert counts["compress picky"] == 10 and "compress shift" not in counts and "model" not in counts
    assert not (folder / "scores.csv").exists()
    assert icmbench("run", path, "--out", folder).returncode == 0
    counts = calls()
    assert counts["compress picky"] == 20 and counts["compress shift"] == 30  # One of the three points was there.
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and "store" not in file.parts}
    again = icmbench("run", path, "--out", folder, "--only", "dataset=photos")
    assert again.returncode == 0 and not calls()
    shown = icmbench("report", folder, "--only", "codec=picky", "--only", "point=bits=4")
    assert shown.returncode == 0, shown.stderr
    [part] = (folder / "parts").rglob("bdrate.csv")
    assert set(pd.read_csv(part).codec) == {"picky"}
    assert {file: file.read_bytes() for file in before} == before
    plan = icmbench("plan", path, "--out", folder, "--only", "codec=picky")
    assert "picky" in plan.stdout and "shift" not in plan.stdout


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ("codec=shfit", "unknown codec 'shfit'; did you mean 'shift'?"),
        ("tasks=distance", "unknown kind 'tasks'; did you mean 'task'?"),
        ("codec", "write codec=LABEL"),
        ("point=77", "none of the selected codecs has such a point"),
    ],
)
def test_a_part_that_is_not_there_is_named(tmp_path, experiment, icmbench, only, words):
    done = icmbench("run", experiment(), "--out", tmp_path / "run", "--only", only)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_references_of_parts_add_up(tmp_path, experiment, icmbench):
    path, folder = experiment(codecs=[{"name": "shift", "points": [4]}, {"name": "picky", "points": [4]}]), tmp_path / "run"
    for codec in ("shift", "picky"):
        assert icmbench("run", path, "--out", folder, "--only", f"codec={codec}").returncode == 0
    [reference] = (folder / "store" / "references").iterdir()
    listed = icmbench("store", "ls", folder / "store", "--json").stdout
    fingerprints = set(re.findall(r"[0-9a-f]{20}", reference.read_text()))
    streams = {name.name for name in (folder / "store" / "streams").iterdir()}
    assert len(streams) == 2 and streams <= fingerprints, (streams, fingerprints, listed)


def test_keys_are_overridden_by_their_path(tmp_path, experiment, icmbench):
    path, folder = (
        experiment(codecs=[{"name": "shift", "label": "low"}, {"name": "shift", "label": "high", "points": [1]}]),
        tmp_path,
    )
    settings = ["codecs.low.points=[6, 5]", "anchor=high", "tasks.1.label=far", "shard_size=5", "bootstrap=0"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    done = icmbench("run", path, "--out", folder / "run", *arguments)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(folder / "run" / "scores.csv")
    assert set(table.point) == {"-", "bits=3", "bits=2", "bits=7"} and "far" in set(table.task)
    copy = folder / "run" / "experiment.yaml"
    assert copy.read_text().startswith("# Made from experiment.yaml by: --set")
    assert yaml.safe_load(copy.read_text())["codecs"][0]["points"] == [6, 5]
    again = icmbench("run", path, "--out", folder / "run", *arguments)
    assert "0 images decoded, 0 predicted" in again.stdout


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("codecs.shfit.points=[1]", "unknown entry 'shfit'; did you mean 'shift'?"),
        ("shard_sice=3", "unknown key 'shard_sice'; did you mean 'shard_size'?"),
        ("shard_size=many", "shard_size: Input should be a valid integer"),
        ("shard_size", "write KEY=VALUE"),
        ("name.first=x", "is a value without keys"),
    ],
)
def test_an_override_that_fits_nothing_is_named(tmp_path, experiment, icmbench, setting, words):
    done = icmbench("plan", experiment(), "--out", tmp_path / "run", "--set", setting)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_override_makes_mappings_and_does_not_touch_its_input():
    data = {"codecs": [{"name": "a"}, {"name": "a", "label": "b"}]}
    assert override(data, ["codecs.b.set.preset=slow"])["codecs"][1] == {"name": "a", "label": "b", "set": {"preset": "slow"}}
    assert data == {"codecs": [{"name": "a"}, {"name": "a", "label": "b"}]}
    with pytest.raises(UserError, match="2 entries have the name 'a'"):
        override(data, ["codecs.a.points=[1]"])


def test_wrong_flags_are_answered_by_the_command_itself(experiment, icmbench):
    done = icmbench("run", experiment(), "--wrokers", "2")
    assert done.returncode == 2 and "usage: icmbench run" in done.stderr and "did you mean --workers?" in done.stderr


def test_a_probe_measures_and_keeps_what_it_computed(tmp_path, experiment, icmbench, calls):
    path, folder = experiment(), tmp_path / "run"
    before = icmbench("plan", path, "--out", folder)
    assert "unknown" in before.stdout and not calls()
    probed = icmbench("plan", path, "--out", folder, "--probe", "2", "--workers", "3")
    assert probed.returncode == 0, probed.stderr
    assert "time: about" in probed.stdout and "on 3 workers" in probed.stdout and "memory: about" in probed.stdout
    assert calls()["compress shift"] == 6
    assert icmbench("run", path, "--out", folder).returncode == 0
    assert calls()["compress shift"] == 24


def test_devices_are_checked_before_anything_is_computed(monkeypatch):
    assert resolve_device("auto", "device") in ("cpu", "cuda", "mps") and resolve_device("cpu", "device") == "cpu"
    for wrong, words in (("gpu", "is no device"), ("cuda:77", "is not there"), (3, "is no device")):
        with pytest.raises(UserError, match=words):
            resolve_device(wrong, "device")
    with pytest.raises(UserError, match="--devices 0: this process sees 0 NVIDIA GPUs"):
        monkeypatch.setattr("icmbench.harness.config.devices.count_gpus", lambda: 0)
        deal_gpus("0")
    monkeypatch.setattr("icmbench.harness.config.devices.count_gpus", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert deal_gpus("0,3") == ["0", "3"]
    monkeypatch.setattr("icmbench.harness.config.devices.count_gpus", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    assert deal_gpus("1,0") == ["GPU-abc", "4"]
    for wrong in ("2", "0,0", "all", ""):
        with pytest.raises(UserError, match="--devices"):
            deal_gpus(wrong)


def test_the_cores_are_shared_by_those_who_compute(monkeypatch):
    monkeypatch.setattr("icmbench.harness.processes.pool.usable_cpus", lambda: 16)
    assert Staff(4).worker_threads == 4 and Staff(20).worker_threads == 1
    roles = Staff(8, models=2)
    assert roles.worker_threads == 1 and roles.model_threads == 4


def test_selection_of_a_part_is_printed_and_compared():
    selection = Selection.parse(["codec=a", "codec=b", "point=quality=20"])
    assert str(selection) == "codec=a, codec=b, point=quality=20" and selection
    assert not Selection.parse([]) and selection.has_point("quality=20") and not selection.has_point("quality=5")
    frame = pd.DataFrame({"codec": ["a", "c", "anchor"], "point": ["quality=20", "quality=20", "quality=5"]})
    assert list(selection.rows_of(frame, ["anchor"]).codec) == ["a", "anchor"]
    assert str(Part("d", "a", "1", "t")) == "t on a 1 of d"


def test_a_run_in_this_process_says_nothing_unless_asked(tmp_path, experiment, capfd):
    run(load_experiment(experiment()), tmp_path / "run", RunOptions())
    assert not capfd.readouterr().err


def test_pictures_that_repeat_are_told_and_counted(tmp_path, experiment, photos, icmbench):
    (photos / "again.png").write_bytes((photos / "1.png").read_bytes())
    done = icmbench("run", experiment(), "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "photos: 1 images have the pixels of another image, such as '1.png' and 'again.png'; each of them counts" in done.stderr
    assert set(pd.read_csv(tmp_path / "run" / "scores.csv").scored) == {11}
    assert "pixels of another" not in icmbench("run", experiment(), "--out", tmp_path / "run").stderr


def test_a_picture_of_16_bits_is_refused_before_anything_is_coded(tmp_path, experiment, photos, icmbench, calls):
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(photos / "z.png")
    done = icmbench("run", experiment(), "--out", tmp_path / "run")
    assert done.returncode == 2 and "z.png" in done.stderr and "compress shift" not in calls()


@pytest.mark.parametrize(
    "text",
    ["shard_size: 4\nlimit: 3\nshard_size: 5", "codecs: [{name: shift, set: {1: a, 0x1: b}}]", "datasets: {a: {yes: 1, true: 2}}"],
)
def test_keys_that_are_given_twice_are_located(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_text("name: x\n" + text)
    with pytest.raises(UserError, match=r"is given twice, on lines \d and \d"):
        load_experiment(path)


def test_a_run_that_was_stopped_and_continued_loses_nothing(tmp_path, experiment):
    path = experiment(codecs=[{"name": "shift", "points": [4]}], tasks=DISTANCE, shard_size=1, timeout=4)
    process = start(path, tmp_path / "run", "--workers", "2", "--progress", "1")
    wait_until(lambda: list((tmp_path / "run" / "store").rglob("*.parquet")))
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.suspend()
    time.sleep(12)  # Much longer than the timeout of 4 s an image: a shell's Ctrl-Z, or a cluster that suspends a job.
    for member in family:
        member.resume()
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert set(pd.read_csv(tmp_path / "run" / "scores.csv").scored) == {10}


def test_a_disk_that_is_full_for_a_while_costs_what_was_not_written(tmp_path, experiment, monkeypatch):
    path = experiment(codecs=[{"name": "shift", "points": [4]}], tasks=DISTANCE, shard_size=2)
    loaded, full = load_experiment(path), []
    real = os.fsync

    def fsync(descriptor):
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if "/streams/" in name and len(full) < 2:
            full.append(name)
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    first = run(loaded, tmp_path / "run")
    assert full and first.missing and first.outcome.failures
    assert all("No space left" in failure.reason or "full" in failure.reason for failure in first.outcome.failures)
    again = run(loaded, tmp_path / "run")
    assert not again.missing and again.outcome.codec_images < 10  # What was written while there was room is not computed again.


def test_status_tells_what_a_command_does_beside_computing(tmp_path, capsys):
    folder = Folder(tmp_path / "run")
    with stage(folder, "mine", "makes the tables"):
        wait_until(lambda: list((tmp_path / "run").glob("progress/*/*.json")))
        print_status(str(tmp_path / "run"), Selection())
    assert "mine: process" in capsys.readouterr().out.partition("it makes the tables")[0]
    assert not list((tmp_path / "run").rglob("*.json"))
    print_status(str(tmp_path / "run"), Selection())
    assert "no command works here" in capsys.readouterr().out
    for place, content in (
        ("a", '{"pid": 1, "beat": 1.0}'),
        ("b", '{"pid": 1, "beat": 1.0, "since": "x", "parts": 3}'),
        ("c", "no JSON"),
    ):
        (tmp_path / "run" / "progress" / place).mkdir(parents=True)
        (tmp_path / "run" / "progress" / place / "command.json").write_text(content.replace("{", '{"format": 2, '))
    print_status(str(tmp_path / "run"), Selection())
    assert capsys.readouterr().out.count("cannot be understood") == 2
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        print_status(str(tmp_path / "file"), Selection())
