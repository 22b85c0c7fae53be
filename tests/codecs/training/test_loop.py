"""What the loop adds to an objective: accumulation, averaging, low precision, several processes, logs and validation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from icmbench.codecs.base import CodecError

from .grey import STEPS, GreyObjective, log, run, write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def test_accumulated_batches_are_one_larger_batch(photos, tmp_path):
    large, large_weights = run(photos, tmp_path / "a", batch=4)
    small, small_weights = run(photos, tmp_path / "b", batch=4, accumulate=4)
    assert [row["mse"] for row in large] == pytest.approx([row["mse"] for row in small], rel=1e-5)
    for key in large_weights:
        torch.testing.assert_close(large_weights[key], small_weights[key], rtol=1e-4, atol=1e-6)


def test_the_moving_average_is_exported(photos, tmp_path):
    history = []
    _, exported = run(photos, tmp_path, batch=2, ema=0.3, history=history)
    torch.manual_seed(0)
    expected = dict(GreyObjective("cpu").state_dict())
    for number, weights in enumerate(history):  # The decay of diffusers.EMAModel grows from 0 at the first step.
        decay = min(0.3, (1 + number) / (10 + number)) if number else 0.0
        expected = {key: decay * expected[key] + (1 - decay) * weights[key] for key in expected}
    for key, value in expected.items():
        torch.testing.assert_close(exported[key], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(exported[key], history[-1][key])


def test_bf16_computes_coarsely_but_keeps_float32_weights(photos, tmp_path):
    exact, _ = run(photos, tmp_path / "no", batch=4)
    coarse, weights = run(photos, tmp_path / "bf16", "bf16", batch=4)
    first, second = ([row["mse"] for row in rows] for rows in (exact, coarse))
    assert first != second and second == pytest.approx(first, rel=0.05)
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_validation_sees_the_average_and_leaves_no_trace(photos, tmp_path):
    def validate(folder):
        torch.rand(7)  # Sampling would draw random numbers too.
        return {"bias": float(load_file(folder / "greys.safetensors")["mix.bias"])}

    plain, exported = run(photos, tmp_path / "a", batch=2, ema=0.5)
    validated, exported_again = run(photos, tmp_path / "b", batch=2, ema=0.5, validate=validate, validate_every=3)
    assert [row for row in validated if "mse" in row] == plain
    biases = {row["step"]: row["validation/bias"] for row in validated if "mse" not in row}
    assert biases.keys() == {2, 5} and biases[5] == pytest.approx(float(exported["mix.bias"]))
    assert all(torch.equal(exported[key], exported_again[key]) for key in exported)


def test_tensorboard_reads_the_logs(photos, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows, _ = run(photos, tmp_path, batch=2, validate=lambda folder: {"bpp": 0.25}, validate_every=4)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"mse", "lr", "validation/bpp"}
    logged = [(event.step, event.value) for event in board.Scalars("mse")]
    assert logged == [(row["step"], pytest.approx(row["mse"], rel=1e-6)) for row in rows if "mse" in row]
    assert [(event.step, event.value) for event in board.Scalars("validation/bpp")] == [(3, 0.25)]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_photograph_is_one_sentence(tmp_path, workers):
    write_photos(tmp_path / "photos")
    (tmp_path / "photos" / "3.png").write_bytes(b"no picture")
    with pytest.raises(CodecError) as caught:
        run(tmp_path / "photos", tmp_path / "run", batch=8, workers=workers)
    assert str(caught.value).startswith(f"{tmp_path / 'photos' / '3.png'} cannot be read") and "\n" not in str(caught.value)


@pytest.mark.skipif("ICMBENCH_OVERFIT" not in os.environ, reason="takes half a minute: tox run -e soak")
def test_two_processes_share_the_images_of_a_step(photos, tmp_path):
    expected, weights = run(photos, tmp_path / "one", batch=4)
    recipe = {
        "name": "two",
        "objective": "elic",
        "set": {"n": 16, "m": 24, "slices": [8, 16], "context_widths": [16, 12], "parameter_width": 32},
        "points": [0.032],
        "data": {"images": str(photos), "crop": 64},
        "stages": [
            {"name": "noise", "steps": 3, "batch": 2, "shared": True},
            {"name": "ste", "steps": 2, "batch": 2, "set": {"latents": "ste"}, "validate_every": 2},
        ],
        "validation": {"dataset": {"kind": "images", "images": str(photos), "limit": 1}},
    }
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(recipe))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", Path(__file__).with_name("two_processes.py")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, photos, path, tmp_path], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = log(tmp_path / "toy")
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert [row["mse"] for row in rows] == pytest.approx([row["mse"] for row in expected], rel=1e-5)
    exported = load_file(tmp_path / "toy" / "export" / "greys.safetensors")
    for key, value in weights.items():
        torch.testing.assert_close(exported[key], value, rtol=1e-4, atol=1e-6)
    last = log(tmp_path / "recipe" / "ste-lambda0.032")
    assert [row["step"] for row in last] == [0, 1, 1] and last[-1]["validation/bpp"] > 0
    assert (tmp_path / "recipe" / "export" / "elic-lambda0.032.safetensors").is_file()
