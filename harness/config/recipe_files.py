"""The recipe files that come with this package, found without reading them."""

from __future__ import annotations

from pathlib import Path

from icmbench.codecs import training

RECIPES = Path(training.__file__).with_name("recipes")  # The shipped recipes, with the settings of the papers.


def shipped_recipes() -> dict[str, Path]:
    """The files of the recipes that come with this package, by recipe name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
