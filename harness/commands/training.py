"""Runs a recipe: checks all of it, then trains stage after stage, point after point, and codes validation images for real.

RUN/<stage>[-lambda<point>]/   checkpoint.pt, log.jsonl, tensorboard/, weights.safetensors once done
RUN/export/                    the files that the codec loads
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icmbench.harness.config import plugins
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.options import bind
from icmbench.harness.config.recipe import Recipe
from icmbench.harness.work.progress import Bar

if TYPE_CHECKING:
    from icmbench.codecs.training.loop import Stage

GIVEN = ("point", "device")


@dataclass(frozen=True)
class StageRun:
    """One stage of one point, or of all where it is shared."""

    name: str
    folder: Path
    stage: Stage
    point: float | None
    options: Mapping[str, Any]
    start: Path | None
    last: bool


def train(recipe: Recipe, out: Path) -> Path:
    """Train what is not trained yet; the folder of the codec's files. Raises UserError and CodecError, before the first step where
    a key, a backbone, a caption file or a mask folder is wrong."""
    with plugins.explained("icmbench train", _Extra):
        from icmbench.codecs.training import loop
        from icmbench.codecs.training.data import Crops

    kind = plugins.load("training", recipe.objective, "objective")
    legs = list(_legs(recipe, kind, out))
    data = Crops(**bind(Crops, recipe.data, "data", recipe.folder, given=("seed",)), seed=recipe.seed)
    validate = _validation(recipe, kind)
    accelerator = loop.accelerator(recipe.precision)
    identities = {leg.folder: json.dumps(_identity(recipe, leg), sort_keys=True, default=str) for leg in legs}
    legs = [leg for leg in legs if not loop.finished(leg.folder, identities[leg.folder])]
    for leg in {leg.name: leg for leg in legs[1:]}.values():  # the first is built at once
        loop.built(functools.partial(_build, kind, leg), data, leg.stage, str(accelerator.device))
    for leg in legs:
        with Bar(leg.folder.name, leg.stage.steps * leg.stage.batch * leg.stage.accumulate * accelerator.num_processes) as bar:
            loop.train(
                functools.partial(_build, kind, leg),
                data,
                leg.stage,
                leg.folder,
                accelerator=accelerator,
                seed=recipe.seed,
                identity=identities[leg.folder],
                start=leg.start,
                export=out / "export" if leg.last else None,
                validate=validate and functools.partial(validate, leg.point),
                progress=bar.advance,
            )
    return out / "export"


class _Extra:
    extra = "train"


def _build(kind: Any, leg: StageRun, device: str) -> Any:
    with plugins.explained(kind.__name__, kind):
        return kind(leg.point, **leg.options, device=device)


def _legs(recipe: Recipe, kind: Any, out: Path) -> Iterator[StageRun]:
    """In the order in which they are trained; every key of every stage is checked on the way."""
    from icmbench.codecs.training.loop import Stage

    points = recipe.points or list(kind.default_points)
    given = None if recipe.start is None else recipe.folder / recipe.start.expanduser()
    if given is not None and not given.exists():
        raise UserError(f"start: there is no {given}: name the weights of a stage, or a folder of exported ones")
    before: dict[float | None, Path | None] = dict.fromkeys(points, given)
    for index, block in enumerate(recipe.stages):
        where = f"stages.{index}"
        own = {key: value for key, value in block.items() if key not in ("name", "shared", "set", "point")}
        stage = Stage(**bind(Stage, own, where, recipe.folder))
        options = bind(kind, {**recipe.set, **block.get("set", {})}, f"{where}.set", recipe.folder, given=GIVEN)
        shared = bool(block.get("shared"))
        for point in [block.get("point", points[0])] if shared else points:
            label = "" if shared or point is None else f"-lambda{point:g}"
            folder = out / f"{block['name']}{label}"
            start = before[points[0]] if shared else before[point]
            yield StageRun(block["name"], folder, stage, point, options, start, index == len(recipe.stages) - 1)
            for served in points if shared else [point]:
                before[served] = folder / "weights.safetensors"


def _identity(recipe: Recipe, leg: StageRun) -> dict[str, Any]:
    """All that decides a leg's weights, but not how often it reports. Paths by name, so that a run folder may move."""
    stage = replace(leg.stage, log_every=1, checkpoint_every=0, validate_every=0, workers=0)
    named = {
        **{f"set.{key}": value for key, value in leg.options.items()},
        **{f"data.{key}": value for key, value in recipe.data.items()},
        **{f"stage.{key}": value for key, value in vars(stage).items()},
        "objective": recipe.objective,
        "point": leg.point,
        "seed": recipe.seed,
        "precision": recipe.precision,
    }
    if recipe.start is not None:
        named["start"] = recipe.start
    return json.loads(json.dumps({key: value.name if isinstance(value, Path) else value for key, value in named.items()}))


def _validation(recipe: Recipe, kind: Any) -> Any:
    """(point, folder of weights) -> {"bpp", "psnr"} of the validation images, of real streams; None where there is none to do."""
    block = recipe.validation
    if block is None:
        return None
    if kind.codec is None:
        raise UserError(f"validation: objective {recipe.objective!r} trains no codec; remove it")
    codec = plugins.load("codecs", kind.codec, "objective")
    options = {key: value for key, value in block.dataset.items() if key != "kind"}
    dataset_kind = plugins.load("datasets", block.dataset["kind"], "validation.dataset")
    bound = bind(dataset_kind, options, "validation.dataset", recipe.folder, given=("name",))
    with plugins.explained(block.dataset["kind"], dataset_kind):
        dataset: Any = dataset_kind(**bound, name="validation")
    settings = bind(codec, block.set, "validation.set", recipe.folder, given=("point", "weights"))
    return functools.partial(_code, codec, settings, dataset)


def _code(codec: Any, settings: Mapping[str, Any], dataset: Any, point: float, folder: Path) -> dict[str, float]:
    from icmbench.codecs.base import compress_all, decompress_all

    made = codec(point, **settings, weights=folder)
    bits = pixels = 0
    ratios = []
    for image_id in dataset.ids:
        image = dataset.read(image_id)
        data = compress_all(made, [image], [image_id])
        decoded = decompress_all(made, data)[0]
        bits, pixels = bits + 8 * len(data[0]), pixels + image.shape[0] * image.shape[1]
        error = np.mean((decoded.astype(np.float64) - image) ** 2)
        ratios.append(10 * np.log10(255**2 / max(error, 1e-3)))
    return {"bpp": bits / pixels, "psnr": float(np.mean(ratios))}
