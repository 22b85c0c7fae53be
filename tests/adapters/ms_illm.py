"""MS-ILLM by the authors' code alone, as projects/illm/eval_folder_example.py runs it; verify.py compares the adapter with it.

The zoo builds its networks in one size only, so `prepare` writes a checkpoint of 0.7 GB. Weights of the last layer of the encoder
and of the layers that predict scales are enlarged: at their initial size all latents would round to 0 and the streams hold next
to nothing.
"""

from __future__ import annotations

import pickle
from pathlib import Path


def prepare(folder):
    """Random weights where torch.hub looks for the released ones."""
    import torch
    from neuralcompression.zoo import msillm_quality_3

    torch.manual_seed(0)
    model = msillm_quality_3(pretrained=False)
    with torch.no_grad():
        for layer, factor in ((model.encoder.blocks[-1], 5), (model.hyper_analysis[-1], 5), (model.hyper_synthesis_scale[-1], 5)):
            layer.weight.mul_(factor)
    file = Path(folder, "hub", "checkpoints", "msillm_target_0.14bpp.ckpt")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return {"point": 0.14, "options": {"weights": file}}


def direct(folder, image):
    """The pickle that the authors' script measures, and the pixels that its metrics see."""
    import neuralcompression
    import torch
    from neuralcompression.metrics import pickle_size_of
    from PIL import Image
    from torchvision.transforms import ToTensor

    torch.hub.set_dir(str(Path(folder, "hub")))
    checkout = Path(neuralcompression.__file__).parents[1]
    model = torch.hub.load(str(checkout), "msillm_quality_3", source="local").eval()
    model.update()
    model.update_tensor_devices("compress")
    pixels = ToTensor()(Image.fromarray(image)).unsqueeze(0)
    with torch.no_grad():
        compressed = model.compress(pixels, force_cpu=False)
        decompressed = model.decompress(compressed, force_cpu=False).clamp(0.0, 1.0)
    payload = pickle.dumps(compressed)
    assert len(payload) == pickle_size_of(compressed)
    return payload, (decompressed * 255 + 0.5).to(torch.uint8)[0].permute(1, 2, 0).numpy()
