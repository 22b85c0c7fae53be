"""Recipes survive kill -9 in each stage with the same trace, and their export codes an image; wrong ones do not begin."""

import json
import multiprocessing
import signal
import time

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
from icmbench.codecs.training.halve import ship
from icmbench.harness.commands.training import train
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.recipe import load_recipe

STAGE = {"name": "one", "steps": 8, "batch": 2, "lr": 2e-3, "ema": 0.8, "checkpoint_every": 3}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Photographs, captions, masks and a random backbone."""
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
    models.save_backbone(stable_diffusion.random("tiny", 1), root / "backbone.safetensors")
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
STAGES = {  # as the shipped recipes
    "elic": [FIRST, {**SECOND, "set": {"latents": "ste"}}],
    "diff-icmh": [{**FIRST, "shared": True, "point": 8}, SECOND],
    "resulic": [{**FIRST, "set": {"stage": 1}}, {**SECOND, "set": {"stage": 2}}],
    "slim": [{**FIRST, "set": {"stage": 1}}, {**SECOND, "set": {"stage": 2}}],
    "cadc": [{**FIRST, "shared": True, "set": {"stage": 1}}, {**SECOND, "set": {"stage": 2}}],
}
MODULES = ("backbone", "elic", "diff_icmh", "resulic", "slim", "cadc")
FALLS = {"vae": "l1", "unet": "eps"}  # the others: test_overfit.py


def recipe(folder, name, **changes):
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
    return load_recipe(path)


def trace(out):
    return [json.loads(line) for path in sorted(out.glob("*/log.jsonl")) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def processes():
    """Processes forked from one that has done the imports and nothing else: torch's state does not survive a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["icmbench.harness.commands.training", *(f"icmbench.codecs.training.{name}" for name in MODULES)]
    )
    return context


def killed(process, when):
    """Starts a process and kills it once `when` holds."""
    process.start()
    while not when():
        assert process.is_alive(), "it ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("name", RECIPES)
def test_kill_9_leaves_no_trace_in_either_stage(folder, tmp_path, processes, name):
    loaded = recipe(folder, name)
    train(loaded, tmp_path / "whole")
    expected = trace(tmp_path / "whole")
    assert [row["step"] for row in expected] == [step for stage in loaded.stages for step in range(stage["steps"])]
    if name in FALLS:
        values = [row[FALLS[name]] for row in expected]
        assert np.mean(values[-3:]) < np.mean(values[:3])

    out, before = tmp_path / "run", 0
    for stage in loaded.stages:
        # Past the first checkpoint and into the steps after it, which come again.
        again = processes.Process(target=train, args=(loaded, out))
        reached = before + 3
        killed(again, lambda reached=reached: len(list(out.glob("*/checkpoint.pt"))) and len(trace(out)) >= reached)
        before += stage["steps"]
        assert reached <= len(trace(out)) < len(expected)
    train(loaded, out)
    assert trace(out) == expected
    for file in sorted((tmp_path / "whole" / "export").iterdir()):
        assert (out / "export" / file.name).read_bytes() == file.read_bytes()
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("checkpoint.pt"))


def test_elic_export_codes_an_image_and_validation_counts_real_bits(folder, tmp_path):
    stages = [{**STAGE, "name": "base", "shared": True}, {**STAGE, "steps": 2, "set": {"latents": "ste"}, "validate_every": 2}]
    validation = {"dataset": {"kind": "images", "images": "photos", "limit": 1}}
    loaded = recipe(folder, "elic", points=[0.004, 0.032], stages=stages, validation=validation)
    export = train(loaded, tmp_path)
    image = np.asarray(Image.open(folder / "photos" / "0.png"))
    for point in (0.004, 0.032):
        data = Elic(point, weights=export).compress(image)
        assert Elic(point, weights=export).decompress(data).shape == image.shape
        log = (tmp_path / f"one-lambda{point:g}" / "log.jsonl").read_text().splitlines()
        assert json.loads(log[-1])["validation/bpp"] == 8 * len(data) / (70 * 80)
    assert (tmp_path / "base" / "weights.safetensors").is_file() and not list(tmp_path.glob("base-*"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    train(loaded, tmp_path)  # done already
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_points_that_share_their_control_ship_it_once(folder, tmp_path):
    stages = [{**STAGE, "name": "base", "steps": 3, "shared": True}, {**STAGE, "steps": 2, "only": ["latent"]}]
    export = train(recipe(folder, "diff-icmh", points=[2, 8], stages=stages), tmp_path / "run")
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
    """A step that moves nothing exports what it began with, as float16 and with a file of its own for what the points share too."""
    last = {**STAGE, "steps": 2} | ({"only": ["latent"]} if small else {})
    base = {**STAGE, "name": "base", "steps": 2, "shared": True}
    export = train(recipe(folder, name, points=points, stages=[base, last]), tmp_path / "run")
    start = export
    if small:
        ship([*export.glob("*-lambda*")], start := tmp_path / "small")
    still = [{**STAGE, "steps": 1, "lr": 1e-12, "ema": 0.0}]
    again = train(recipe(folder, name, points=points, stages=still, start=str(start)), tmp_path / "again")
    for path in export.glob("*-lambda*"):
        before, after = load_file(path), load_file(again / path.name)
        moved = {key: (before[key].double() - after[key].double()).abs().max() for key in before if before[key].is_floating_point()}
        for key, by in moved.items():
            allowed = 2e-3 if key.endswith("quantiles") else 1e-3 * before[key].abs().max() if small else 1e-9
            assert by <= allowed, key
        assert before.keys() == after.keys()


def test_a_diffusion_recipe_trains_in_bf16(folder, tmp_path):
    stages = [{**STAGE, "steps": 3}]
    exact, coarse = (
        trace(train(recipe(folder, "resulic", stages=stages, precision=kind), tmp_path / kind).parent) for kind in ("no", "bf16")
    )
    assert exact != coarse
    for one, other in zip(exact, coarse, strict=True):
        assert all(other[term] == pytest.approx(value, rel=0.05) for term, value in one.items())


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x80\x05junk"])
def test_a_damaged_checkpoint_is_named(folder, tmp_path, damage):
    (tmp_path / "one-lambda0.032").mkdir()
    (tmp_path / "one-lambda0.032" / "checkpoint.pt").write_bytes(damage)
    with pytest.raises(CodecError, match=r"checkpoint\.pt is damaged: delete it"):
        train(recipe(folder, "elic", stages=[STAGE]), tmp_path)


@pytest.mark.parametrize(
    "name, changes, said",
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
        ("unet", {"set": {"backbone": "nothing.safetensors"}}, ["nothing.safetensors"]),
        ("vae", {"validation": {"dataset": {"kind": "images", "images": "photos"}}}, ["trains no codec"]),
    ],
)
def test_a_wrong_recipe_stops_before_the_first_step(folder, tmp_path, name, changes, said):
    with pytest.raises((UserError, RuntimeError)) as caught:
        train(recipe(folder, name, **changes), tmp_path / "run")
    assert all(part in str(caught.value) for part in said), caught.value
    assert not (tmp_path / "run").exists()


def test_another_recipe_does_not_go_on_in_the_same_folder(folder, tmp_path):
    train(recipe(folder, "elic", stages=[{**STAGE, "steps": 1}]), tmp_path)
    with pytest.raises(RuntimeError, match=r"begun with another recipe .*stage\.lr"):
        train(recipe(folder, "elic", stages=[{**STAGE, "steps": 1, "lr": 1e-4}]), tmp_path)
