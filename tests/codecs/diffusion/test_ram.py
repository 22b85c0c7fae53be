"""RAM++ equals its authors' code on generated weights."""

import math
import zlib

import numpy as np
import pytest
import torch

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone import weights
from icmbench.codecs.diffusion.prompts import ram

# Logits of the published code on the weights and image below. Its Swin has width 16, depths 2 and 2, and heads 2 and 4.
LOGITS = [
    2.186178, 1.857091, 2.040179, 1.917108, 2.296512, 1.706145, 2.140753, 1.884190, 1.948514, 1.779172,
    1.716846, 1.976196, 1.610530, 1.916067, 2.092081, 2.041675, 1.762163, 2.027994, 1.945041, 1.789863,
]  # fmt: skip
SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 12}
TAGS = 20


def generate(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"ram{key}".encode())))
    if len(shape) >= 2:
        return values / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * values if key.endswith("weight") else 0.05 * values


def generated() -> dict[str, torch.Tensor]:
    """A generated checkpoint of this network, under the published names."""
    state = {key: generate(key, shape) for key, shape in published_shapes().items()}
    return state | {"label_embed": 25 * state["label_embed"]}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of this network's tensors under their published names."""
    shapes: dict[str, tuple[int, ...]] = {"label_embed": (TAGS * 51, 512), "reweight_scale": ()}

    def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    swin = "visual_encoder"
    shapes[f"{swin}.patch_embed.proj.weight"], shapes[f"{swin}.patch_embed.proj.bias"] = (16, 3, 4, 4), (16,)
    norm(f"{swin}.patch_embed.norm", 16)
    norm(f"{swin}.norm", 32)
    for level, (width, heads) in enumerate(((16, 2), (32, 4))):
        for block in range(2):
            name = f"{swin}.layers.{level}.blocks.{block}"
            norm(f"{name}.norm1", width)
            norm(f"{name}.norm2", width)
            shapes[f"{name}.attn.relative_position_bias_table"] = (23 * 23, heads)
            linear(f"{name}.attn.qkv", 3 * width, width)
            linear(f"{name}.attn.proj", width, width)
            linear(f"{name}.mlp.fc1", 4 * width, width)
            linear(f"{name}.mlp.fc2", width, 4 * width)
    norm(f"{swin}.layers.0.downsample.norm", 64)
    linear(f"{swin}.layers.0.downsample.reduction", 32, 64, bias=False)
    for layer in range(2):
        name = f"tagging_head.encoder.layer.{layer}"
        linear(f"{name}.crossattention.self.query", 768, 768)
        linear(f"{name}.crossattention.self.key", 768, 512)
        linear(f"{name}.crossattention.self.value", 768, 512)
        linear(f"{name}.crossattention.output.dense", 768, 768)
        norm(f"{name}.crossattention.output.LayerNorm", 768)
        linear(f"{name}.intermediate.dense", 3072, 768)
        linear(f"{name}.output.dense", 768, 3072)
        norm(f"{name}.output.LayerNorm", 768)
    linear("wordvec_proj", 768, 512)
    linear("image_proj", 512, 32)
    linear("fc", 1, 768)
    return shapes


@pytest.fixture(scope="module")
def network() -> ram.RamPlusNetwork:
    network = ram.RamPlusNetwork(TAGS, swin=SWIN)
    state = generated()
    state["visual_encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(1)  # A constant of the published code.
    weights.fill_module(network, ram.rename_published_keys(state), "generated weights")
    return network.eval()


@torch.no_grad()
def test_equals_the_published_code(network):
    image = 600 * generate("image", (1, 3, 384, 384))
    torch.testing.assert_close(network(image)[0], torch.tensor(LOGITS), rtol=1e-4, atol=1e-5)


def test_tags_above_their_thresholds_are_recognised(network, tmp_path):
    (tmp_path / ram.RAM_TAG_LIST).write_text("\n".join(f"tag{i}" for i in range(TAGS)))
    with pytest.raises(CodecError, match=r"ram_plus_swin_large_14m.pth"):
        ram.RamPlus(tmp_path)
    torch.save({"model": generated() | {"text_encoder.only_for_training": torch.zeros(1)}}, tmp_path / ram.CHECKPOINT)
    (tmp_path / ram.THRESHOLDS).write_text("\n".join(["0.0"] * 7 + ["1.0"] * 13))
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    assert ram.RamPlus(tmp_path, swin=SWIN)(image) == list(range(7))
