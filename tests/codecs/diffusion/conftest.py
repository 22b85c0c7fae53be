"""The tiny profile with random weights. One thread: the tests share their machine with others."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def backbone():
    from icmbench.codecs.diffusion.backbone import stable_diffusion

    return stable_diffusion.random("tiny").eval().requires_grad_(False)


@pytest.fixture(scope="session")
def model(backbone):
    """A rate point with random weights, whose control has an effect and whose latents are not all zero."""
    import torch

    from icmbench.codecs.diffusion.backbone.control import ControlModule
    from icmbench.codecs.diffusion.engine import CodecModel
    from icmbench.codecs.diffusion.latents.lfgcm import LFGCM, Lfgcm

    with torch.random.fork_rng():
        torch.manual_seed(1)
        latent, control = Lfgcm(**LFGCM["tiny"]), ControlModule(backbone.unet)
        for conv in (*control.encoder_out, control.middle_out, *control.decoder_out):
            torch.nn.init.normal_(conv.weight, std=0.05)
        torch.nn.init.normal_(latent.encoder.g_a6.weight, std=1.0)
        for net in (*latent.context.parameters_anchor, *latent.context.parameters_nonanchor):
            torch.nn.init.constant_(net[-1].bias[: net[-1].out_channels // 2], 1.5)  # scales that fit such latents
    return CodecModel(backbone, latent, control)


@pytest.fixture(scope="session")
def weights_folder(model, tmp_path_factory) -> Path:
    """The model and its backbone as files, for all lambdas."""
    from icmbench.codecs.diffusion import models

    folder = tmp_path_factory.mktemp("weights")
    models.save(model, folder / "diff-icmh-lambda2.safetensors")
    for point in (4, 8, 16, 32):
        os.link(folder / "diff-icmh-lambda2.safetensors", folder / f"diff-icmh-lambda{point}.safetensors")
    models.save_backbone(model.backbone, folder / "backbone.safetensors")
    return folder


@pytest.fixture
def tiny(weights_folder):
    """A codec of the tiny profile; keyword arguments are options."""
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
    """Makes coloured squares of 16 pixels, where any picture will do."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        squares = np.random.default_rng(seed).uniform(0, 255, (height // 16 + 1, width // 16 + 1, 3))
        return np.kron(squares, np.ones((16, 16, 1)))[:height, :width].astype(np.uint8)

    return make
