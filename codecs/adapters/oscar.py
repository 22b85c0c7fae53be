"""OSCAR (Guo et al., NeurIPS 2025, "One-Step Diffusion Codec Across Multiple Bit-rates").

Repository: jp-guo/OSCAR, read at cb23f4e1911b. The computation is that of `OSCAR.forward`, which `main_test.py` calls, cut in two
where a decoder would begin. The environment's `path:` names two folders, CHECKOUT and CHECKOUT/diffusion.

Environment that was tried (Python 3.10 and the authors' versions, except torch 2.0.1 and torchvision 0.15.2):
    uv venv -p 3.10 envs/oscar && uv pip install -p envs/oscar/bin/python torch==2.1.2 torchvision==0.16.2 numpy==1.26.3 \\
        compressai==1.2.6 diffusers==0.25.0 transformers==4.37.2 peft==0.9.0 accelerate==1.3.0 huggingface-hub==0.25.0 \\
        vector-quantize-pytorch==1.22.3 einops==0.8.1 einx==0.3.0

Weights: jinpeig/OSCAR and stabilityai/stable-diffusion-2-1, both from Hugging Face. They were not reachable here.
Licence: the repository states none for its code and weights. Stable Diffusion 2.1 has the CreativeML Open RAIL++-M licence.

The authors write no bytes. They report the bits of the codebook's indices, the same number for every picture; the stream holds just
these bits. Their decoder also takes the norms of the original's four latent channels, which they do not count; the stream holds
them as 16 bytes, and 4 bytes for the image's height and width. On 768x512 pixels at 0.0019 bpp that is 116 bytes in place of 96.
Their script shrinks a picture to sides that are multiples of 128. Here the last row and column are repeated up to such sides, and
the padding is cut off again. Their encoder samples from the posterior of the autoencoder without a seed; here it has one.

Verified on the CPU, with random weights of the authors' full hyper-encoders and with small networks of their Stable Diffusion
classes: indices and pixels of `OSCAR.forward` at all eight points, at one of them decoded in a fresh process and through icmbench.
Not verified: the authors' weights, a GPU, torch 2.0.1.
"""

from __future__ import annotations

import argparse
import functools
import struct
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = struct.Struct("<HH4f")  # height, width, and the norms of the latent channels
_SIZE_BITS = 32  # of the header, which are height and width
_STRIDE = 128  # pixels; the authors' script takes no other sides than multiples of it


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class Oscar:
    """OSCAR: vector quantization of Stable Diffusion's latents, decoded in one denoising step.

    Args:
        point: Rate in bits per pixel, one of the authors' eight.
        weights: The authors' checkpoint, one for all points.
        stable_diffusion: The folder of Stable Diffusion 2.1 in the layout of diffusers.
        seed: Seed of the encoder's sample of the latents.
        device: Where the networks run, as PyTorch names it.
    """

    name = "oscar"
    default_points = (0.0019, 0.0098, 0.0313, 0.0430, 0.0625, 0.0781, 0.0937, 0.1250)

    def __init__(self, point: float, weights: Path, stable_diffusion: Path, seed: int = 0, device: str = "cpu") -> None:
        if point not in self.default_points:
            raise ValueError(f"oscar: there is no point {point}; choose among {self.default_points}")
        self.point = {"label": f"rate={point:g}", "order": float(point), "parameters": {"rate": point}}
        self.fingerprint = {"stream": 1}
        self.device, self._level, self._seed = device, self.default_points.index(point), seed
        self._files = Path(weights), Path(stable_diffusion)

    def compress(self, image: np.ndarray) -> bytes:
        import torch

        model, encoder, _, bits = self._model()
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % _STRIDE), (0, -width % _STRIDE), (0, 0)), "edge")
        x = torch.from_numpy(padded).permute(2, 0, 1)[None].contiguous().float().div(255) * 2 - 1
        torch.manual_seed(self._seed)
        with torch.no_grad(), _redirection(self.device):
            latents = model.vae.encode(x.to(self.device)).latent_dist.sample() * model.vae.config.scaling_factor
            indices = encoder.quantizer(encoder.backbone(latents).flatten(2).transpose(1, 2))[1]
            norms = torch.norm(latents.flatten(2), p=2, dim=-1).flatten().tolist()
        ones = indices.cpu().numpy().reshape(-1, 1) >> np.arange(bits)[::-1] & 1
        return _HEADER.pack(height, width, *norms) + np.packbits(ones.astype(np.uint8)).tobytes()

    def decompress(self, data: bytes) -> np.ndarray:
        import torch

        model, encoder, side, bits = self._model()
        try:
            height, width, *norms = _HEADER.unpack_from(data)
            rows, columns = (-(-length // _STRIDE) * _STRIDE // side for length in (height, width))
            if len(data) != _HEADER.size + -(-rows * columns * bits // 8) or not min(height, width) or not np.isfinite(norms).all():
                raise ValueError("its length or its norms do not fit")
        except (ValueError, struct.error) as error:
            raise BitstreamError(f"oscar: {len(data)} bytes are not a whole stream: {error}") from error
        ones = np.unpackbits(np.frombuffer(data, np.uint8, offset=_HEADER.size))[: rows * columns * bits].reshape(-1, bits)
        indices = torch.from_numpy(ones.astype(np.int64) @ (1 << np.arange(bits)[::-1])).to(self.device)
        with torch.no_grad(), _redirection(self.device):
            codes = encoder.quantizer.get_output_from_indices(indices[None]).view(1, rows, columns, -1)
            z_hat = encoder.proj(codes.permute(0, 3, 1, 2))
            flat, step = z_hat.flatten(2), model.timesteps[self._level]
            scaled = flat * torch.tensor(norms, device=self.device)[None, :, None] / torch.norm(flat, p=2, dim=-1, keepdim=True)
            scaled = scaled.reshape(z_hat.shape)
            noise = model.unet(scaled, step, encoder_hidden_states=model.embeddings[None].float()).sample
            denoised = model.noise_scheduler.step(noise, step, scaled, return_dict=True).pred_original_sample
            x_hat = model.vae.decode(denoised / model.vae.config.scaling_factor).sample.clamp(-1, 1) * 0.5 + 0.5
        # ToPILImage, which the authors call, drops the fraction, too.
        return x_hat[0, :, :height, :width].cpu().mul(255).byte().permute(1, 2, 0).numpy()

    def rate_breakdown(self, data: bytes) -> dict[str, int]:
        norms = 8 * _HEADER.size - _SIZE_BITS
        return {"header": _SIZE_BITS, "norms": norms, "indices": 8 * len(data) - norms - _SIZE_BITS}

    def _model(self) -> tuple[Any, Any, int, int]:
        """The model, this point's hyper-encoder, the pixels along a side of the square of one index, and the bits of an index."""
        model = _load(*self._files, self.device)
        encoder = model.hyper_encoders[self._level]
        return model, encoder, 512 // encoder.config.cfg_ss, (encoder.config.cfg_cs - 1).bit_length()


def _redirection(device: str) -> Any:
    """A context in which what the authors' code puts on "cuda", which is written into it, goes to the device."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Redirection(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.cuda:
                function, args, kwargs = torch.Tensor.to, (args[0], device), {}
            args = [device if isinstance(value, (str, torch.device)) and str(value) == "cuda" else value for value in args]
            kwargs = {key: device if key == "device" and str(value) == "cuda" else value for key, value in (kwargs or {}).items()}
            return function(*args, **kwargs)

    return Redirection()


@functools.lru_cache(maxsize=1)
def _load(weights: Path, stable_diffusion: Path, device: str) -> Any:
    """The authors' model, which all points share. Sums must not depend on how many threads the caller has."""
    import torch
    from diffusion.oscar import OSCAR

    torch.set_num_threads(1)
    args = argparse.Namespace(pretrained_model_name_or_path=str(stable_diffusion), lora_rank=16, hyper_dim=320)
    with _redirection(device):
        model = OSCAR(args).to(device)
        model.set_eval()
        model.load_ckpt(torch.load(str(weights), map_location="cpu"))
    return model
