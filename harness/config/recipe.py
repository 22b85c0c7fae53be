"""The recipe file of `icmbench train`: what is trained, on which photographs, in which stages.

name: elic-small
objective: elic                                  # an entry point of icmbench.training
set: {n: 32, m: 48}                              # its options
points: [0.004, 0.016]
start: runs/other/export                         # weights to go on from, if there are
data: {images: photos, crop: 128}                # of icmbench.codecs.training.data.Crops
stages:                                          # of icmbench.codecs.training.loop.Stage; `set` changes options
  - {name: base, steps: 2000, lr: 1.0e-3, shared: true}    # shared: trained once, with the options of its set and first point
  - {name: end, steps: 500, lr: 1.0e-4, set: {latents: ste}}
validation: {dataset: {kind: images, images: held_out, limit: 4}, set: {steps: 10}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from icmbench.codecs import training
from icmbench.harness.commands.doctor import Entry
from icmbench.harness.config.errors import UserError, unknown
from icmbench.harness.config.sections import ConfigSection, load_section

RECIPES = Path(training.__file__).with_name("recipes")  # with the papers' settings


class ValidationSection(ConfigSection):
    """Images that are coded for real while training goes on, and options of the codec that does it."""

    dataset: dict[str, Any]
    set: dict[str, Any] = Field(default_factory=dict)

    @field_validator("dataset")
    @classmethod
    def _kind(cls, dataset: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(dataset.get("kind"), str):
            raise ValueError("a dataset needs a `kind`, a name")
        return dataset


class Recipe(ConfigSection):
    """The whole file.

    points: rate points, trained one after the other; by default the objective's. A shared stage is trained once, at `point` of its
    own or else the first one, and all points go on from it. start: weights that the first stage goes on from, a stage's
    `weights.safetensors` or a folder of exported ones (each point takes its own). precision: "bf16" and "fp16" on a GPU.
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
    folder: Path = Field(Path(), exclude=True)  # of the file: relative paths start here

    @model_validator(mode="after")
    def _stages(self) -> Recipe:
        names = [stage.get("name") for stage in self.stages]
        if any(not isinstance(name, str) or not name or names.count(name) > 1 for name in names):
            raise ValueError("stages: give each a `name` of its own")
        shared = [bool(stage.get("shared")) for stage in self.stages]
        if shared != sorted(shared, reverse=True) or shared[-1]:
            raise ValueError("stages: shared ones come first, and the last is not shared")
        return self


def shipped() -> dict[str, Path]:
    """The recipes that come with this package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def entries() -> list[Entry]:
    """The shipped recipes as `icmbench list` shows them: by the comment that each begins with."""
    return [
        Entry("recipes", name, path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "), "", "")
        for name, path in shipped().items()
    ]


def write(name: str, path: Path) -> None:
    """A shipped recipe as a file of the user's. UserError where there is no such recipe, or such a file already."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_named(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot write the recipe ({error.strerror}): name another file") from None


def _named(name: str) -> Path:
    found = shipped()
    if name not in found:
        raise UserError(unknown("recipe", name, found))
    return found[name]


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe file, or a shipped recipe by its name, whose relative paths start at the working directory.

    Raises UserError with one sentence.
    """
    if path.suffix or len(path.parts) > 1 or path.is_file():
        return load_section(Recipe, path, "recipe file")
    return load_section(Recipe, _named(str(path)), "recipe file").model_copy(update={"folder": Path.cwd()})
