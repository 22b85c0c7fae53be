"""Training resumes after kill -9 with the same log, its export codes an image, and wrong recipes stop before the first step."""

import json
import multiprocessing
import os
import random
import re
import runpy
import select
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from icmbench.codecs.base import CodecError
from icmbench.codecs.diff_icmh import DiffIcmh
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.backbone import stable_diffusion
from icmbench.codecs.elic import Elic
from icmbench.codecs.training.checkpoints import checkpoint_steps
from icmbench.codecs.training.ship_weights import ship
from icmbench.harness.cli import main
from icmbench.harness.commands.training import train
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.recipe import load_recipe

STAGE = {"name": "one", "steps": 8, "batch": 2, "lr": 2e-3, "ema": 0.8, "checkpoint_every": 3}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with photographs, captions, masks, labels and a random backbone."""
    root = tmp_path_factory.mktemp("training")
    (root / "photos").mkdir()
    (root / "masks").mkdir()
    random = np.random.default_rng(0)
    for k in range(4):
        noise = Image.fromarray(random.integers(0, 255, (4, 5, 3), dtype=np.uint8))
        noise.resize((80, 70), Image.Resampling.BICUBIC).save(root / "photos" / f"{k}.png")
        blob = Image.fromarray(random.integers(0, 255, (4, 5), dtype=np.uint8))
        blob.resize((80, 70), Image.Resampling.BICUBIC).save(root / "masks" / f"{k}.png")
    (root / "captions.json").write_text(json.dumps({f"{k}.png": f"picture number {k}" for k in range(4)}))
    (root / "labels.json").write_text(json.dumps({f"{k}.png": 10 * k for k in range(4)}))
    models.save_backbone(stable_diffusion.random_backbone("tiny", 1), root / "backbone.safetensors")
    return root


RECIPES = {
    "vae": {"set": {"perceptual": "random", "perceptual_crop": 32}},
    "unet": {"set": {"backbone": "backbone.safetensors"}},
    "elic": {
        "set": {"n": 16, "m": 24, "slices": [4, 4, 16], "context_widths": [16, 12], "parameter_width": 32},
        "points": [0.032],
    },
    "diff-icmh": {
        "set": {"profile": "tiny", "backbone": "backbone.safetensors"},
        "points": [2],
        "data": {"images": "photos", "crop": 64, "pool": 8, "captions": "captions.json"},
    },
    "resulic": {
        "set": {"profile": "tiny", "backbone": "backbone.safetensors", "perceptual": "random", "gain_limit": 10},
        "points": [6],
        "data": {"images": "photos", "crop": 128, "pool": 4, "captions": "captions.json"},
    },
    "slim": {
        "set": {"profile": "tiny", "backbone": "backbone.safetensors", "perceptual": "random", "classifier": "random"},
        "points": [2],
        "data": {
            **{"images": "photos", "crop": 128, "pool": 4, "captions": "captions.json"},
            **{"masks": "masks", "labels": "labels.json"},
        },
    },
    "cadc": {
        "set": {
            **{"profile": "tiny", "backbone": "backbone.safetensors", "perceptual": "random", "clip_source": "random"},
            **{"discriminator": "random", "captions": "data", "rank_lora": 4},
        },
        "points": [8],
        "data": {"images": "photos", "crop": 256, "pool": 4, "captions": "captions.json"},
    },
}
FIRST, SECOND = ({"name": name, "steps": 6, "batch": 2, "lr": 2e-3, "ema": 0.8, "checkpoint_every": 2} for name in ("1", "2"))
STAGES = {  # The stages of the shipped recipes, shortened.
    "elic": [FIRST, {**SECOND, "set": {"latents": "ste"}}],
    "diff-icmh": [{**FIRST, "shared": True, "point": 8}, SECOND],
    "resulic": [{**FIRST, "set": {"stage": 1}}, {**SECOND, "set": {"stage": 2}}],
    "slim": [{**FIRST, "set": {"stage": 1}}, {**SECOND, "set": {"stage": 2}}],
    "cadc": [{**FIRST, "shared": True, "set": {"stage": 1}}, {**SECOND, "set": {"stage": 2}}],
}
MODULES = ("backbone", "elic", "diff_icmh", "resulic", "slim", "cadc")
FALLS = {"vae": "l1", "unet": "eps"}  # A term of the loss that must fall; test_overfit.py checks the other objectives.


def write_recipe(folder, name, **changes):
    """Write the recipe of an objective with some of its keys changed, and return its file."""
    content = {
        "name": name,
        "objective": name,
        "data": {"images": "photos", "crop": 64, "pool": 8},
        "stages": STAGES.get(name, [STAGE]),
        **RECIPES[name],
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def make_recipe(folder, name, **changes):
    """The recipe of an objective with some of its keys changed."""
    return load_recipe(write_recipe(folder, name, **changes))


def read_log(out):
    """The logged terms of all steps, in the order of the stages."""
    return [json.loads(line) for path in sorted(out.glob("*/log.jsonl")) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def processes():
    """A context whose processes fork from one that has only imported modules: torch must not be in use when a process forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "icmbench.harness.cli",
            "icmbench.harness.commands.training",
            "icmbench.codecs.training.loop",
            *(f"icmbench.codecs.training.{name}" for name in MODULES),
        ]
    )
    return context


def start_and_kill(process, when):
    """Start a process and kill it as soon as `when()` is true."""
    process.start()
    while not when():
        assert process.is_alive(), "it ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("name", RECIPES)
def test_kill_9_leaves_no_trace_in_either_stage(folder, tmp_path, processes, name):
    recipe = make_recipe(folder, name)
    train(recipe, tmp_path / "whole")
    expected = read_log(tmp_path / "whole")
    assert [row["step"] for row in expected] == [step for stage in recipe.stages for step in range(stage["steps"])]
    if name in FALLS:
        values = [row[FALLS[name]] for row in expected]
        assert np.mean(values[-3:]) < np.mean(values[:3])

    out, before = tmp_path / "run", 0
    for stage in recipe.stages:
        # Kill it after its first checkpoint, in steps that must be repeated.
        again = processes.Process(target=train, args=(recipe, out))
        reached = before + 3
        start_and_kill(again, lambda reached=reached: len(list(out.glob("*/checkpoint-*.pt"))) and len(read_log(out)) >= reached)
        before += stage["steps"]
        assert reached <= len(read_log(out)) < len(expected)
    train(recipe, out)
    assert read_log(out) == expected
    for file in sorted((tmp_path / "whole" / "export").iterdir()):
        assert (out / "export" / file.name).read_bytes() == file.read_bytes()
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("checkpoint*.pt"))


def command_process(processes, arguments, output):
    """A process that carries out `icmbench` with arguments, and writes both standard streams into a file or a terminal."""
    script = Path(__file__).with_name("command_process.py")
    names = {"arguments": arguments, "output": output}
    return processes.Process(target=runpy.run_path, args=(str(script), names, "__main__"))


def test_20_random_moments_of_signals_and_kills_leave_no_trace(folder, tmp_path, processes):
    every = 5
    stage = {**STAGE, "steps": 60, "batch": 1, "checkpoint_every": every, "checkpoint_minutes": 0}
    path = write_recipe(folder, "elic", stages=[stage])
    train(load_recipe(path), tmp_path / "whole")
    out, chance, saved = tmp_path / "run", random.Random(0), 0
    trained = out / "one-lambda0.032"
    for attempt in range(20):
        output = tmp_path / f"{attempt}.txt"
        output.touch()
        process = command_process(processes, ["train", path, "--out", out, "--progress", "1e-9"], output)
        process.start()
        lines = chance.randrange(5)  # It gets the signal after this number of steps, or while networks are built.
        while process.is_alive() and output.read_text().count(" steps/s, ") < lines:
            time.sleep(0.001)
        time.sleep(0.05 * chance.random())
        os.kill(process.pid, (signal.SIGKILL, signal.SIGTERM)[attempt % 2])
        process.join()
        before, saved, said = saved, max(checkpoint_steps(trained), default=0), output.read_text()
        taken = before + said.count(" steps/s, ")
        assert len(checkpoint_steps(trained)) <= 2
        if not attempt % 2:
            assert process.exitcode == -signal.SIGKILL and 0 <= taken - saved <= every
        elif taken > before:
            assert process.exitcode == 130 and saved == taken
            assert f"one-lambda0.032: stopped after step {saved} of 60, whose checkpoint is written" in said.splitlines()[-1]
        else:  # Before the first step there is nothing to lose, and before the command line has begun no handler.
            assert process.exitcode in (130, -signal.SIGTERM) and saved == before
        if taken > before > 0:
            assert f"one-lambda0.032: resumes from step {before} of 60: " in said
    assert 15 < saved < 60
    train(load_recipe(path), out)
    assert read_log(out) == read_log(tmp_path / "whole")
    for name in ("one-lambda0.032/weights.safetensors", "export/elic-lambda0.032.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not checkpoint_steps(trained) and not list(out.rglob("*.tmp"))


LINE = re.compile(
    r"\d\d:\d\d:\d\d  step (\d+) of 8 \((\d+\.\d) %\), stage one-lambda0\.032, [\d.e+]+ steps/s, "
    r"loss [\d.e+]+ \(mse [\d.e+-]+, bpp [\d.e+-]+, auxiliary [\d.e+-]+\), remaining [\dhminsd. ]+, memory [\d.]+ .iB"
)


def test_lines_tell_of_training_where_there_is_no_terminal(folder, tmp_path, capsys):
    path = str(write_recipe(folder, "elic", stages=[STAGE]))
    assert main(["train", path, "--out", str(tmp_path / "often"), "--progress", "1e-9"]) == 0
    matches = [LINE.match(line) for line in capsys.readouterr().err.splitlines()]
    assert [(match[1], match[2]) for match in matches] == [(str(k), f"{12.5 * k:.1f}") for k in range(1, 9)]
    assert main(["train", path, "--out", str(tmp_path / "rarely"), "--progress", "1000"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert LINE.match(line)[1] == "8"  # The last step always has a line, with the means of all steps since the last one.
    bpp = np.mean([row["bpp"] for row in read_log(tmp_path / "rarely")])
    assert float(re.search(r"bpp ([\d.e+-]+)", line)[1]) == pytest.approx(bpp, rel=5e-3)
    assert main(["train", path, "--out", str(tmp_path / "never"), "--progress", "0"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["train", path, "--out", str(tmp_path / "wrong"), "--progress", "-1"]) == 2
    assert "--progress: a number of seconds, or 0 for no lines" in capsys.readouterr().err


def test_a_terminal_shows_a_bar(folder, tmp_path, processes):
    path = write_recipe(folder, "elic", stages=[STAGE])
    shown, terminal = os.openpty()
    arguments = ["train", path, "--out", tmp_path / "run", "--progress", "1e-9"]
    process = command_process(processes, arguments, os.ttyname(terminal))
    process.start()
    text = b""
    while process.is_alive() or select.select([shown], [], [], 0)[0]:
        if select.select([shown], [], [], 0.1)[0]:
            text += os.read(shown, 10_000)
    for end in (shown, terminal):
        os.close(end)
    assert process.exitcode == 0, text
    assert b"16/16" in text and b"steps/s" not in text


def test_elic_export_codes_an_image_and_validation_counts_real_bits(folder, tmp_path):
    stages = [{**STAGE, "name": "base", "shared": True}, {**STAGE, "steps": 2, "set": {"latents": "ste"}, "validate_every": 2}]
    validation = {"dataset": {"kind": "images", "images": "photos", "limit": 1}}
    recipe = make_recipe(folder, "elic", points=[0.004, 0.032], stages=stages, validation=validation)
    export = train(recipe, tmp_path)
    image = np.asarray(Image.open(folder / "photos" / "0.png"))
    for point in (0.004, 0.032):
        data = Elic(point, weights=export).compress(image)
        assert Elic(point, weights=export).decompress(data).shape == image.shape
        log = (tmp_path / f"one-lambda{point:g}" / "log.jsonl").read_text().splitlines()
        assert json.loads(log[-1])["validation/bpp"] == 8 * len(data) / (70 * 80)
    assert (tmp_path / "base" / "weights.safetensors").is_file() and not list(tmp_path.glob("base-*"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "base" / "checkpoint-5.pt").write_bytes(b"left by a process that was killed when it had written the weights")
    train(recipe, tmp_path)  # All stages are done already.
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_points_that_share_their_control_ship_it_once(folder, tmp_path):
    stages = [{**STAGE, "name": "base", "steps": 3, "shared": True}, {**STAGE, "steps": 2, "only": ["latent"]}]
    export = train(make_recipe(folder, "diff-icmh", points=[2, 8], stages=stages), tmp_path / "run")
    ship([*export.glob("*-lambda*")], tmp_path / "small")
    shipped = {path.name: load_file(path) for path in (tmp_path / "small").iterdir()}
    assert {key.partition(".")[0] for key in shipped["diff-icmh-shared.safetensors"]} == {"control"}
    assert {key.partition(".")[0] for key in shipped["diff-icmh-lambda2.safetensors"]} == {"latent"}
    image = np.asarray(Image.open(folder / "photos" / "0.png"))
    backbone = folder / "backbone.safetensors"
    codecs = [
        DiffIcmh(point, profile="tiny", weights=tmp_path / "small", backbone=backbone, steps=1, device="cpu") for point in (2, 8)
    ]
    streams = [codec.compress(image) for codec in codecs]
    assert codecs[0].decompress(streams[1]).shape == image.shape
    latents = [load_file(path) for path in sorted(export.glob("*-lambda*"))]
    assert any(not torch.equal(latents[0][key], latents[1][key]) for key in latents[0])
    before = codecs[0].fingerprint
    changed = {key: value + 1 for key, value in shipped["diff-icmh-shared.safetensors"].items()}
    save_file(changed, tmp_path / "small" / "diff-icmh-shared.safetensors")
    again = DiffIcmh(2, profile="tiny", weights=tmp_path / "small", backbone=backbone, steps=1, device="cpu")
    assert again.fingerprint != before


@pytest.mark.parametrize("name, points, small", [("elic", [0.004], False), ("diff-icmh", [2, 8], True)])
def test_training_goes_on_from_exported_weights(folder, tmp_path, name, points, small):
    """One step at a learning rate near 0 exports the weights it started from, also from float16 files with a shared part."""
    last = {**STAGE, "steps": 2} | ({"only": ["latent"]} if small else {})
    base = {**STAGE, "name": "base", "steps": 2, "shared": True}
    export = train(make_recipe(folder, name, points=points, stages=[base, last]), tmp_path / "run")
    start = export
    if small:
        ship([*export.glob("*-lambda*")], start := tmp_path / "small")
    standstill = [{**STAGE, "steps": 1, "lr": 1e-12, "ema": 0.0}]
    again = train(make_recipe(folder, name, points=points, stages=standstill, start=str(start)), tmp_path / "again")
    for path in export.glob("*-lambda*"):
        before, after = load_file(path), load_file(again / path.name)
        changes = {
            key: (before[key].double() - after[key].double()).abs().max() for key in before if before[key].is_floating_point()
        }
        for key, change in changes.items():
            allowed = 2e-3 if key.endswith("quantiles") else 1e-3 * before[key].abs().max() if small else 1e-9
            assert change <= allowed, key
        assert before.keys() == after.keys()


def test_a_diffusion_recipe_trains_in_bf16(folder, tmp_path):
    stages = [{**STAGE, "steps": 3}]
    exact, coarse = (
        read_log(train(make_recipe(folder, "resulic", stages=stages, precision=kind), tmp_path / kind).parent)
        for kind in ("no", "bf16")
    )
    assert exact != coarse
    for exact_terms, coarse_terms in zip(exact, coarse, strict=True):
        assert all(coarse_terms[term] == pytest.approx(value, rel=0.05) for term, value in exact_terms.items())


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x80\x05junk"])
def test_a_damaged_checkpoint_is_named(folder, tmp_path, damage):
    (tmp_path / "one-lambda0.032").mkdir()
    (tmp_path / "one-lambda0.032" / "checkpoint-3.pt").write_bytes(damage)
    with pytest.raises(CodecError, match=r"every checkpoint is damaged \(checkpoint-3\.pt: it is no .*\): delete them"):
        train(make_recipe(folder, "elic", stages=[STAGE]), tmp_path)


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("elic", {"stage": []}, ["unknown key 'stage'", "did you mean 'stages'"]),
        ("elic", {"set": {"nn": 3}}, ["set", "unknown key 'nn'"]),
        ("elic", {"objective": "elik"}, ["unknown training 'elik'", "elic"]),
        ("elic", {"stages": [{**STAGE, "step": 3}]}, ["stages.0: unknown key 'step'", "did you mean 'steps'"]),
        ("elic", {"stages": [STAGE, STAGE]}, ["name"]),
        ("elic", {"stages": [{**STAGE, "only": ["control"]}]}, ["only: there is no control", "network"]),
        ("elic", {"start": "nowhere"}, ["start: there is no", "nowhere"]),
        ("elic", {"start": "photos"}, ["start:", "has no elic-lambda0.032.safetensors"]),
        ("vae", {"start": "photos"}, ["start:", "trains no codec", "weights.safetensors"]),
        ("elic", {"start": "photos/0.png"}, ["0.png cannot be read"]),
        ("elic", {"data": {"images": "nowhere"}}, ["data.images", "no such file or folder", "nowhere"]),
        ("elic", {"data": {"images": "photos", "captions": "none.json"}}, ["data.captions", "none.json"]),
        ("elic", {"data": {"images": "photos", "masks": "nomasks"}}, ["data.masks", "nomasks"]),
        ("elic", {"data": {"images": "photos", "masks": "photos/.."}}, ["masks are missing", "0.png"]),
        ("elic", {"stages": [{**STAGE, "accumulate": 3}]}, ["stages, one: batch: 1 processes cannot share the 2 images"]),
        ("elic", {"stages": [{**STAGE, "checkpoint_minutes": -1}]}, ["checkpoint_minutes: a number of minutes from 0"]),
        ("unet", {"set": {"backbone": "nothing.safetensors"}}, ["nothing.safetensors"]),
        ("vae", {"validation": {"dataset": {"kind": "images", "images": "photos"}}}, ["trains no codec"]),
    ],
)
def test_a_wrong_recipe_stops_before_the_first_step(folder, tmp_path, name, changes, words):
    with pytest.raises((UserError, RuntimeError)) as caught:
        train(make_recipe(folder, name, **changes), tmp_path / "run")
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "run").exists()


def test_another_recipe_does_not_go_on_in_the_same_folder(folder, tmp_path):
    train(make_recipe(folder, "elic", stages=[{**STAGE, "steps": 1}]), tmp_path)
    with pytest.raises(RuntimeError, match=r"begun with another recipe .*stage\.lr"):
        train(make_recipe(folder, "elic", stages=[{**STAGE, "steps": 1, "lr": 1e-4}]), tmp_path)
