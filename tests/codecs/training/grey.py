"""An objective that trains in milliseconds: it learns a mixture of the colours that equals their mean."""

import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from icmbench.codecs.training import loop
from icmbench.codecs.training.data import CropDataset
from icmbench.codecs.training.log import LOG
from icmbench.codecs.training.objective import Objective
from icmbench.codecs.training.observer import Observer
from icmbench.codecs.training.stage import StageOptions

STEPS = 6


class GreyObjective(Objective):
    """Draws no noise by default, so that runs with other batches can be compared.

    Args:
        device: PyTorch device.
        noise: standard deviation of noise on the pixels.
        disturb: called with the objective and its terms; returns the terms that the loop gets.
    """

    def __init__(self, device, noise=0.0, disturb=None):
        super().__init__(None, device)
        self.mix = torch.nn.Conv2d(3, 1, 1).to(device)
        self.weights = {"mse": 1.0}
        self._noise, self._disturb = noise, disturb

    def forward(self, batch):
        pixels = self.pixels(batch)
        if self._noise:
            pixels = pixels + self._noise * torch.randn_like(pixels)
        terms = {"mse": (self.mix(pixels).float() - pixels.mean(1, keepdim=True)).square().mean()}
        return terms if self._disturb is None else self._disturb(self, terms)

    def export(self, folder):
        save_file({key: value.clone() for key, value in self.state_dict().items()}, folder / "greys.safetensors")


class Listener(Observer):
    """Keeps what it hears, and calls a function after each step."""

    def __init__(self, after_step=None):
        self.first, self.sentences, self._after_step = None, [], after_step

    def begin(self, first):
        self.first = first

    def step(self, done, terms, loss):
        if self._after_step is not None:
            self._after_step(done)

    def tell(self, sentence):
        self.sentences.append(sentence)


def write_photos(folder):
    """Eight small photographs of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(8):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def run(photos, out, precision="no", validate=None, history=None, listener=None, noise=0.0, disturb=None, **stage):
    """Train; return the log and the exported weights. The weights after each step are appended to `history`."""
    objectives = []

    def build(device):
        objectives.append(GreyObjective(device, noise, disturb))
        return objectives[-1]

    def keep_weights(done):
        if history is not None:
            history.append({key: value.detach().clone() for key, value in objectives[-1].state_dict().items()})

    loop.train_stage(
        *(build, CropDataset(photos, crop=16), StageOptions(**{"steps": STEPS, "lr": 1e-2, **stage}), out),
        accelerator=loop.make_accelerator(precision),
        export=out / "export",
        validate=validate,
        observer=listener or Listener(keep_weights),
    )
    return log(out), load_file(out / "export" / "greys.safetensors")


def log(out):
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]
