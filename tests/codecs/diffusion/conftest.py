"""Fixtures of the diffusion codecs: the tiny profile with random weights, and pictures."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread, because the tests share their machine with others."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def backbone():
    """The backbone of the tiny profile with random weights."""
    from icmbench.codecs.diffusion.backbone import stable_diffusion

    return stable_diffusion.random_backbone("tiny").eval().requires_grad_(False)


@pytest.fixture(scope="session")
def model(backbone):
    """A rate point with random weights, chosen so that the control module has an effect and the latents are not all zero."""
    import torch

    from icmbench.codecs.diffusion.backbone.control import ControlModule
    from icmbench.codecs.diffusion.engine import CodecModel
    from icmbench.codecs.diffusion.latents.lfgcm import LFGCM_PROFILES, Lfgcm

    with torch.random.fork_rng():
        torch.manual_seed(1)
        latent, control = Lfgcm(**LFGCM_PROFILES["tiny"]), ControlModule(backbone.unet)
        for conv in (*control.encoder_out, control.middle_out, *control.decoder_out):
            torch.nn.init.normal_(conv.weight, std=0.05)
        torch.nn.init.normal_(latent.encoder.g_a6.weight, std=1.0)
        for net in (*latent.context.parameters_anchor, *latent.context.parameters_nonanchor):
            # Scales that fit latents of this size.
            torch.nn.init.constant_(net[-1].bias[: net[-1].out_channels // 2], 1.5)
    return CodecModel(backbone, latent, control)


@pytest.fixture(scope="session")
def weights_folder(model, tmp_path_factory) -> Path:
    """A folder with the model, once for each lambda, and its backbone."""
    from icmbench.codecs.diffusion import models

    folder = tmp_path_factory.mktemp("weights")
    models.save_model(model, folder / "diff-icmh-lambda2.safetensors")
    for point in (4, 8, 16, 32):
        os.link(folder / "diff-icmh-lambda2.safetensors", folder / f"diff-icmh-lambda{point}.safetensors")
    models.save_backbone(model.backbone, folder / "backbone.safetensors")
    return folder


@pytest.fixture
def tiny(weights_folder):
    """A function that makes a codec of the tiny profile from options."""
    from icmbench.codecs.diff_icmh import DiffIcmh

    def make(point: float = 2, **options) -> DiffIcmh:
        settings = {"profile": "tiny", "weights": weights_folder, "device": "cpu", "steps": 2} | options
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return DiffIcmh(point, **settings)

    return make


@pytest.fixture(scope="session")
def photo(shared) -> np.ndarray:
    """A real photograph, 512 x 768."""
    from PIL import Image

    return np.array(Image.open(shared / "data" / "kodak" / "kodim01.png").convert("RGB"))


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    """A function that makes a picture of coloured squares of 16 pixels."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        squares = np.random.default_rng(seed).uniform(0, 255, (height // 16 + 1, width // 16 + 1, 3))
        return np.kron(squares, np.ones((16, 16, 1)))[:height, :width].astype(np.uint8)

    return make
