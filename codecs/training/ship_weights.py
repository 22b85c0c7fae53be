"""Make weight files small for shipping: float16, without what a loader can recompute, and what a codec's points share only once.

    python -m icmbench.codecs.training.ship_weights RUN/export/*.safetensors FOLDER

The medians and frequency tables of factorised priors keep their precision, because they decide how symbols are coded. The
Gaussian's tables are left out where any machine computes the same ones.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from icmbench.codecs.diffusion.backbone.files import read_training_record, training_record
from icmbench.codecs.entropy.models import GaussianConditional

KEPT = ("entropy_bottleneck.quantiles", "gaussian_conditional")  # Tensors with such names stay float32.
GAUSSIAN = re.compile(r"(.*gaussian_conditional)\.(_quantized_cdf|_cdf_length|_offset|scale_table)")


def load_as_float16(source: Path) -> dict[str, Tensor]:
    """Read a weight file and convert its float32 tensors to float16, except those that decide how symbols are coded.

    A loader converts them back to float32, in which encoder and decoder compute, so both see the same weights.

    Args:
        source: a safetensors file of a codec.

    Raises:
        ValueError: a weight is beyond the range of float16.
    """
    state = load_file(source)
    gaussian = GaussianConditional()
    gaussian.update()
    default_tables = gaussian.state_dict()
    tables = [(key, match[2]) for key in state if (match := GAUSSIAN.fullmatch(key))]
    if all(torch.equal(state[key], default_tables[name]) for key, name in tables):
        for key, name in tables:
            if name != "scale_table":
                del state[key]
    for key, value in state.items():
        if value.dtype == torch.float32 and not any(part in key for part in KEPT):
            state[key] = value.half()
            if not bool(state[key].isfinite().all()):
                raise ValueError(f"{source}: {key} is beyond the range of float16")
    return state


def ship(files: Sequence[Path], folder: Path) -> None:
    """Write small versions of weight files.

    Parts that all points of a codec have in common go to a file of their own, <codec>-shared.safetensors.

    Args:
        files: safetensors files: those of all points of a codec, <codec>-lambda<point>.safetensors, and any others.
        folder: where the files are written, under their own names.

    Raises:
        ValueError: a weight is beyond the range of float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    states = {path.name: load_as_float16(path) for path in files}
    records = {path.name: training_record(read_training_record(path)) for path in files}
    for codec in {name.partition("-lambda")[0] for name in states if "-lambda" in name} - {"elic"}:  # ELIC's loader takes one file.
        points = [state for name, state in states.items() if name.startswith(f"{codec}-lambda")]
        first = points[0]
        common = {key for key in first if len(points) > 1 and all(torch.equal(first[key], point[key]) for point in points)}
        # Move whole parts only, so that a reader sees from a file which parts it lacks.
        differing = {key.partition(".")[0] for key in first.keys() - common}
        common = {key for key in common if key.partition(".")[0] not in differing}
        if common:
            states[f"{codec}-shared.safetensors"] = {key: first[key] for key in common}
            for state in points:
                for key in common:
                    del state[key]
    for name, state in states.items():
        save_file({key: value.contiguous() for key, value in state.items()}, folder / name, records.get(name))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    ship(arguments.files, arguments.folder)


if __name__ == "__main__":
    main()
