"""FTIC without the adapter: random weights in the authors' format, and their own calls. Runs in the guest's interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def prepare(folder: Path) -> dict:
    """Writes random weights of the authors' network, scaled so that y takes more values than -1, 0 and 1.

    Returns:
        The adapter's options: `point` and `options`.
    """
    import torch
    from models import FrequencyAwareTransFormer

    torch.manual_seed(0)
    net = FrequencyAwareTransFormer()
    with torch.no_grad():
        net.g_a[-1].weight.mul_(10)
        net.h_a[-1].weight.mul_(10)
    path = Path(folder, "ckpt_mse_0483.pth")
    torch.save({f"module.{key}": value for key, value in net.state_dict().items()}, str(path))
    return {"point": "0483", "options": {"weights": str(Path(folder, "ckpt_mse_0483.pth"))}}


def direct(folder: Path, image: np.ndarray) -> tuple:
    """What `eval.py --real` does with a picture.

    Args:
        folder: Where `prepare` wrote the weights.
        image: uint8 RGB, (height, width, 3).

    Returns:
        The bytes that the authors count, z and then y; and the reconstruction, uint8 RGB.
    """
    import torch
    from eval import crop, pad
    from models import FrequencyAwareTransFormer
    from torchvision.transforms import ToTensor

    torch.set_num_threads(1)
    net = FrequencyAwareTransFormer().eval()
    state = torch.load(str(Path(folder, "ckpt_mse_0483.pth")), map_location="cpu")
    net.load_state_dict({key.replace("module.", ""): value for key, value in state.items()}, strict=True)
    net.update()
    padded, padding = pad(ToTensor()(image)[None], 256)
    y_file = Path(folder, "y_output.bin")
    with torch.no_grad():
        coded = net.compress(padded, str(y_file))
        x_hat = crop(net.decompress(coded["z_strings"], coded["minmax"], coded["z_shape"], str(y_file))["x_hat"], padding)
    payload = coded["z_strings"][0] + y_file.read_bytes()
    assert len(payload) == len(coded["z_strings"][0]) + coded["y_size"]
    return payload, (x_hat[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
