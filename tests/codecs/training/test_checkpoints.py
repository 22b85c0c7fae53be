"""Checkpoints are written whole or not at all, and a damaged one is passed over for the one before it, never taken as it is."""

import contextlib
import os
import random
import resource
import signal

import pytest
import torch

from icmbench.codecs.base import CodecError
from icmbench.codecs.training import checkpoints
from icmbench.codecs.training.checkpoints import checkpoint_path, checkpoint_steps
from icmbench.codecs.training.loop import batch_positions
from icmbench.codecs.training.stage import StageOptions
from icmbench.codecs.training.stopping import TrainingStopped

from .grey import Listener, log, run, write_photos

NOISY = {"batch": 2, "noise": 0.1, "ema": 0.5}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory):
    """Log and weights of a run that nothing disturbs."""
    return run(photos, tmp_path_factory.mktemp("undisturbed"), **NOISY)


def stop_after(step):
    """A listener that has the process stopped in the given step."""
    return Listener(lambda done: os.kill(os.getpid(), signal.SIGTERM) if done == step else None)


def interrupt(photos, out, step, **options):
    """Train until SIGTERM arrives in a step."""
    with pytest.raises(TrainingStopped):
        run(photos, out, listener=stop_after(step), **{**NOISY, **options})


def resume(photos, out, expected, **options):
    """Train to the end, compare with the undisturbed run bit for bit, and return what was said."""
    listener = Listener()
    rows, weights = run(photos, out, listener=listener, **{**NOISY, **options})
    assert rows == expected[0]
    assert all(torch.equal(weights[key], value) for key, value in expected[1].items())
    assert not checkpoint_steps(out)
    return listener.sentences


def test_the_last_two_are_kept(photos, tmp_path, expected):
    interrupt(photos, tmp_path, 5, checkpoint_every=2)
    assert checkpoint_steps(tmp_path) == [5, 4]
    assert not list(tmp_path.glob("*.tmp"))
    assert resume(photos, tmp_path, expected) == [f"{tmp_path.name}: resumes from step 5 of 6: that is its last checkpoint"]


def test_minutes_write_checkpoints_too(photos, tmp_path):
    interrupt(photos, tmp_path, 5, checkpoint_every=0, checkpoint_minutes=1e-9)
    assert checkpoint_steps(tmp_path) == [5, 4]
    interrupt(photos, tmp_path / "no", 5, checkpoint_every=0, checkpoint_minutes=0)
    assert checkpoint_steps(tmp_path / "no") == [5]


def test_a_damaged_one_is_passed_over_for_the_one_before(photos, tmp_path, expected):
    interrupt(photos, tmp_path, 5, checkpoint_every=4)
    path = checkpoint_path(tmp_path, 5)
    state = torch.load(path, weights_only=True)
    weight = state["objective"]["mix.weight"].cpu().numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    assert not torch.equal(torch.load(path, weights_only=True)["objective"]["mix.weight"], state["objective"]["mix.weight"])
    (sentence,) = resume(photos, tmp_path, expected)
    assert "resumes from step 4 of 6: the checkpoint of step 5 is damaged (the checksum of " in sentence
    assert sentence.endswith("steps up to 5 had been logged and are taken again")


def test_a_change_of_any_byte_is_noticed_or_without_effect(photos, tmp_path):
    interrupt(photos, tmp_path, 3)
    path = checkpoint_path(tmp_path, 3)
    whole = path.read_bytes()
    identity = {}
    state = checkpoints.read_checkpoint(tmp_path, identity).state
    chance, noticed = random.Random(0), 0
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            again = checkpoints.read_checkpoint(tmp_path, identity).state
        except CodecError as error:
            assert "every checkpoint is damaged (checkpoint-3.pt: " in str(error)
            noticed += 1
            continue
        assert str(again) == str(state)  # A byte that fills a gap between two tensors.
        assert all(torch.equal(again["objective"][key], value) for key, value in state["objective"].items())
    assert noticed > 100


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x80\x05junk", bytes(5000)])
def test_if_all_are_damaged_nothing_is_trained(photos, tmp_path, damage):
    interrupt(photos, tmp_path, 5, checkpoint_every=4)
    for step in (4, 5):
        checkpoint_path(tmp_path, step).write_bytes(damage)
    with pytest.raises(
        CodecError, match=r"every checkpoint is damaged \(checkpoint-5\.pt: .*; checkpoint-4\.pt: .*\): delete them"
    ):
        run(photos, tmp_path, **NOISY)


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(photos, tmp_path, expected):
    interrupt(photos, tmp_path, 5, checkpoint_every=4)
    checkpoint_path(tmp_path, 5).write_bytes(checkpoint_path(tmp_path, 4).read_bytes())
    (sentence,) = resume(photos, tmp_path, expected)
    assert "resumes from step 4 of 6: the checkpoint of step 5 is damaged (it holds step 4)" in sentence


def test_other_formats_are_refused_by_name(photos, tmp_path):
    interrupt(photos, tmp_path, 5)
    path = checkpoint_path(tmp_path, 5)
    torch.save({**torch.load(path, weights_only=True), "format": 9}, path)
    with pytest.raises(CodecError, match=r"checkpoint-5\.pt has format 9, and this icmbench reads 2"):
        run(photos, tmp_path, **NOISY)
    (tmp_path / "checkpoint.pt").write_bytes(b"of an earlier icmbench")
    with pytest.raises(
        CodecError, match=r"checkpoint\.pt was written by an earlier icmbench, whose `batch` counted for each process"
    ):
        run(photos, tmp_path, **NOISY)


def test_what_a_killed_process_had_not_finished_is_removed(photos, tmp_path, expected):
    interrupt(photos, tmp_path, 5)
    (tmp_path / "checkpoint-9.pt.tmp").write_bytes(b"half")
    resume(photos, tmp_path, expected)
    assert not list(tmp_path.glob("*.tmp"))


def test_steps_without_a_checkpoint_are_said_to_be_taken_again(photos, tmp_path, expected):
    interrupt(photos, tmp_path, 3)
    checkpoint_path(tmp_path, 3).unlink()
    (sentence,) = resume(photos, tmp_path, expected)
    assert sentence.endswith(
        "resumes from step 0 of 6: no checkpoint had been written yet; steps up to 3 had been logged and are taken again"
    )


@contextlib.contextmanager
def largest_file(size):
    """While the context lasts, writing beyond `size` bytes fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_the_earlier_checkpoint_stays(photos, tmp_path, expected):
    interrupt(photos, tmp_path, 2)
    size = checkpoint_path(tmp_path, 2).stat().st_size
    with largest_file(size // 2), pytest.raises(CodecError) as caught:
        run(photos, tmp_path, checkpoint_every=2, **NOISY)
    assert "checkpoint-4.pt: the checkpoint of step 4 is not written, and training stopped (File too large: free space" in str(
        caught.value
    )
    assert "the checkpoint of step 2 is kept, and the same command goes on from there" in str(caught.value)
    assert checkpoint_steps(tmp_path) == [2] and not list(tmp_path.glob("*.tmp"))
    resume(photos, tmp_path, expected)


def test_on_a_full_disk_no_half_weights_are_left(photos, tmp_path, expected):
    interrupt(photos, tmp_path, 5)
    size = (tmp_path / "log.jsonl").stat().st_size
    with (
        largest_file(size - 10),
        pytest.raises(CodecError, match=r"log\.jsonl cannot be written \(File too large\): free space there"),
    ):
        run(photos, tmp_path, **NOISY)
    with contextlib.ExitStack() as stack, pytest.raises(CodecError) as caught:
        listener = Listener(lambda done: stack.enter_context(largest_file(100)))
        run(photos, tmp_path, listener=listener, **NOISY)
    assert "the weights are not written (" in str(caught.value) and "free space" in str(caught.value)
    assert "the checkpoint of step 5 is kept, and the same command goes on from there" in str(caught.value)
    assert not (tmp_path / "weights.safetensors").exists() and checkpoint_steps(tmp_path) == [5]
    resume(photos, tmp_path, expected)


def test_a_loss_that_is_not_finite_stops_with_step_term_and_checkpoint(photos, tmp_path):
    steps = []

    def disturb(objective, terms):
        steps.append(len(steps))
        bad = torch.tensor(float("nan") if len(steps) > 4 else 0.0)
        return {**terms, "bits": terms["mse"].detach() + bad, "more": bad}

    with pytest.raises(CodecError) as caught:
        run(photos, tmp_path, disturb=disturb, checkpoint_every=2, **NOISY)
    assert "the loss term bits is no finite number (nan) at step 5 of 6, and training stopped" in str(caught.value)
    assert f"the checkpoint of step 4 is kept in {tmp_path}: lower lr" in str(caught.value)
    assert checkpoint_steps(tmp_path) == [4, 2]


def test_a_gradient_that_is_not_finite_leaves_the_weights_as_they_were(photos, tmp_path):
    history = []

    def disturb(objective, terms):
        zero = objective.mix.bias.sum() * 0  # The square root of 0 has no finite slope.
        return {"mse": terms["mse"] + (zero.sqrt() if len(history) == 3 else zero)}

    with pytest.raises(CodecError, match=r"the loss is finite, but its gradient is not, at step 4 of 6"):
        run(photos, tmp_path, disturb=disturb, history=history, checkpoint_every=1, **NOISY)
    assert checkpoint_steps(tmp_path) == [3, 2]
    state = checkpoints.read_checkpoint(tmp_path, {}).state["objective"]
    assert all(torch.equal(state[key], value) for key, value in history[-1].items())


def test_weights_that_are_not_finite_are_never_written(photos, tmp_path):
    objectives = []

    def disturb(objective, terms):
        objectives.append(objective)
        return terms

    def spoil(done):
        if done == 4:
            objectives[-1].mix.weight.data[0, 1] = float("inf")

    with pytest.raises(CodecError) as caught:
        run(photos, tmp_path, disturb=disturb, listener=Listener(spoil), checkpoint_every=2, **NOISY)
    assert "the checkpoint of step 4 is not written, and training stopped (the weight mix.weight is not finite)" in str(
        caught.value
    )
    assert checkpoint_steps(tmp_path) == [2]
    with pytest.raises(CodecError, match="the weights are not written"):
        run(photos, tmp_path / "end", steps=4, disturb=disturb, listener=Listener(spoil), **NOISY)
    assert not (tmp_path / "end" / "weights.safetensors").exists()


def test_a_damaged_line_of_the_log_is_named(photos, tmp_path):
    interrupt(photos, tmp_path, 3)
    lines = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_text("".join([lines[0], "\0\0\n", lines[2], '{"step": 7']))
    with pytest.raises(CodecError, match=r"log\.jsonl: line 2 is damaged: delete that line"):
        run(photos, tmp_path, **NOISY)


# Several processes.


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_images_of_a_step_do_not_depend_on_the_processes(processes, accumulate):
    stage = StageOptions(steps=5, batch=16, accumulate=accumulate)
    shares = [list(batch_positions(stage, processes, process, 2)) for process in range(processes)]
    for number, step in enumerate(range(2, 5)):
        parts = [share[number * accumulate : (number + 1) * accumulate] for share in shares]
        images = [position for share in parts for batch in share for position in batch]
        assert sorted(images) == list(range(16 * step, 16 * (step + 1)))
        assert {len(batch) for share in parts for batch in share} == {16 // processes // accumulate}


def test_images_that_cannot_be_shared_equally_are_refused():
    with pytest.raises(CodecError) as caught:
        StageOptions(steps=1, batch=16).images_at_once(3)
    assert str(caught.value) == (
        "batch: 3 processes cannot share the 16 images of a step equally: take 15 or 18 images, or another number of processes"
    )
    with pytest.raises(CodecError, match=r"in 3 parts each \(accumulate\): take 6 images, or"):
        StageOptions(steps=1, batch=2, accumulate=3).images_at_once(2)
    with pytest.raises(CodecError, match="checkpoint_minutes"):
        StageOptions(steps=1, checkpoint_minutes=float("nan"))


def test_another_number_of_processes_is_said(photos, tmp_path):
    interrupt(photos, tmp_path, 5)
    path = checkpoint_path(tmp_path, 5)
    torch.save({**torch.load(path, weights_only=True), "processes": 4}, path)
    listener = Listener()
    run(photos, tmp_path, listener=listener, **NOISY)
    assert "it had 4 processes and has 1 now, so each step has the same images but other noise" in listener.sentences[0]
    assert [row["step"] for row in log(tmp_path)] == list(range(6))
