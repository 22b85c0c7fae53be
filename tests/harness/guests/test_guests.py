"""Experiments whose codecs and models live in guests: equal results, keys that hold what decides, and guests that misbehave."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.guests.environment import Environment
from icmbench.harness.guests.plugin import adapter_plugin, environment_state
from icmbench.harness.guests.process import GUESTS

from .conftest import ADAPTER, MODEL

TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]


@pytest.fixture(autouse=True)
def fresh_guests():
    yield
    GUESTS.end()
    environment_state.cache_clear()


def scores(folder):
    return pd.read_csv(Path(folder) / "scores.csv").drop(columns=TIMES)


def guest_processes():
    """Process ids of the guests that this test started, and not another one."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("guests/side/guest.py" in part for part in process.info["cmdline"] or []):
            with suppress(psutil.Error):
                if process.environ().get("ICMBENCH_CALLS") == os.environ["ICMBENCH_CALLS"]:
                    found.append(process.pid)
    return found


def make(adapter, point=4, **options):
    plugin, own = adapter_plugin(
        "codecs", {"file": str(adapter), **options}, "codecs.0.set", Environment("own", sys.executable), adapter.parent
    )
    return plugin(point=point, **own)


def test_a_guest_scores_as_in_this_process_in_every_mode(tmp_path, guest_experiment, calls):
    path = guest_experiment(points=(2, 4))
    result = run(load_experiment(path), tmp_path / "one")
    assert not result.missing and not result.outcome.failures and not guest_processes()
    counts = calls()
    assert counts["compress"] == 20 and len([line for line in counts if line.startswith("make 2")]) == 1
    frame = scores(tmp_path / "one").set_index(["codec", "point"])
    assert set(frame.index) == {("bits", "point=2"), ("bits", "point=4"), ("shift", "bits=4")}
    # Both keep the upper four bits and leave the lower ones zero, so that their reconstructions are equal.
    assert frame.loc[("bits", "point=4"), "value"] == frame.loc[("shift", "bits=4"), "value"]
    for name, options in {"workers": RunOptions(workers=2), "roles": RunOptions(coders=2, models=1)}.items():
        assert not run(load_experiment(path), tmp_path / name, options).missing
        pd.testing.assert_frame_equal(scores(tmp_path / "one"), scores(tmp_path / name))
    calls()
    again = run(load_experiment(path), tmp_path / "workers", RunOptions(workers=2))
    assert not again.outcome.codec_images and "compress" not in calls() and not guest_processes()
    record = json.loads((tmp_path / "one" / "environment.json").read_text())["environments"]["own"]
    assert record["packages"]["numpy"] == record["numpy"] == np.__version__ and record["interpreter"] == sys.executable


def test_keys_hold_all_that_decides_and_nothing_else(tmp_path, guest_experiment, adapter, calls, monkeypatch):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "network.py").write_text("WIDTH = 1")
    (tmp_path / "table.bin").write_bytes(b"1")
    options, environment = {"table": "table.bin"}, {"path": ["checkout"], "env": {"QUANTISE": 1}}

    def compressions(options=options, environment=environment):
        environment_state.cache_clear()
        run(load_experiment(guest_experiment(options, environment)), tmp_path / "run")
        return calls().get("compress", 0)

    assert compressions() == 10
    assert compressions() == 0
    assert compressions(environment={**environment, "env": {"QUANTISE": 1, "OMP_NUM_THREADS": 2}}) == 0
    assert compressions(environment={**environment, "env": {"QUANTISE": 2}}) == 10
    assert compressions({"table": "table.bin", "trouble": "slow"}) == 10
    (tmp_path / "table.bin").rename(tmp_path / "moved.bin")
    assert compressions({"table": "moved.bin"}) == 0  # The content decides, not the name.
    (tmp_path / "moved-4.bin").write_bytes(b"1")
    assert compressions({"table": "moved-{point}.bin"}) == 0
    (tmp_path / "moved.bin").write_bytes(b"2")
    assert compressions({"table": "moved.bin"}) == 10
    (checkout / "network.py").write_text("WIDTH = 2")
    assert compressions({"table": "moved.bin"}) == 10
    (checkout / "codebook.txt").write_text("it may decide too")
    assert compressions({"table": "moved.bin"}) == 10
    environment_state.cache_clear()
    monkeypatch.setenv("A_VARIABLE_OF_THE_SHELL", "1")
    assert "A_VARIABLE_OF_THE_SHELL" not in Environment("own", sys.executable).variables()
    adapter.write_text(ADAPTER.replace('{"version": 1}', '{"version": 2}'))
    assert compressions({"table": "moved.bin"}) == 10


def test_a_checkout_counts_by_its_commit_and_what_differs_from_it(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, "-C", tmp_path, *arguments], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "network.py").write_text("a")
    (tmp_path / "network.pyc").write_bytes(b"compiled")
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    git("add", ".")
    git("commit", "-qm", "first")
    environment = Environment("own", sys.executable, (tmp_path,))
    (clean,) = environment.facts()["path"]
    assert set(clean) == {"commit"} and len(clean["commit"]) == 40
    (tmp_path / "ignored.py").write_text("x")
    (tmp_path / "network.pyc").write_bytes(b"compiled by another Python")
    (tmp_path / "result.png").write_bytes(b"x")
    assert environment.facts()["path"] == [clean]
    (tmp_path / "new.py").write_text("b")
    (tmp_path / "network.py").write_text("c")
    (changed,) = environment.facts()["path"]
    assert set(changed["changed"]) == {"new.py", "network.py"} and changed["commit"] == clean["commit"]
    (tmp_path / "new.py").write_text("d")
    assert environment.facts()["path"] != [changed]


@pytest.mark.parametrize(
    ("trouble", "words"), [("crash", "killed by signal 11 (SIGSEGV)"), ("exit", "sys.exit, 0"), ("error", "ValueError: too dark")]
)
def test_a_guest_that_fails_costs_its_images_only(tmp_path, guest_experiment, calls, trouble, words):
    path = guest_experiment({"trouble": trouble}, fail_on_error=1, batch_size=4, limit=6)
    result = run(load_experiment(path), tmp_path / "run")
    (failure,) = result.outcome.failures
    assert words in failure.reason and "bits" in failure.reason and failure.cell.endswith("2.png")
    assert set(scores(tmp_path / "run").scored) == {5} and not result.missing and not guest_processes()


def test_a_guest_that_hangs_is_ended_with_what_it_started(tmp_path, guest_experiment, calls):
    path = guest_experiment({"trouble": "hang"}, timeout=4, limit=3, shard_size=1)
    result = run(load_experiment(path), tmp_path / "run", RunOptions(workers=2))
    assert {failure.cell for failure in result.outcome.failures} == {"photos / bits point=4 / block 2"}
    children = [int(line.split()[1]) for line in calls() if line.startswith("child ")]
    assert children and not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in children)
    assert "shift" in set(scores(tmp_path / "run").codec) and not guest_processes()


def test_a_batch_that_does_not_fit_into_memory_is_halved(adapter, calls):
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        make(adapter, trouble="memory").compress(np.zeros((8, 8, 3), np.uint8))


def test_guests_that_are_killed_are_replaced_and_nothing_is_lost(tmp_path, guest_experiment, calls):
    path = guest_experiment({"trouble": "slow"}, points=(2, 4), shard_size=2)
    run(load_experiment(path), tmp_path / "undisturbed")
    moments, killed, stop = random.Random(0), [], threading.Event()

    def kill_again_and_again():
        while not stop.wait(moments.uniform(0.2, 0.6)):
            for pid in guest_processes()[:1]:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)
            if len(killed) == 3:
                return

    thread = threading.Thread(target=kill_again_and_again)
    thread.start()
    result = run(load_experiment(path), tmp_path / "killed", RunOptions(workers=2))
    stop.set()
    thread.join()
    if result.missing or result.outcome.failures:  # One call met two kills, so that it was taken for the cause.
        result = run(load_experiment(path), tmp_path / "killed", RunOptions(workers=2))
    assert killed and not result.missing
    pd.testing.assert_frame_equal(scores(tmp_path / "undisturbed"), scores(tmp_path / "killed"))


def test_a_guest_ends_with_the_process_that_started_it(tmp_path, adapter, calls):
    program = f"""
from icmbench.harness.guests.plugin import adapter_plugin, own_environment
from pathlib import Path
import os, signal
plugin, own = adapter_plugin("codecs", {{"file": {str(adapter)!r}}}, "set", own_environment(), Path("."))
plugin(point=2)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], capture_output=True)
    pid = int(next(line for line in calls() if line.startswith("make")).split()[-1])
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert time.monotonic() < deadline


def test_what_a_guest_prints_goes_to_standard_error_with_its_name(adapter, calls, capfd):
    make(adapter, trouble="print").compress(np.full((4, 4, 3), 200, np.uint8))
    GUESTS.end()
    captured = capfd.readouterr()
    assert not captured.out and "[own] from Python\n" in captured.err and "[own] from C\n" in captured.err


def test_errors_of_a_guest_come_back_as_their_kind(adapter, calls):
    codec = make(adapter)
    with pytest.raises(BitstreamError):
        codec.decompress(b"no stream")
    with pytest.raises(CodecError, match=r"bits: ValueError: too dark \(.*adapter.py:\d+\)"):
        make(adapter, trouble="error").compress(np.zeros((4, 4, 3), np.uint8))


def test_a_guest_that_was_changed_before_it_was_made_again_is_refused(adapter, calls):
    codec = make(adapter)
    picture = np.full((8, 8, 3), 200, np.uint8)
    stream = codec.compress(picture)
    GUESTS.end()
    assert codec.compress(picture) == stream
    GUESTS.end()
    adapter.write_text(ADAPTER.replace('{"version": 1}', '{"version": 2}'))
    with pytest.raises(CodecError, match=r"\(adapter changed since the run began\): start the run again"):
        codec.compress(picture)


def test_a_model_in_a_guest_predicts_as_one_in_this_process(tmp_path, experiment, calls):
    (tmp_path / "model.py").write_text(MODEL)
    task = {"name": "mean-colour", "dataset": "photos", "reference": "original"}
    guest = {**task, "label": "guest", "model": {"name": "guest", "environment": "own", "file": "model.py"}}
    here = {**task, "label": "here", "model": {"name": "averager"}}
    path = experiment(tasks=[guest, here], environments={"own": {"python": sys.executable}})
    assert not run(load_experiment(path), tmp_path / "run").missing
    frame = scores(tmp_path / "run")
    values = [frame[frame.task == label].drop(columns=["task", "model"]).reset_index(drop=True) for label in ("guest", "here")]
    pd.testing.assert_frame_equal(*values)


def test_a_built_in_codec_runs_elsewhere_and_its_options_are_checked_here(tmp_path, experiment):
    section = {"name": "jpeg", "points": [20]}
    codecs = [{**section, "label": "here"}, {**section, "label": "there", "environment": "own"}]
    changes = {"tasks": [{"name": "distance", "dataset": "photos"}], "environments": {"own": {"python": sys.executable}}}
    assert not run(load_experiment(experiment(codecs=codecs, anchor=None, **changes)), tmp_path / "run").missing
    frame = scores(tmp_path / "run").set_index("codec")
    assert frame.loc["here", "bpp"] == frame.loc["there", "bpp"] and frame.loc["here", "value"] == frame.loc["there", "value"]
    codecs[1]["set"] = {"subsampling_": "4:4:4"}
    with pytest.raises(UserError, match="subsampling"):
        run(load_experiment(experiment(codecs=codecs, anchor=None, **changes)), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": {"python": "no/such/python"}}, "environments.own.python: no such program"),
        ({"environment": {"path": ["absent"]}}, "environments.own.path.0: no such folder"),
        ({"environment": {"python": "true"}}, "a guest needs Python 3.8 or newer and numpy"),
        ({"options": {"file": "absent.py"}}, "no such file"),
        ({"options": {"file": "ms_ill"}}, "unknown adapter"),
        ({"options": {"tabel": "x"}}, "unknown key 'tabel'; did you mean 'table'"),
        ({"options": {"table": "absent.bin"}}, "no such file or folder"),
        ({"options": {"class": "Bytes"}}, "has no attribute 'Bytes'"),
        ({"points": ("high",)}, "the point 'high' alone does not say where on the curve it stands"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, guest_experiment, changes, words):
    with pytest.raises(UserError, match=words):
        run(load_experiment(guest_experiment(**changes)), tmp_path / "run")


def test_an_adapter_that_cannot_be_imported_says_what_is_missing_where(tmp_path, guest_experiment, adapter):
    adapter.write_text("import a_library_of_the_authors\n" + ADAPTER)
    with pytest.raises(UserError, match=r"environments\.own: ModuleNotFoundError.*install a_library_of_the_authors there"):
        run(load_experiment(guest_experiment()), tmp_path / "run")


def test_unknown_environments_are_named(guest_experiment):
    with pytest.raises(UserError, match="unknown environment 'owm'; did you mean 'own'"):
        load_experiment(guest_experiment(codecs=[{"name": "jpeg", "environment": "owm"}]))


def test_devices_of_a_guest_count_within_those_of_the_worker(monkeypatch):
    environment = Environment("environments.own", sys.executable, env=(("CUDA_VISIBLE_DEVICES", "1"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment.variables()["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert environment.variables()["CUDA_VISIBLE_DEVICES"] == "7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with pytest.raises(UserError, match="'1' is not among the 1 devices of this process"):
        environment.variables()
