"""StableCodec without the adapter: random weights in the authors' format, and their own calls. Runs in the guest's interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def prepare(folder: Path) -> dict:
    """Writes a small SD-Turbo, and random weights of ELIC and of the authors' latent codec at their full size.

    Returns:
        The adapter's options: `point` and `options`.
    """
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from ELIC.model.elic_official import ELIC
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    torch.manual_seed(0)
    files = _files(folder)
    sd = Path(files["sd_turbo"])
    levels = {"layers_per_block": 1, "block_out_channels": (320, 64), "cross_attention_dim": 32, "attention_head_dim": 8}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    UNet2DConditionModel(use_linear_projection=True, **levels, **blocks).save_pretrained(sd / "unet")
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    channels = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 2, "latent_channels": 4}
    AutoencoderKL(down_block_types=down, up_block_types=up, **channels).save_pretrained(sd / "vae")
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    DDPMScheduler(**betas, timestep_spacing="trailing").save_pretrained(sd / "scheduler")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    CLIPTextModel(CLIPTextConfig(vocab_size=514, **sizes)).save_pretrained(sd / "text_encoder")
    letters = list(bytes_to_unicode().values())
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    Path(folder, "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    Path(folder, "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77).save_pretrained(sd / "tokenizer")
    torch.save(ELIC().state_dict(), files["elic"])
    with _cpu():
        net = _network(folder, codec_path=None)
    with torch.no_grad():
        for key, value in [*net.unet.named_parameters(), *net.vae.named_parameters()]:
            if "lora_B" in key:
                value.normal_(std=0.02)
        for value in net.codec.g_a.parameters():  # so that y takes more values than -1, 0 and 1
            value.mul_(1.5)
    net.save_model(files["weights"])
    return {"point": 2, "options": files}


def direct(folder: Path, image: np.ndarray) -> tuple:
    """What `src/compress.py` does with a picture, except that it runs on the CPU.

    Args:
        folder: Where `prepare` wrote the weights.
        image: uint8 RGB, (height, width, 3).

    Returns:
        The file that the authors write, and the reconstruction, uint8 RGB.
    """
    import compress
    import torch
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    with _cpu(), torch.no_grad():
        net = _network(folder, codec_path=_files(folder)["weights"])
        net.cuda().eval()
        net.codec.update(force=True)
        Image.fromarray(image).save(str(folder / "image.png"))
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
        x = compress.preprocess_image(str(folder / "image.png"), transform).unsqueeze(0)
        height, width = x.shape[2:]
        x = torch.nn.functional.pad(x, (0, -width % 256, 0, -height % 256), mode="reflect")
        compress.compress_one_image(net, str(folder), height, width, "image.bin", x)
        torch.manual_seed(0)  # the authors' set_seed, which they call once for all pictures
        x_hat = compress.decompress_one_image(net, str(folder), height, width, "image.bin", [1])
    return (folder / "image.bin").read_bytes(), np.asarray(transforms.ToPILImage()(x_hat[0].clamp(0.0, 1.0)))


def _files(folder: Path) -> dict:
    names = {"weights": "stablecodec_ft2.pkl", "sd_turbo": "sd-turbo", "elic": "elic_official.pth"}
    return {key: str(folder / name) for key, name in names.items()}


def _network(folder: Path, codec_path):
    from my_utils.testing_utils import parse_args_testing
    from StableCodec import StableCodec

    files = _files(folder)
    options = {
        "sd_path": files["sd_turbo"],
        "elic_path": files["elic"],
        "codec_path": "",
        "img_path": "",
        "rec_path": "",
        "bin_path": "",
    }
    args = parse_args_testing([f"--{key}={value}" for key, value in options.items()])
    args.codec_path = codec_path
    return StableCodec(sd_path=args.sd_path, args=args)


def _cpu():
    """Runs on the CPU what the authors' code puts on "cuda", which is written into it."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Cpu(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.Tensor.cuda:
                return args[0]
            args = ["cpu" if isinstance(value, (str, torch.device)) and str(value) == "cuda" else value for value in args]
            kwargs = dict(kwargs or {})
            if str(kwargs.get("device")) == "cuda":
                kwargs["device"] = "cpu"
            return function(*args, **kwargs)

    return Cpu()
