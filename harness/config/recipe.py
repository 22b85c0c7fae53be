"""The recipe file of `icmbench train`: what is trained, on which photographs, in which stages.

name: elic-small
objective: elic                                  # an entry point of icmbench.training
set: {n: 32, m: 48}                              # options of the objective
points: [0.004, 0.016]
start: runs/other/export                         # optional: weights that training goes on from
data: {images: photos, crop: 128}                # options of icmbench.codecs.training.data.CropDataset
stages:                                          # fields of icmbench.codecs.training.stage.StageOptions; `set` changes options
  - {name: base, steps: 2000, batch: 16, lr: 1.0e-3, shared: true}    # shared: trained once, with its set and the first point
  - {name: end, steps: 500, batch: 16, lr: 1.0e-4, set: {latents: ste}}    # batch: images of a step, over all processes
validation: {dataset: {kind: images, images: held_out, limit: 4}, set: {steps: 10}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from icmbench.harness.config.errors import UserError, unknown_message
from icmbench.harness.config.recipe_files import RECIPES, shipped_recipes
from icmbench.harness.config.sections import ConfigSection, load_section

__all__ = ["RECIPES", "Recipe", "ValidationSection", "load_recipe", "shipped_recipes", "write_recipe"]


class ValidationSection(ConfigSection):
    """Images that are coded to real streams while training goes on.

    Attributes:
        dataset: the `kind` of the dataset (its entry point) and its options.
        set: options of the codec that the objective trains.
    """

    dataset: dict[str, Any]
    set: dict[str, Any] = Field(default_factory=dict)

    @field_validator("dataset")
    @classmethod
    def _check_kind(cls, dataset: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(dataset.get("kind"), str):
            raise ValueError("a dataset needs a `kind`, a name")
        return dataset


class Recipe(ConfigSection):
    """The whole recipe file.

    Attributes:
        name: default name of the run folder.
        objective: entry point of the training objective.
        set: options of the objective.
        points: rate points, trained one after another; by default those of the objective.
        data: options of `icmbench.codecs.training.data.CropDataset`.
        stages: per stage, fields of `icmbench.codecs.training.stage.StageOptions`; `name`, `shared`, `point` and `set`. A shared
            stage is trained once, at its `point` (by default the first point), and all points go on from its weights.
        validation: images to code while training goes on; None for none.
        start: weights that the first stage goes on from: a stage's `weights.safetensors`, or a folder of exported weights, of which
            each point takes its own.
        precision: number format of the networks' arithmetic; "bf16" and "fp16" are meant for a GPU.
        seed: of the initial weights and of everything that is drawn.
        folder: the folder of the recipe file. Relative paths start here.
    """

    name: str
    objective: str
    set: dict[str, Any] = Field(default_factory=dict)
    points: list[float] | None = Field(None, min_length=1)
    data: dict[str, Any]
    stages: list[dict[str, Any]] = Field(min_length=1)
    validation: ValidationSection | None = None
    start: Path | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    folder: Path = Field(Path(), exclude=True)

    @model_validator(mode="after")
    def _check_stages(self) -> Recipe:
        names = [stage.get("name") for stage in self.stages]
        if any(not isinstance(name, str) or not name or names.count(name) > 1 for name in names):
            raise ValueError("stages: give each a `name` of its own")
        shared = [bool(stage.get("shared")) for stage in self.stages]
        if shared != sorted(shared, reverse=True) or shared[-1]:
            raise ValueError("stages: shared ones come first, and the last is not shared")
        return self


def write_recipe(name: str, path: Path) -> None:
    """Copy a shipped recipe into a new file, to be edited.

    Raises:
        UserError: there is no recipe of this name, the file exists already, or it cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_shipped_file(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot write the recipe ({error.strerror}): name another file") from None


def _shipped_file(name: str) -> Path:
    files = shipped_recipes()
    if name not in files:
        raise UserError(unknown_message("recipe", name, files))
    return files[name]


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: a recipe file, or the name of a shipped recipe. Relative paths in a shipped recipe start at the working directory.

    Raises:
        UserError: the file cannot be read, or a key or value in it is wrong.
    """
    if path.suffix or len(path.parts) > 1 or path.is_file():
        return load_section(Recipe, path, "recipe file")
    return load_section(Recipe, _shipped_file(str(path)), "recipe file").model_copy(update={"folder": Path.cwd()})
