"""Diff-ICMH (Feng et al., NeurIPS 2025) by its authors' own code; `diff-icmh` without an environment is icmbench's version of it.

Repository: RuoyuFeng/Diff-ICMH, read at 01366f0afe89. The functions are those of `inference_partition.py`.

Environment that was tried (Python 3.8 and the versions of the authors' README and requirements.txt, without CUDA's xformers):
    uv venv -p 3.8 envs/diff_icmh && uv pip install -p envs/diff_icmh/bin/python torch==2.4.1 torchvision==0.19.1 numpy==1.23.1 \\
        compressai==1.2.4 einops==0.8.0 kornia==0.7.0 lpips==0.1.4 omegaconf==2.3.0 open_clip_torch==2.22.0 openai_clip==1.0.1 \\
        opencv_python==4.8.1.78 opencv_python_headless==4.8.1.78 Pillow==10.4.0 pyiqa==0.1.7 pytorch_lightning==1.5.0 \\
        torchmetrics==0.11.4 thop==0.1.1.post2209072238 timm==0.9.7 transformers==4.41.0 fairscale==0.4.4 setuptools==69.5.1
The experiment's `path` holds two folders: the checkout, and src/recognize-anything in it.

Weights: from the hub, RuoyuFeng/Diff-ICMH (difficmh_models/CNscale1.0_1_1_2_2_WTagGCM_bs16x1_lr0.00005_cfg7.0/model.ckpt and so on,
where the second 2 is the point), v2-1_512-ema-pruned.ckpt of Stable Diffusion 2.1-base, and ram_plus_swin_large_14m.pth of RAM++,
which also needs the tokenizer bert-base-uncased. None was reachable here.
Licence: code Apache-2.0; Stable Diffusion CreativeML Open RAIL++-M, RAM++ Apache-2.0; the repository states none for its weights.

The stream is the file that the authors' script writes and counts, behind height and width. They divide by the pixels of the padded
image, icmbench by those of the image. Their script seeds the noise once for all images; here every image starts from the seed.
Where RAM++ finds no tag, their code fails (numpy takes no list of no numbers as an index); `_build` repairs that.

Verified with random weights of all of the authors' networks, on the CPU: Stable Diffusion small, the latent codec and RAM++ in full
size. The file is the authors', and decoding the bytes in a fresh process gives their pixels. Not verified: their weights, a GPU.
"""

from __future__ import annotations

import functools
import struct
import tempfile
from pathlib import Path

import numpy as np

_OVERRIDES = ("params.control_stage_config.params.control_model_ratio=1.0", "params.c_cfg_scale=5.0")
_SIZE = struct.Struct(">HH")  # height, width: 4 bytes that decoding needs and the authors' file lacks


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class DiffIcmhAuthors:
    """Diff-ICMH by its authors' code.

    Args:
        point: Lambda, the weight of the rate in training: 2, 4, 8, 16 or 32, the lowest rate.
        weights: The authors' model.ckpt. "{point}" in the path stands for the point.
        backbone: The checkpoint of Stable Diffusion 2.1-base.
        tagger: The checkpoint of RAM++. Without it, streams hold no tags, and there is no guidance.
        config: The authors' configuration, by default configs/model/diffeic.yaml of the checkout.
        overrides: What replaces values of the configuration, by default as in the authors' README.
        steps: Steps of the sampler.
        seed: Seed of the noise.
        device: Where the networks run, as PyTorch names it.
    """

    name = "diff-icmh-authors"
    default_points = (2, 4, 8, 16, 32)

    def __init__(
        self,
        point: int,
        weights: Path,
        backbone: Path,
        tagger: Path | None = None,
        config: Path | None = None,
        overrides: tuple = _OVERRIDES,
        steps: int = 50,
        seed: int = 231,
        device: str = "cpu",
    ) -> None:
        self.point = {"label": f"lambda={point}", "order": -float(point), "parameters": {"lambda": point}}
        path = Path(str(weights).replace("{point}", str(point)))
        self._model = functools.partial(_load, path, (backbone, tagger, config, tuple(overrides), device))
        self._tags, self._steps, self._seed, self.deterministic = tagger is not None, steps, seed, device == "cpu"

    def compress(self, image: np.ndarray) -> bytes:
        import torch
        from utils.image import pad

        model, padded, tags = self._model(), pad(image, scale=64), {}
        control = torch.from_numpy(padded / 255.0).float().permute(2, 0, 1)[None].contiguous().to(model.device)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            if self._tags:
                tags["tag_ids"] = model.preprocess_tag_model(control, return_ids=True)[0][0].reshape(-1).tolist()
            model.apply_condition_compress(control, f"{folder}/stream", *padded.shape[:2], **tags)
            return _SIZE.pack(*image.shape[:2]) + Path(folder, "stream").read_bytes()

    def decompress(self, data: bytes) -> np.ndarray:
        """The authors' `process` codes an image and decodes it. Here its coding only puts the stream's bytes into its file."""
        import torch
        from inference_partition import process

        model = self._model()
        try:
            height, width = _parts(data, self._tags)[:2]
            blank = np.zeros((-(-height // 64) * 64, -(-width // 64) * 64, 3), np.uint8)
            model.apply_condition_compress = lambda control, path, *_, **__: Path(path).write_bytes(data[_SIZE.size :])
            model.preprocess_tag_model.forward = lambda *_, **__: ([np.zeros(0)], 0)  # The tags come from the file.
            torch.manual_seed(self._seed)
            with tempfile.TemporaryDirectory() as folder:
                pixels, _ = process(model, [blank], "ddpm", self._steps, f"{folder}/stream")
        except Exception as error:  # Whatever the coder raises, the stream is at fault.
            raise BitstreamError(f"diff-icmh-authors: {len(data)} bytes are not a whole stream: {error}") from error
        finally:
            vars(model).pop("apply_condition_compress", None)
            vars(model.preprocess_tag_model).pop("forward", None)
        return pixels[0][:height, :width].copy()

    def rate_breakdown(self, data: bytes) -> dict:
        bits = dict(zip(("y", "z", "tags"), (8 * size for size in _parts(data, self._tags)[2:])))
        return {"header": 8 * len(data) - sum(bits.values()), **bits}


def _parts(data: bytes, tags: bool) -> list:
    """Height, width, and the bytes of y, of z and, with tags, of these. ValueError if they do not make up the stream."""
    height, width, z_height, z_width, strings, y_bytes = struct.unpack_from(">HHIIII", data)
    z_bytes = struct.unpack_from(">I", data, 20 + y_bytes)[0]
    count, _, tag_bytes = struct.unpack_from(">III", data, 24 + y_bytes + z_bytes) if tags else (0, 0, -12)
    whole = strings == 2 and len(data) == 36 + y_bytes + z_bytes + tag_bytes and tag_bytes in (-(-13 * count // 8), -12)
    if not whole or not z_height or [z_height, z_width] != [-(-side // 64) for side in (height, width)]:
        raise ValueError("sizes do not fit")
    return [height, width, y_bytes, z_bytes, *([tag_bytes] if tags else [])]


def _load(path: Path, options: tuple):
    """The authors' model with the weights of one point. All points share Stable Diffusion and the tagger."""
    import torch
    from inference_partition import load_state_dict

    model = _build(*options)
    if vars(model).get("weights_of_point") != path:
        state = torch.load(path, map_location="cpu")["state_dict"]
        missing = [key for key, _ in model.named_parameters() if key not in model.known and key not in state]
        if missing:
            raise ValueError(f"{path} and the backbone have no weights for {missing[0]} and {len(missing) - 1} more")
        load_state_dict(model, {key: value for key, value in state.items() if value.numel()})  # Empty tables are filled below.
        model.preprocess_model.update(force=True)
        model.weights_of_point = path
    return model


@functools.lru_cache(maxsize=1)
def _build(backbone: Path, tagger: Path | None, config: Path | None, overrides: tuple, device: str):
    """The authors' model with Stable Diffusion and the tagger. Nothing is downloaded that the checkpoints replace anyway."""
    import inference_partition as script
    import torch

    if device == "cpu":
        torch.set_num_threads(1)  # Sums must not depend on how many threads the caller has, or streams break.
        script.disable_xformers()
    settings = script.OmegaConf.load(config or Path(script.__file__).parent / "configs" / "model" / "diffeic.yaml")
    settings = script.OmegaConf.merge(settings, script.OmegaConf.from_dotlist(list(overrides)))
    settings.params.update(sync_path=None, calculate_metrics={})
    settings.params.cond_stage_config.params.version = None
    settings.params.preprocess_tag_config.params.update(enabled=tagger is not None, pretrained=str(tagger))
    model = script.instantiate_from_config(settings)
    state = torch.load(backbone, map_location="cpu")["state_dict"]
    script.load_state_dict(model, state)
    elsewhere = ("preprocess_tag_model.", "cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection")
    model.known = {key for key, _ in model.named_parameters() if key in state or key.startswith(elsewhere)}
    decode_tag_ids = model.decode_tag_ids
    model.decode_tag_ids = lambda *parts: np.array(decode_tag_ids(*parts), int)  # Integers even if there is no tag.
    model.freeze()
    return model.to(device)
