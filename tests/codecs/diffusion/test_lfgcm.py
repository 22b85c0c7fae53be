"""LFGCM: the numbers of the authors' module, and latents that decode the same in another process."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[3]


def test_equals_the_published_module(shared, tmp_path):
    """y, z, the hint and the likelihoods of the full-size model with generated weights, and the hint decoded from a stream."""
    path = REPOSITORY / "tests" / "conformance" / "diff_icmh.py"
    spec = importlib.util.spec_from_file_location("conformance_diff_icmh", path)
    conformance = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conformance)
    file = shared / "conformance" / "diff_icmh.safetensors"
    with safe_open(file, "pt") as data:
        salt = data.metadata()["salt"]
    shapes = json.loads((shared / "conformance" / conformance.KEYS).read_text())
    conformance.write_checkpoint(tmp_path / "model.ckpt", shapes, salt, (conformance.keys.LATENT,))
    expected = load_file(file)
    outputs = conformance.latent_outputs(tmp_path / "model.ckpt", expected)
    decoded = outputs.pop("hint decoded")
    assert len(outputs) == 5
    assert all(conformance.compare(name, ours, expected[name]) for name, ours in outputs.items())
    assert conformance.compare("hint", decoded, expected["hint"])  # None of these 31,000 symbols is a tie in rounding.


@pytest.fixture
def image_and_ref(model):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 128, 192, generator=generator)
    return pixels, model.backbone.encode(pixels)


@pytest.mark.parametrize("mode", ["default", "portable"])
@torch.no_grad()
def test_stream_holds_the_latents_of_the_forward_pass(model, image_and_ref, mode):
    """The decoded hint is that of the forward pass, and the payload is about as long as the likelihoods predict."""
    hint, likelihoods = model.latent(*image_and_ref)
    coded = model.latent.compress(*image_and_ref, mode)
    y_hat, z_hat, checksum = model.latent.decompress(coded.payload, 128, 192, mode)
    assert checksum == coded.checksum
    decoded = model.latent.hint(y_hat, z_hat)
    if mode == "default":  # The integer networks of the portable mode differ a little from the forward pass.
        torch.testing.assert_close(decoded, hint, rtol=1e-4, atol=1e-4)
    bits = sum(-p.log2().sum().item() for p in likelihoods.values())
    assert math.isclose(8 * len(coded.payload), bits, rel_tol=0.05, abs_tol=64)


DECODE = """
import sys, numpy, torch
torch.set_num_threads(2)
from icmbench.codecs.diffusion.backbone import weights
from icmbench.codecs.diffusion.latents.lfgcm import LFGCM_PROFILES, Lfgcm
folder = sys.argv[1]
latent = Lfgcm(**LFGCM_PROFILES["tiny"]).eval()
state = weights.read_state(f"{folder}/weights.safetensors")
latent.load_state_dict({key.removeprefix("latent."): value for key, value in state.items() if key.startswith("latent.")})
y_hat, z_hat, _ = latent.decompress(open(f"{folder}/payload", "rb").read(), 256, 384)
numpy.savez(f"{folder}/decoded.npz", y_hat=y_hat.numpy(), z_hat=z_hat.numpy())
"""


@torch.no_grad()
def test_fresh_process_with_other_threads_decodes_the_same(model, weights_folder, photo, tmp_path):
    """Latents that were encoded on one thread are bit-identical when another process decodes them on two."""
    pixels = torch.from_numpy(photo[:256, :384].copy()).permute(2, 0, 1)[None] / 255
    coded = model.latent.compress(pixels, model.backbone.encode(pixels))
    y_hat, z_hat, _ = model.latent.decompress(coded.payload, 256, 384)
    assert y_hat.abs().max() > 1  # The latents are not all zero.
    (tmp_path / "payload").write_bytes(coded.payload)
    os.link(weights_folder / "diff-icmh-lambda2.safetensors", tmp_path / "weights.safetensors")
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", DECODE, tmp_path], env=environment, check=True)
    decoded = np.load(tmp_path / "decoded.npz")
    assert decoded["y_hat"].tobytes() == y_hat.numpy().tobytes()
    assert decoded["z_hat"].tobytes() == z_hat.numpy().tobytes()
