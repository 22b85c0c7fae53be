"""Compare this project's Diff-ICMH with outputs of the authors' modules on generated weights.

    python tests/conformance/diff_icmh.py FILE.safetensors

FILE holds inputs and outputs of the authors' modules, and `salt` and `timestep` in its metadata. This program generates the weights
for the salt, writes them as checkpoints in the published layout (5.3 GB, in a temporary folder), loads these with the project's
loader, and prints the differences of the outputs. It exits with 1 if a difference is beyond its limit.

`diff_icmh_keys.json`, the keys and shapes of the published layout, lies beside FILE or in $ICMBENCH_TEST_DATA/conformance (by
default ../shared/conformance beside the repository).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from icmbench.codecs.diffusion.backbone import files, keys, stable_diffusion, unet, weights
from icmbench.codecs.diffusion.backbone.control import ControlModule
from icmbench.codecs.diffusion.latents.lfgcm import Lfgcm

KEYS = "diff_icmh_keys.json"
CLOSE = 1e-3  # Largest accepted difference, relative to the largest magnitude of the authors' output.
SHARE = 0.98  # Share of the elements that must be close in outputs that depend on a rounding, where ties may fall either way.
ROUNDED = ("hint", "y_likelihoods", "z_likelihoods")


def generate(key: str, shape: list[int], salt: str) -> Tensor:
    """Generate one tensor, float32, as the conformance data defines it."""
    generator = torch.Generator().manual_seed(zlib.crc32((salt + key).encode()))
    if key.endswith("quantiles"):
        return torch.tensor([-10.0, 0.0, 10.0]).expand(shape).clone()
    values = torch.randn(shape, generator=generator)
    if len(shape) >= 2:
        return values / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * values if key.endswith("weight") else 0.05 * values


def write_checkpoint(path: Path, shapes: Mapping[str, list[int]], salt: str, prefixes: tuple[str, ...]) -> None:
    """Write a checkpoint of the generated tensors whose keys start with one of `prefixes`."""
    state = {key: generate(key, shape, salt) for key, shape in shapes.items() if key.startswith(prefixes)}
    torch.save({"state_dict": state}, path)


@torch.no_grad()
def latent_outputs(checkpoint: Path, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute y, z, hint and likelihoods by the forward pass, and "hint decoded", the hint after coding to real bytes."""
    with init_empty_weights():
        model = Lfgcm()
    weights.fill_part(model, "latent", weights.read_state(checkpoint), checkpoint)
    model.eval().update()
    image, ref = inputs["image"], inputs["ref"]
    y = model.encoder(image, ref)
    hint, likelihoods = model(image, ref)
    hints = []
    for single_image, single_ref in zip(image.split(1), ref.split(1)):
        y_hat, z_hat, _ = model.decompress(model.compress(single_image, single_ref).payload, *image.shape[-2:])
        hints.append(model.hint(y_hat, z_hat))
    return {
        "y": y,
        "z": model.hyper_enc(y, ref),
        "hint": hint,
        "y_likelihoods": likelihoods["y"],
        "z_likelihoods": likelihoods["z"],
        "hint decoded": torch.cat(hints),
    }


@torch.no_grad()
def eps_outputs(base_checkpoint: Path, checkpoint: Path, inputs: Mapping[str, Tensor], timestep: int) -> dict[str, Tensor]:
    """Compute the UNet's noise prediction with and without the control module."""
    with init_empty_weights():
        base = UNet2DConditionModel(**stable_diffusion.PROFILES["sd21"].unet)
        control = ControlModule(base)
    weights.fill_part(base, "unet", weights.read_state(base_checkpoint), base_checkpoint)
    weights.fill_part(control, "control", weights.read_state(checkpoint), checkpoint)
    base.eval(), control.eval()
    x, context = inputs["x_t"], inputs["context"]
    sinusoids = unet.embed_time(base, torch.full((len(x),), timestep))
    emb = base.time_embedding(sinusoids)
    inject = control.make_injector(x, sinusoids, context, control.prepare(inputs["control_hint"]))
    return {
        "eps": unet.run_unet(base, x, emb, context, inject),
        "eps_base": unet.run_unet(base, x, emb, context),
    }


def compare(name: str, ours: Tensor, theirs: Tensor) -> bool:
    """Print the difference of one output, and return whether it is within its limit."""
    if ours.shape != theirs.shape:
        print(f"{name:14} shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}  FAIL")
        return False
    difference = (ours - theirs).abs() / theirs.abs().max()
    share = (difference <= CLOSE).double().mean().item()
    passed = share >= SHARE if name in ROUNDED else difference.max().item() <= CLOSE
    limit = f"at least {SHARE:.0%}" if name in ROUNDED else "all"
    verdict = "ok" if passed else "FAIL"
    print(f"{name:14} max|a-b|/max|b| {difference.max():.2e}   within {CLOSE:g}: {share:8.3%} ({limit})   {verdict}")
    return passed


def find_keys(file: Path, option: Path | None) -> Path:
    """The file of the published layout's keys: the one that the option names, or the first at the default locations."""
    default = Path(__file__).resolve().parents[3] / "shared"
    shared = Path(os.environ.get("ICMBENCH_TEST_DATA", default))
    candidates = [option] if option else [file.parent / KEYS, shared / "conformance" / KEYS]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    sys.exit(f"{KEYS} is not at {' nor at '.join(map(str, candidates))}: name it with --keys")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="conformance data: inputs and outputs")
    parser.add_argument("--keys", type=Path, help=f"{KEYS}, if it is not at a default location")
    parser.add_argument("--folder", type=Path, help="where to write the checkpoints, 5.3 GB (default: the temporary folder)")
    arguments = parser.parse_args()
    # For small convolutions, PyTorch chooses different kernels on one thread than on more, and they differ in the last bits.
    torch.set_num_threads(max(2, torch.get_num_threads()))
    shapes = json.loads(find_keys(arguments.file, arguments.keys).read_text())
    reference = load_file(arguments.file)
    with safe_open(arguments.file, "pt") as data:
        metadata = data.metadata()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        sd, codec = Path(folder) / files.SD_CHECKPOINT, Path(folder) / "model.ckpt"
        write_checkpoint(codec, shapes, metadata["salt"], (keys.CONTROL, keys.LATENT))
        ours = latent_outputs(codec, reference)
        write_checkpoint(sd, shapes, metadata["salt"], (keys.UNET,))
        ours |= eps_outputs(sd, codec, reference, int(metadata["timestep"]))
    print("Through real bytes, which other kernels code. One different rounding changes all later values, so this is not judged:")
    compare("hint", ours.pop("hint decoded"), reference["hint"])
    print("The forward pass:")
    passed = [compare(name, output, reference[name]) for name, output in ours.items()]
    print("conformance passed" if all(passed) else "conformance FAILED")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
