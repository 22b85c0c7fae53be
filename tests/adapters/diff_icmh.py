"""Diff-ICMH's own code with random weights: what verify.py compares the adapter with. See codecs/adapters/diff_icmh.py."""

from __future__ import annotations

import math
import tempfile
import zlib
from pathlib import Path

import numpy as np


def _settings(folder: Path):
    """The authors' configuration with a small Stable Diffusion. RAM++ and the latent codec exist in one size."""
    import inference_partition
    from omegaconf import OmegaConf

    settings = OmegaConf.load(Path(inference_partition.__file__).parent / "configs" / "model" / "diffeic.yaml")
    for part in ("control_stage_config", "unet_config"):
        settings.params[part].params.update(model_channels=64, context_dim=256)
    settings.params.first_stage_config.params.ddconfig.update(ch=32)
    settings.params.cond_stage_config.params.update(arch="ViT-S-32-alt", version=None)
    settings.params.control_stage_config.params.control_model_ratio = 1.0
    settings.params.update(sync_path=None, calculate_metrics={}, c_cfg_scale=5.0)
    settings.params.preprocess_tag_config.params.update(enabled=True, pretrained=str(Path(folder, "ram.pth")))
    return settings


def _weights(key: str, shape: tuple):
    """Random values of a usable size. Layers that start at zero and latents that round to zero would hide mistakes."""
    import torch

    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if key.endswith("quantiles"):
        return torch.tensor([-10.0, 0.0, 10.0]).expand(shape).clone()
    if len(shape) >= 2:
        return values / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * values if key.endswith("weight") else 0.05 * values


def prepare(folder: Path) -> dict:
    """A configuration, checkpoints in the form of the authors' files, and the tokenizer that RAM++ looks for, here without words.

    Two parts of RAM++ have other sizes, so that it finds some of its 4585 tags, and other ones in other images.
    """
    import torch
    from omegaconf import OmegaConf
    from utils.common import instantiate_from_config

    torch.save({"model": {}}, Path(folder, "ram.pth"))
    words = Path(folder, "bert-base-uncased")
    words.mkdir(exist_ok=True)
    (words / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")), encoding="utf-8")
    settings = _settings(folder)
    OmegaConf.save(settings, Path(folder, "small.yaml"))
    ram = "preprocess_tag_model.model."
    states = {"sd.ckpt": {}, "model_8.ckpt": {}, "ram.pth": {}}
    for key, value in instantiate_from_config(settings).named_parameters():
        trained = key.startswith(("control_model.", "preprocess_model."))
        file = "ram.pth" if key.startswith(ram) else "model_8.ckpt" if trained else "sd.ckpt"
        states[file][key] = _weights(key, tuple(value.shape))
    states["ram.pth"][ram + "fc.bias"].fill_(-2.5)
    states["ram.pth"][ram + "label_embed"].mul_(500)
    for name in ("sd.ckpt", "model_8.ckpt"):
        torch.save({"state_dict": states[name]}, Path(folder, name))
    torch.save({"model": {key[len(ram) :]: value for key, value in states["ram.pth"].items()}}, Path(folder, "ram.pth"))
    files = {"weights": "model_{point}.ckpt", "backbone": "sd.ckpt", "tagger": "ram.pth", "config": "small.yaml"}
    return {"point": 8, "options": {**{key: str(Path(folder, name)) for key, name in files.items()}, "steps": 3}}


def direct(folder: Path, image: np.ndarray) -> tuple:
    """What `inference_partition.py` does to an image: the file that it counts and the pixels that it saves."""
    import torch
    from inference_partition import disable_xformers, instantiate_from_config, load_state_dict, pad, pl, process

    torch.set_num_threads(1)
    disable_xformers()
    model = instantiate_from_config(_settings(folder))
    state = torch.load(Path(folder, "sd.ckpt"))["state_dict"]
    state.update(torch.load(Path(folder, "model_8.ckpt"))["state_dict"])
    load_state_dict(model, state, strict=False)
    model.preprocess_model.update(force=True)
    model.freeze()
    pl.seed_everything(231)
    with tempfile.TemporaryDirectory() as streams:
        pixels, _ = process(model, [pad(image, scale=64)], "ddpm", 3, f"{streams}/stream")
        payload = Path(streams, "stream").read_bytes()
    return payload, pixels[0][: image.shape[0], : image.shape[1]]
