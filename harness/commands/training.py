"""`icmbench train`: checks the whole recipe, then trains stage after stage and point after point, and codes validation images.

RUN/<stage>[-lambda<point>]/   the last two checkpoints, log.jsonl, tensorboard/, and weights.safetensors once the stage is done
RUN/export/                    the files that the codec loads
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icmbench.codecs.base import CodecError
from icmbench.harness.commands.training_progress import TrainingProgress
from icmbench.harness.config import plugins
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.options import bind
from icmbench.harness.config.recipe import Recipe

if TYPE_CHECKING:
    from icmbench.codecs.training.stage import StageOptions

OBJECTIVE_ARGUMENTS = ("point", "device")  # Constructor arguments of an objective that are no options of a recipe.


@dataclass(frozen=True)
class StageRun:
    """The training of one stage for one rate point, or for all points if the stage is shared.

    Attributes:
        name: the stage's name.
        folder: where its checkpoint, log and weights lie.
        stage: how long and how fast to train.
        point: the rate point that the objective is constructed with.
        options: the objective's options in this stage.
        start: weights that it goes on from; None for new ones.
        last: whether it is the last stage, whose weights are exported.
    """

    name: str
    folder: Path
    stage: StageOptions
    point: float | None
    options: Mapping[str, Any]
    start: Path | None
    last: bool


def train(recipe: Recipe, out: Path, seconds: float = 30.0) -> Path:
    """Train all stages of a recipe that are not trained yet.

    Args:
        recipe: the recipe.
        out: the run folder.
        seconds: time between two lines that say how far a stage is, where standard error is no terminal; 0 for none.

    Returns:
        The folder with the files that the codec loads.

    Raises:
        UserError: a key of the recipe is wrong, or a file or folder that it names is missing. Raised before the first step.
        CodecError: a file does not suit the objective, raised before the first step; or training fails.
        TrainingStopped: SIGTERM or Ctrl-C arrived; the message names the step from which the same command goes on.
    """
    if not 0 <= seconds < math.inf:
        raise UserError("--progress: a number of seconds, or 0 for no lines")
    with plugins.explain_missing_package("icmbench train", _TrainCommand):
        from icmbench.codecs.training import loop
        from icmbench.codecs.training.data import CropDataset

    objective = plugins.load("training", recipe.objective, "objective")
    stage_runs = list(_plan_stages(recipe, objective, out))
    data = CropDataset(**bind(CropDataset, recipe.data, "data", recipe.folder, reserved=("seed",)), seed=recipe.seed)
    validate = _make_validation(recipe, objective)
    accelerator = loop.make_accelerator(recipe.precision)
    _check_batches(stage_runs, accelerator.num_processes)
    identities = {run.folder: json.dumps(_identity(recipe, run), sort_keys=True, default=str) for run in stage_runs}
    stage_runs = _unfinished(stage_runs, identities, accelerator, out)
    # Building the objectives of the later stages now shows errors in them before the first stage has taken days.
    for run in {run.name: run for run in stage_runs[1:]}.values():
        loop.build_objective(functools.partial(_build, objective, run), data, run.stage, str(accelerator.device))
    for run in stage_runs:
        progress = TrainingProgress(run.folder.name, run.stage.steps, run.stage.batch, seconds)
        with progress, _one_process_speaks(accelerator.is_main_process):
            loop.train_stage(
                functools.partial(_build, objective, run),
                data,
                run.stage,
                run.folder,
                accelerator=accelerator,
                seed=recipe.seed,
                identity=identities[run.folder],
                start=run.start,
                export=out / "export" if run.last else None,
                validate=validate and functools.partial(validate, run.point),
                observer=progress,
            )
    return out / "export"


class _TrainCommand:
    extra = "train"  # The extra of icmbench that installs what training needs.


def _check_batches(stage_runs: list[StageRun], processes: int) -> None:
    """Raises UserError if the processes cannot share the images of a step equally."""
    for run in stage_runs:
        try:
            run.stage.images_at_once(processes)
        except CodecError as error:
            raise UserError(f"stages, {run.name}: {error}") from error


def _unfinished(stage_runs: list[StageRun], identities: Mapping[Path, str], accelerator: Any, out: Path) -> list[StageRun]:
    """The stage runs that are not trained to their end. Raises CodecError if the processes do not see the same files in `out`."""
    from icmbench.codecs.training import checkpoints, stage_files

    finished = {run.folder for run in stage_runs if checkpoints.is_finished(run.folder, identities[run.folder])}
    stage_files.check_equal(accelerator, len(finished), out)
    for folder in finished if accelerator.is_main_process else ():
        checkpoints.remove_checkpoints(folder)  # The process that trained it may have been killed before it did so.
    return [run for run in stage_runs if run.folder not in finished]


@contextmanager
def _one_process_speaks(is_main: bool) -> Iterator[None]:
    """End all processes but the main one without a word when training is stopped, because all would say the same."""
    try:
        yield
    except KeyboardInterrupt:
        if is_main:
            raise
        raise SystemExit(130) from None


def _build(objective: Any, run: StageRun, device: str) -> Any:
    """Construct the objective of a stage on a PyTorch device."""
    with plugins.explain_missing_package(objective.__name__, objective):
        return objective(run.point, **run.options, device=device)


def _plan_stages(recipe: Recipe, objective: Any, out: Path) -> Iterator[StageRun]:
    """All stage runs in the order of training. Raises UserError if a key of a stage is wrong."""
    from icmbench.codecs.training.stage import StageOptions

    points = recipe.points or list(objective.default_points)
    start = None if recipe.start is None else recipe.folder / recipe.start.expanduser()
    if start is not None and not start.exists():
        raise UserError(f"start: there is no {start}: name the weights of a stage, or a folder of exported ones")
    newest: dict[float | None, Path | None] = dict.fromkeys(
        points, start
    )  # The weights that the next stage of a point starts from.
    for index, section in enumerate(recipe.stages):
        key = f"stages.{index}"
        stage_options = {name: value for name, value in section.items() if name not in ("name", "shared", "set", "point")}
        stage = StageOptions(**bind(StageOptions, stage_options, key, recipe.folder))
        changed = {**recipe.set, **section.get("set", {})}
        options = bind(objective, changed, f"{key}.set", recipe.folder, reserved=OBJECTIVE_ARGUMENTS)
        shared = bool(section.get("shared"))
        for point in [section.get("point", points[0])] if shared else points:
            suffix = "" if shared or point is None else f"-lambda{point:g}"
            folder = out / f"{section['name']}{suffix}"
            first_weights = newest[points[0]] if shared else newest[point]
            yield StageRun(section["name"], folder, stage, point, options, first_weights, index == len(recipe.stages) - 1)
            for served in points if shared else [point]:
                newest[served] = folder / "weights.safetensors"


def _identity(recipe: Recipe, run: StageRun) -> dict[str, Any]:
    """Everything that decides the weights of a stage run, but not how often it reports.

    Paths are reduced to their last component, so that a run folder may be moved.
    """
    stage = vars(replace(run.stage, log_every=1, checkpoint_every=0, validate_every=0, workers=0))
    del stage["checkpoint_minutes"]
    facts = {
        **{f"set.{name}": value for name, value in run.options.items()},
        **{f"data.{name}": value for name, value in recipe.data.items()},
        **{f"stage.{name}": value for name, value in stage.items()},
        "objective": recipe.objective,
        "point": run.point,
        "seed": recipe.seed,
        "precision": recipe.precision,
    }
    if run.stage.accumulate > 1:
        facts["meaning of stage.batch"] = "images of a step"  # Before, with `accumulate`, it meant those of a part of a step.
    if recipe.start is not None:
        facts["start"] = recipe.start
    return json.loads(json.dumps({key: value.name if isinstance(value, Path) else value for key, value in facts.items()}))


def _make_validation(recipe: Recipe, objective: Any) -> Callable[[float | None, Path], dict[str, float]] | None:
    """A function of a rate point and a folder of weights that codes the validation images; see `_code_images`.

    None if the recipe has no section `validation`. Raises UserError if the section is wrong.
    """
    section = recipe.validation
    if section is None:
        return None
    if objective.codec is None:
        raise UserError(f"validation: objective {recipe.objective!r} trains no codec; remove it")
    codec_class = plugins.load("codecs", objective.codec, "objective")
    kind = section.dataset["kind"]
    dataset_class = plugins.load("datasets", kind, "validation.dataset")
    dataset_options = {name: value for name, value in section.dataset.items() if name != "kind"}
    dataset_options = bind(dataset_class, dataset_options, "validation.dataset", recipe.folder, reserved=("name",))
    with plugins.explain_missing_package(kind, dataset_class):
        dataset: Any = dataset_class(**dataset_options, name="validation")
    codec_options = bind(codec_class, section.set, "validation.set", recipe.folder, reserved=("point", "weights"))
    return functools.partial(_code_images, codec_class, codec_options, dataset)


def _code_images(
    codec_class: Any, codec_options: Mapping[str, Any], dataset: Any, point: float | None, weights: Path
) -> dict[str, float]:
    """Bits per pixel of real streams over all images, and the mean PSNR in dB of their reconstructions."""
    from icmbench.codecs.base import compress_all, decompress_all

    codec = codec_class(point, **codec_options, weights=weights)
    bits = pixels = 0
    psnrs = []
    for image_id in dataset.ids:
        image = dataset.read(image_id)
        data = compress_all(codec, [image], [image_id])
        decoded = decompress_all(codec, data)[0]
        bits, pixels = bits + 8 * len(data[0]), pixels + image.shape[0] * image.shape[1]
        error = np.mean((decoded.astype(np.float64) - image) ** 2)
        psnrs.append(10 * np.log10(255**2 / max(error, 1e-3)))  # The bound keeps the PSNR of a perfect reconstruction finite.
    return {"bpp": bits / pixels, "psnr": float(np.mean(psnrs))}
