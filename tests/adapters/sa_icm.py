"""SA-ICM with random weights: what verify.py compares the adapter with. See codecs/adapters/sa_icm.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def prepare(folder: Path) -> dict:
    """A checkpoint of the authors' network in the form of their file, named after the point 93.

    The last layer of the analysis is scaled up, because the latents of an untrained network round to nothing but zeros.
    """
    import torch
    from models import ICM

    torch.manual_seed(93)
    net = ICM()
    with torch.no_grad():
        net.g_a[-1].weight.mul_(8)
    torch.save({"state_dict": {"module." + key: value for key, value in net.state_dict().items()}}, folder / "icm_93.pth.tar")
    return {"point": 93, "options": {"weights": str(folder / "icm_{point}.pth.tar")}}


def direct(folder: Path, image: np.ndarray) -> tuple:
    """What `coding_m.py --real` does to an image: the strings that it counts, y before z, and the pixels that it saves."""
    import torch
    from models import ICM
    from torchvision.transforms.functional import to_tensor
    from utils import crop, pad

    torch.set_num_threads(1)
    net = ICM().eval()
    state = torch.load(folder / "icm_93.pth.tar")["state_dict"]
    net.load_state_dict({key.replace("module.", ""): value for key, value in state.items()})
    net.update()
    padded, padding = pad(to_tensor(image.copy())[None], 128)
    with torch.no_grad():
        encoded = net.compress(padded)
        decoded = net.decompress(encoded["strings"], encoded["shape"])
    pixels = np.squeeze(crop(decoded["x_hat"], padding).numpy()[0]) * 255
    return b"".join(string[0] for string in encoded["strings"]), pixels.transpose(1, 2, 0).astype(np.uint8)
