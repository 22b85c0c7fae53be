"""Run under torchrun by test_loop.py: trains its objective in all processes, then a recipe by the command line."""

import sys
from pathlib import Path

from test_loop import run

from icmbench.harness.cli import main

if __name__ == "__main__":
    photos, recipe, out = map(Path, sys.argv[1:])
    run(photos, out / "toy", batch=2)
    sys.exit(main(["train", str(recipe), "--out", str(out / "recipe")]))
