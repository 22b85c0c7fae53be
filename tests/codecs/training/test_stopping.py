"""SIGTERM and Ctrl-C stop training after the step in flight, with a checkpoint, and it goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from icmbench.codecs.training.checkpoints import checkpoint_steps
from icmbench.codecs.training.stopping import SAME_REQUEST_SECONDS, StopRequest, TrainingStopped

from .grey import Listener, log, run, write_photos

NOISY = {"batch": 2, "noise": 0.1, "ema": 0.5, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 4])
def test_a_signal_in_a_step_loses_nothing(photos, tmp_path, number, step, capfd):
    expected, weights = run(photos, tmp_path / "whole", **NOISY)
    before = signal.getsignal(number)

    def disturb(objective, terms):
        if len(stages) == step - 1:
            send(number)  # In the middle of the step.
        stages.append(terms)
        return terms

    stages = []
    with pytest.raises(TrainingStopped) as caught:
        run(photos, tmp_path / "run", disturb=disturb, **NOISY)
    assert (
        str(caught.value)
        == f"run: stopped after step {step} of 6, whose checkpoint is written; the same command goes on from there"
    )
    assert "stops after this step and writes a checkpoint; Ctrl-C again stops at once" in capfd.readouterr().err
    assert checkpoint_steps(tmp_path / "run") == [step] and signal.getsignal(number) is before
    listener = Listener()
    rows, again = run(photos, tmp_path / "run", listener=listener, **NOISY)
    assert rows == expected and listener.first == step
    assert all(torch.equal(weights[key], value) for key, value in again.items())


def test_a_signal_in_the_last_step_finishes_the_stage(photos, tmp_path):
    with pytest.raises(TrainingStopped, match="stopped after it was trained to its end; the same command goes on"):
        run(photos, tmp_path, listener=Listener(lambda done: send(signal.SIGTERM) if done == 6 else None), **NOISY)
    assert (tmp_path / "weights.safetensors").is_file() and not checkpoint_steps(tmp_path)


def test_a_second_ctrl_c_stops_at_once(photos, tmp_path):
    def disturb(objective, terms):
        calls.append(terms)
        if len(calls) == 5:
            send(signal.SIGINT)
            send(signal.SIGINT)  # A launcher may send it again, which is no second request.
            send(signal.SIGTERM)
            time.sleep(SAME_REQUEST_SECONDS + 0.1)
            send(signal.SIGTERM)  # Schedulers may repeat this one.
            send(signal.SIGINT)
            pytest.fail("it went on")
        return terms

    calls = []
    with pytest.raises(TrainingStopped) as caught:
        run(photos, tmp_path, disturb=disturb, **{**NOISY, "checkpoint_every": 3})
    assert "stopped at once, with 4 steps done; the checkpoint of step 3 is kept, and the same command goes on" in str(caught.value)
    assert checkpoint_steps(tmp_path) == [3]


def test_a_validation_is_broken_off_and_done_again(photos, tmp_path):
    def validate(folder):
        if moods and moods.pop(0) == "break off":
            send(signal.SIGTERM)
            pytest.fail("it went on")
        return {"bias": float(load_file(folder / "greys.safetensors")["mix.bias"])}

    moods = []
    options = {**NOISY, "validate": validate, "validate_every": 3}
    expected, weights = run(photos, tmp_path / "whole", **options)
    assert [row["step"] for row in expected] == [0, 1, 2, 2, 3, 4, 5, 5]
    for stop in (3, 3, 6):  # Before the second one, the validation after step 3 is done again as the first thing.
        moods[:] = ["break off"] if stop == 3 else ["go on", "break off"]
        with pytest.raises(TrainingStopped, match=f"stopped after step {stop} of 6"):
            run(photos, tmp_path / "run", **options)
        assert checkpoint_steps(tmp_path / "run")[0] == stop
    rows, again = run(photos, tmp_path / "run", **options)
    assert rows == expected
    assert all(torch.equal(weights[key], value) for key, value in again.items())


def test_a_signal_before_a_validation_puts_it_off(photos, tmp_path):
    calls = []

    def validate(folder):
        calls.append(folder)
        return {"bias": 0.0}

    options = {**NOISY, "validate": validate, "validate_every": 3}
    with pytest.raises(TrainingStopped):
        run(photos, tmp_path, listener=Listener(lambda done: send(signal.SIGTERM) if done == 3 else None), **options)
    assert not calls
    rows, _ = run(photos, tmp_path, **options)
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 3, 4, 5, 5] and "validation/bias" in rows[3]


def test_a_validation_after_which_the_run_was_killed_is_logged_once(photos, tmp_path):
    def die(done):
        if done == 4:
            raise MemoryError  # As sudden as a kill, as far as files are concerned.

    options = {**NOISY, "checkpoint_every": 500, "validate": lambda folder: {"bias": 0.0}, "validate_every": 3}
    with pytest.raises(MemoryError):
        run(photos, tmp_path, listener=Listener(die), **options)
    assert [row["step"] for row in log(tmp_path)] == [0, 1, 2, 2, 3] and checkpoint_steps(tmp_path) == [3]
    rows, _ = run(photos, tmp_path, **options)
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 3, 4, 5, 5]


def test_handlers_of_others_are_put_back_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="broken"), StopRequest(announce=False) as stop:
        send(signal.SIGTERM)
        assert stop.requested
        raise ValueError("broken")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from grey import Listener, run

def slow(done):
    print(done, flush=True)
    time.sleep(0.05)

run(Path(sys.argv[2]), Path(sys.argv[3]), listener=Listener(slow), steps=400, batch=2, workers=2, checkpoint_every=0)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_processes_that_read_photographs_leave_signals_to_the_one_that_trains(photos, tmp_path, number):
    """A terminal and a scheduler signal the whole group of processes."""
    command = [sys.executable, "-c", SCRIPT, Path(__file__).parent, photos, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        steps = []
        for line in process.stdout:
            steps.append(int(line))
            if len(steps) == 3:
                os.killpg(process.pid, number)
        error = process.stderr.read()
    assert f"TrainingStopped: {tmp_path.name}: stopped after step {steps[-1]} of 400" in error
    assert error.count("Traceback") == 1  # That of this script, which has no command line around it.
    assert checkpoint_steps(tmp_path) == [steps[-1]] and steps[-1] < 100


@pytest.mark.skipif("ICMBENCH_OVERFIT" not in os.environ, reason="takes a minute: tox run -e soak")
def test_two_processes_stop_at_one_step_and_go_on_bit_for_bit(photos, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("two_stopped.py")
    options = {"env": {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, "text": True}

    def train(out):
        done = subprocess.run([*launch, script, photos, out, "0"], capture_output=True, timeout=300, check=True, **options)
        return done.stdout, load_file(out / "export" / "greys.safetensors")

    _, expected = train(tmp_path / "whole")
    out = tmp_path / "run"
    for whole_group in (True, False):
        command = [*launch, script, photos, out, "0.1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options) as process:
            wait_for_steps(out, 10 if whole_group else 30)
            one_process = next(child for child in psutil.Process(process.pid).children() if str(script) in child.cmdline())
            os.kill(process.pid if whole_group else one_process.pid, signal.SIGTERM)
            said = process.stdout.read()
        step = checkpoint_steps(out)[0]
        assert said.count(f"stopped after step {step} of 60") == 2
        assert [row["step"] for row in log(out)] == list(range(step))
    said, weights = train(out)
    assert f"resumes from step {step} of 60: that is its last checkpoint" in said and log(out) == log(tmp_path / "whole")
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


def wait_for_steps(out, count):
    """Wait until so many steps are logged."""
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").is_file() or len(log(out)) < count:
        assert time.monotonic() < deadline, "it does not train"
        time.sleep(0.05)
