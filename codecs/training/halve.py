"""Weight files for shipping: float16, all but medians and tables of factorised priors, which decide how symbols are coded;
without the Gaussian's tables where any machine makes the same ones; what all points of a codec have in common in a file of its own.

    python -m icmbench.codecs.training.halve RUN/export/*.safetensors FOLDER
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from icmbench.codecs.entropy.models import GaussianConditional

KEPT = ("entropy_bottleneck.quantiles", "gaussian_conditional")
GAUSSIAN = re.compile(r"(.*gaussian_conditional)\.(_quantized_cdf|_cdf_length|_offset|scale_table)")


def halve(source: Path) -> dict[str, Tensor]:
    """The tensors of a file in float16. A loader makes float32 of them again, so that coding stays exact.

    ValueError where a weight is beyond float16's range.
    """
    state = load_file(source)
    usual = GaussianConditional()
    usual.update()
    made = usual.state_dict()
    found = [(key, match[2]) for key in state if (match := GAUSSIAN.fullmatch(key))]
    if all(torch.equal(state[key], made[name]) for key, name in found):
        for key, name in found:
            if name != "scale_table":
                del state[key]
    for key, value in state.items():
        if value.dtype == torch.float32 and not any(part in key for part in KEPT):
            state[key] = value.half()
            if not bool(state[key].isfinite().all()):
                raise ValueError(f"{source}: {key} is beyond the range of float16")
    return state


def ship(files: Sequence[Path], folder: Path) -> None:
    """Write files of one codec's points, or others, to `folder`; equal tensors of all points to <codec>-shared.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    states = {path.name: halve(path) for path in files}
    for codec in {name.partition("-lambda")[0] for name in states if "-lambda" in name} - {"elic"}:
        points = [state for name, state in states.items() if name.startswith(f"{codec}-lambda")]
        first = points[0]
        common = {key for key in first if len(points) > 1 and all(torch.equal(first[key], other[key]) for other in points)}
        # Only whole parts, so that a file tells what it lacks.
        split = {key.partition(".")[0] for key in first.keys() - common}
        common = {key for key in common if key.partition(".")[0] not in split}
        if common:
            states[f"{codec}-shared.safetensors"] = {key: first[key] for key in common}
            for state in points:
                for key in common:
                    del state[key]
    for name, state in states.items():
        save_file({key: value.contiguous() for key, value in state.items()}, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    ship(arguments.files, arguments.folder)


if __name__ == "__main__":
    main()
