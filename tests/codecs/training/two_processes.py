"""Train the objective of grey.py in all processes, then a recipe by the command line; test_loop.py runs it under torchrun."""

import sys
from pathlib import Path

from grey import run

from icmbench.harness.cli import main

if __name__ == "__main__":
    photos, recipe, out = map(Path, sys.argv[1:])
    run(photos, out / "toy", batch=4)
    sys.exit(main(["train", str(recipe), "--out", str(out / "recipe")]))
