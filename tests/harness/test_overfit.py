"""Each recipe overfits eight photographs. Every term of its loss is judged on the same random draws before and after training.

The tests take the stages of the shipped recipes with the tiny profile, a few steps per stage and one lambda. ICMBENCH_OVERFIT=25
takes 25 times as many steps and two lambdas, and checks more. Networks whose weights come in no package (CLIP, DINOv2) have random
weights. ICMBENCH_BACKBONE names a backbone to use in place of the packaged one.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from icmbench.codecs.base import compress_all, decompress_all
from icmbench.codecs.diffusion.backbone.files import BACKBONE, PRETRAINED
from icmbench.codecs.diffusion.prompts.roi import GradCamMasker, efficientnet_lite0
from icmbench.codecs.perceptual import perceptual_distance
from icmbench.codecs.training.checkpoints import WEIGHTS
from icmbench.codecs.training.controlled import ControlledObjective
from icmbench.codecs.training.data import CropDataset, collate
from icmbench.harness.commands.training import train
from icmbench.harness.config import plugins
from icmbench.harness.config.recipe import RECIPES, Recipe
from icmbench.tasks.datasets.packaged import PackagedPhotos

TIMES = int(os.environ.get("ICMBENCH_OVERFIT", "1"))
LONG = TIMES > 1
IMAGES = 8
JUDGED, DRAWS = (8, 3) if LONG else (2, 1)  # Number of photographs that are judged, and of noise draws for each.
TINY = {"profile": "tiny", "backbone": BACKBONE}
LPIPS = "stlpips-alex"


@dataclass(frozen=True)
class Reduction:
    """The reduced form of a recipe.

    Attributes:
        set: options of the objective.
        points: the lower and the upper lambda.
        crop: side of the photographs in pixels.
        steps: steps of the two stages.
        batch: images per step.
        codec: options of the codec.
    """

    set: Mapping[str, Any]
    points: tuple[float, float]
    crop: int
    steps: tuple[int, int]
    batch: int
    codec: Mapping[str, Any] = field(default_factory=dict)


REDUCTIONS = {
    "elic": Reduction(
        {"n": 24, "m": 32, "slices": [8, 8, 16], "context_widths": [32, 24], "parameter_width": 64}, (0.004, 0.032), 64, (16, 8), 8
    ),
    "diff-icmh": Reduction({**TINY}, (2, 8), 64, (8, 4), 8, {"steps": 10, "cfg": 1.0}),
    "resulic": Reduction({**TINY, "perceptual": LPIPS, "gain_limit": 4.0}, (1.5, 6), 128, (6, 2), 4, {"cfg": 1.0}),
    "slim": Reduction({**TINY, "perceptual": LPIPS, "classifier": "efficientnet-lite0"}, (1, 4), 128, (6, 2), 4, {"cfg": 1.0}),
    # Distortions weigh ten times as much as in the paper, because a pixel of a tiny latent costs more bits. The discriminator
    # learns faster, to have an effect within a few steps.
    "cadc": Reduction(
        {
            **{**TINY, "mse": 20.0, "lpips": 10.0, "clip": 1.0, "auxiliary": 10.0, "adversarial": 0.1, "perceptual": LPIPS},
            **{"clip_source": "random", "discriminator": "random", "captions": "data", "rank_lora": 8, "discriminator_lr": 5e-4},
        },
        *((2, 32), 256, (3, 1), 2),
    ),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with eight packaged photographs in each size, their captions, tags, masks and labels, and a backbone."""
    root = tmp_path_factory.mktemp("eight")
    photos = PackagedPhotos()
    ids = photos.annotated("class")[:IMAGES]
    labels = {i: target["class_index"] for i, target in zip(ids, photos.targets("class", ids))}
    mask = GradCamMasker(efficientnet_lite0)
    for side in sorted({reduction.crop for reduction in REDUCTIONS.values()}):
        for sub in ("photos", "masks"):
            (root / sub / str(side)).mkdir(parents=True)
        for k, image_id in enumerate(ids):
            with Image.open(photos.path(image_id)) as picture:
                pixels = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            pixels.save(root / "photos" / str(side) / f"{k}.png")
            region = Image.fromarray((255 * mask(np.asarray(pixels))).astype(np.uint8))
            region.save(root / "masks" / str(side) / f"{k}.png")
    (root / "captions.json").write_text(json.dumps({f"{k}.png": f"a picture of class {labels[i]}" for k, i in enumerate(ids)}))
    (root / "tags.json").write_text(json.dumps({f"{k}.png": ["sky", "water"][: k % 3] for k in range(IMAGES)}))
    (root / "labels.json").write_text(json.dumps({f"{k}.png": labels[i] for k, i in enumerate(ids)}))
    backbone = Path(os.environ.get("ICMBENCH_BACKBONE", PRETRAINED / "tiny" / BACKBONE))
    if backbone.is_file():
        (root / BACKBONE).symlink_to(backbone)
    return root


def reduced_recipe(folder, name):
    """The shipped recipe in its reduced form. The points share the first stage."""
    small = REDUCTIONS[name]
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    content["set"] |= small.set
    content["points"] = small.points if LONG else small.points[:1]
    files = {key: f"{key}.json" for key in ("tags", "captions", "labels") if key in content["data"]}
    files |= {"captions": "captions.json"} if content["set"].get("captions") == "data" else {}
    files |= {"masks": f"masks/{small.crop}"} if "masks" in content["data"] else {}
    content["data"] = {"images": f"photos/{small.crop}", "crop": small.crop, "flip": False, "pool": IMAGES, **files}
    for number, stage in enumerate(content["stages"]):
        for key in ("lr_steps", "point"):
            stage.pop(key, None)
        stage |= {"shared": not number, "steps": TIMES * small.steps[number], "batch": small.batch, "lr": (2e-3, 1e-3)[number]}
        stage |= {"warmup": TIMES // 4, "schedule": "cosine" if number else "constant", "checkpoint_every": 0}
    return Recipe.model_validate({**content, "folder": folder})


@torch.no_grad()
def judge(objective, data):
    """Means of the loss terms over the judged photographs and over draws of noise, which do not depend on the weights."""
    objective.eval()
    rows = []
    for draw in range(DRAWS):
        for first in range(0, JUDGED, 2):
            torch.manual_seed(100 * draw + first)
            terms = objective(collate([data.slot(k) for k in range(first, first + 2)]))
            rows.append({key: float(value) for key, value in terms.items()})
    return pd.DataFrame(rows).mean()


def with_true_latents(objective):
    """Change an objective so that it decodes the VAE's latents of the source: its pixel terms are then as low as they can be."""
    latents, newest = objective.latents, []

    def remember(batch):
        newest[:] = [latents(batch)]
        return newest[0]

    objective.latents = remember
    if hasattr(objective, "_denoise_compression_aware"):
        denoise = objective._denoise_compression_aware
        objective._denoise_compression_aware = lambda *arguments: (*(outputs := denoise(*arguments))[:2], newest[0], outputs[3])
    else:
        estimate_z0 = objective.estimate_z0
        objective.estimate_z0 = lambda *arguments: (newest[0], estimate_z0(*arguments)[1])


def code(recipe, objective_class, point, weights):
    """Bits per pixel of real streams, PSNR and ST-LPIPS of the codec with the weights in a folder."""
    options = dict(REDUCTIONS[recipe.name].codec)
    if "profile" in recipe.set:
        options |= {"profile": "tiny", "backbone": str(recipe.folder / BACKBONE)}
    if recipe.name in ("resulic", "slim"):
        options["captions"] = recipe.folder / "captions.json"
    codec = plugins.load("codecs", objective_class.codec, "objective")(point, weights=weights, device="cpu", **options)
    paths = [recipe.folder / recipe.data["images"] / f"{k}.png" for k in range(JUDGED)]
    images = [np.asarray(Image.open(path)) for path in paths]
    streams = compress_all(codec, images, [path.name for path in paths])
    true, decoded = (
        torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).float() / 255 for x in (images, decompress_all(codec, streams))
    )
    psnr = -10 * torch.log10((decoded - true).square().mean((1, 2, 3))).mean()
    with torch.no_grad():
        distance = perceptual_distance(LPIPS, "cpu")(decoded, true)
    bits = 8 * sum(map(len, streams))
    return pd.Series({"bpp": bits / (JUDGED * true.shape[2] * true.shape[3]), "psnr": float(psnr), "distance": float(distance)})


def overfit(folder, out, name):
    """Train a recipe.

    Returns:
        The loss terms, and the results of the codec. The columns are the lambda and the moment: "start", "end", "uncontrolled" (at
        the end, with the UNet alone) and "floor" (at the end, with the VAE's latents of the source).
    """
    recipe = reduced_recipe(folder, name)
    export = train(recipe, out)
    objective_class = plugins.load("training", recipe.objective, "objective")
    stage = recipe.stages[-1]
    options = {**recipe.set, **stage.get("set", {})}
    options |= {"backbone": folder / BACKBONE} if "backbone" in options else {}
    data = CropDataset(**{key: folder / value if isinstance(value, str) else value for key, value in recipe.data.items()})
    terms, codes = {}, {}
    for point in recipe.points:
        torch.manual_seed(recipe.seed)
        objective = objective_class(point, **options)
        start = out / f"start-lambda{point:g}"
        start.mkdir()
        objective.export(start)
        terms[point, "start"], codes[point, "start"] = judge(objective, data), code(recipe, objective_class, point, start)
        objective.load_state_dict(load_file(out / f"{stage['name']}-lambda{point:g}" / WEIGHTS))
        terms[point, "end"], codes[point, "end"] = judge(objective, data), code(recipe, objective_class, point, export)
        if isinstance(objective, ControlledObjective):
            base = objective.base
            objective.predict = lambda x, t, context, hint, base=base: base.eps(x, t, context).float()
            terms[point, "uncontrolled"] = judge(objective, data)
        if "mse" in objective.weights and isinstance(objective, ControlledObjective):
            with_true_latents(objective)
            terms[point, "floor"] = judge(objective, data).filter(["mse", "lpips", "task"])
    return pd.DataFrame(terms), pd.DataFrame(codes)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_eight_photographs(folder, tmp_path, name):
    if "profile" in REDUCTIONS[name].set and not (folder / BACKBONE).is_file():
        pytest.skip("a random backbone reconstructs nothing: ICMBENCH_BACKBONE names a trained one")
    started = time.process_time()
    terms, codes = overfit(folder, tmp_path, name)
    seconds = time.process_time() - started
    print(f"\n{name}, {seconds:.0f} CPU seconds\n{terms.round(4).to_string()}\n{codes.round(4).to_string()}", flush=True)
    distortions = [term for term in ("latent", "guide", "mse", "semantic", "lpips", "clip") if term in terms.index]
    distortions = distortions if LONG else distortions[:1]  # Terms behind the sampler take more steps to fall.
    for point in codes.columns.unique(0):
        start, end = terms[point, "start"], terms[point, "end"]
        assert all(end[term] < start[term] for term in distortions), point
        if LONG and "uncontrolled" in terms[point]:
            assert end["eps"] < terms[point, "uncontrolled"]["eps"], point
        assert codes[point, "end"]["psnr"] > codes[point, "start"]["psnr"], point
    if LONG:
        low, high = codes.columns.unique(0)
        if name == "elic":  # Its lambda weighs the distortion; those of the others weigh the rate.
            low, high = high, low
        assert codes[high, "end"]["bpp"] < codes[low, "end"]["bpp"] and terms[high, "end"]["bpp"] < terms[low, "end"]["bpp"]
