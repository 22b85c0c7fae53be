"""GLC without the adapter: random weights in the authors' format, and their own calls. Runs in the guest's interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def prepare(folder: Path) -> dict:
    """Writes random weights of the authors' network, with a codebook and steps that give every part of it something to do.

    Returns:
        The adapter's options: `point` and `options`.
    """
    import torch
    from src.models.image_model import GLC_Image

    torch.manual_seed(0)
    net = GLC_Image(inplace=True)
    with torch.no_grad():
        net.z_vq.embedding.weight.normal_(std=0.1)
        net.q_enc.copy_(torch.rand_like(net.q_enc) + torch.arange(1, 5).view(4, 1, 1, 1))
        net.q_dec.copy_(1 / net.q_enc)
    path = str(Path(folder, "GLC_image.pth"))
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, path)
    return {"point": 2, "options": {"weights": path}}


def direct(folder: Path, image: np.ndarray) -> tuple:
    """What `test_image.py` does with a picture, from the file that it reads to the file that it writes.

    Args:
        folder: Where `prepare` wrote the weights.
        image: uint8 RGB, (height, width, 3).

    Returns:
        The bits that the authors report (their bpp times the pixels), and the reconstruction, uint8 RGB.
    """
    import torch
    from PIL import Image
    from src.models.image_model import GLC_Image
    from src.utils.test_utils import OnlyImageFolder, from_0_1_to_minus1_1, get_state_dict, init_func, write_image

    init_func()
    net = GLC_Image(inplace=True)
    net.load_state_dict(get_state_dict(str(Path(folder, "GLC_image.pth"))), strict=True)
    net.eval()
    Path(folder, "input").mkdir(exist_ok=True)
    Image.fromarray(image).save(str(Path(folder, "input", "image.png")))
    loader = torch.utils.data.DataLoader(OnlyImageFolder(str(Path(folder, "input")), padding_size=64), batch_size=1)
    x = from_0_1_to_minus1_1(next(iter(loader))[0])
    left, right, top, bottom = GLC_Image.get_padding_size(x.shape[2], x.shape[3], 64)
    with torch.no_grad():
        result = net.test(torch.nn.functional.pad(x, (left, right, top, bottom), mode="replicate"), 2)
    x_hat = torch.nn.functional.pad(result["x_hat"].clamp(-1, 1), (-left, -right, -top, -bottom))
    write_image(str(Path(folder, "output.png")), x_hat)
    return result["bit"], np.asarray(Image.open(str(Path(folder, "output.png"))))
