"""RAM++ (Huang et al. 2023), the tagger of Diff-ICMH, reading its published weights.

    image --384x384--> Swin-L --> 1 + 144 features of 512
    51 descriptions a tag, weighted by how they agree with the first feature --> one query a tag
    queries --2 cross-attention layers over the features--> logit a tag --threshold of the tag--> tags

The networks are those of the published code, built from transformers' Swin; its own package is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from icmbench.codecs.base import CodecError, Image, file_sha256
from icmbench.codecs.diffusion.backbone import weights
from icmbench.codecs.diffusion.prompts.tags import VOCABULARY

CHECKPOINT = "ram_plus_swin_large_14m.pth"
THRESHOLDS = "ram_tag_list_threshold.txt"
SIZE = 384
SWIN = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12}
DESCRIPTIONS = 51  # of each tag, written by a language model and embedded by CLIP
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Names in the published checkpoint, from the original Swin and BERT code, and here.
_NAMES = [
    (r"visual_encoder\.patch_embed\.proj\.", "swin.embeddings.patch_embeddings.projection."),
    (r"visual_encoder\.patch_embed\.norm\.", "swin.embeddings.norm."),
    (r"visual_encoder\.norm\.", "swin.layernorm."),
    (r"visual_encoder\.layers\.(\d+)\.downsample\.", r"swin.encoder.layers.\1.downsample."),
    (r"visual_encoder\.layers\.(\d+)\.blocks\.(\d+)\.", r"swin.encoder.layers.\1.blocks.\2."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"(?:tagging_head|vision_multi)\.encoder\.layer\.(\d+)\.", r"layers.\1."),
    (r"\.crossattention\.self\.", "."),
    (r"\.crossattention\.output\.dense\.", ".out."),
    (r"\.crossattention\.output\.LayerNorm\.", ".norm1."),
    (r"\.intermediate\.dense\.", ".expand."),
    (r"\.output\.dense\.", ".reduce."),
    (r"\.output\.LayerNorm\.", ".norm2."),
]


class _CrossLayer(nn.Module):
    """One layer of the tagging head: tags look at the image, not at each other."""

    def __init__(self, width: int, seen: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(seen, width), nn.Linear(seen, width)
        self.out, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.expand, self.reduce = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        q, k, v = (
            layer(inputs).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, inputs in ((self.query, x), (self.key, features), (self.value, features))
        )
        x = self.norm1(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.reduce(F.gelu(self.expand(x))))


class RamPlusNetwork(nn.Module):
    """Pixels (B, 3, size, size), normalised as for ImageNet -> logits (B, tags). The defaults are the published model's."""

    def __init__(
        self,
        tags: int,
        *,
        size: int = SIZE,
        swin: Mapping[str, Any] = SWIN,
        width: int = 768,
        embedding: int = 512,
        heads: int = 4,
        hidden: int = 3072,
        descriptions: int = DESCRIPTIONS,
    ) -> None:
        super().__init__()
        self.tags, self.descriptions = tags, descriptions
        self.swin = SwinModel(SwinConfig(image_size=size, patch_size=4, drop_path_rate=0.0, **swin), add_pooling_layer=False)
        self.image_proj = nn.Linear(self.swin.num_features, embedding)
        self.label_embed = nn.Parameter(torch.zeros(tags * descriptions, embedding))
        self.reweight_scale = nn.Parameter(torch.zeros(()))
        self.wordvec_proj = nn.Linear(embedding, width)
        self.layers = nn.ModuleList(_CrossLayer(width, embedding, heads, hidden) for _ in range(2))
        self.fc = nn.Linear(width, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.swin(pixels).last_hidden_state
        features = self.image_proj(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        whole = F.normalize(features[:, 0], dim=-1)
        agreement = self.reweight_scale.exp() * whole @ self.label_embed.t()
        share = agreement.view(len(pixels), self.tags, self.descriptions).softmax(-1)
        described = torch.einsum("btd,tde->bte", share, self.label_embed.view(self.tags, self.descriptions, -1))
        queries = F.relu(self.wordvec_proj(described))
        for layer in self.layers:
            queries = layer(queries, features)
        return self.fc(queries).squeeze(-1)


def published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published checkpoint under the names here. What only training needs is left out."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith(("relative_position_index", "attn_mask")):
            continue
        if ".attn.qkv." in name:
            for part, values in zip("qkv", tensor.chunk(3)):
                renamed[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = values
        else:
            renamed[name] = tensor
    return renamed


class RamPlus:
    """The tagger. folder: holds the checkpoint, the tag list and the tags' thresholds of the published code. CodecError otherwise.

    The checkpoint, 3 GB, is read when the first image comes. architecture: where the network is not the published one.
    """

    def __init__(self, folder: Path, device: str = "cpu", **architecture: Any) -> None:
        self._folder, self._device, self._architecture = folder, device, architecture
        for name in (CHECKPOINT, VOCABULARY, THRESHOLDS):
            if not (folder / name).is_file():
                raise CodecError(
                    f"RAM++ needs {name} in {folder}: the checkpoint is on its authors' hub, the lists are in their code"
                )
        self._thresholds = torch.tensor([float(line) for line in (folder / THRESHOLDS).read_text().split()], device=device)
        self._network: RamPlusNetwork | None = None
        self.fingerprint = file_sha256(folder / CHECKPOINT)

    @torch.no_grad()
    def __call__(self, image: Image) -> list[int]:
        """Indexes of the recognised tags, ascending. image: uint8 (H, W, 3)."""
        pixels = torch.from_numpy(image.copy()).to(self._device).permute(2, 0, 1)[None].float() / 255
        pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=False)  # as Diff-ICMH's code resizes
        mean, deviation = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _DEVIATION))
        return self.select(self._load()((pixels - mean) / deviation)[0])

    def select(self, logits: Tensor) -> list[int]:
        """Indexes of the tags whose probability is above their own threshold."""
        return (torch.sigmoid(logits) > self._thresholds).nonzero()[:, 0].tolist()

    def _load(self) -> RamPlusNetwork:
        if self._network is None:
            from accelerate import init_empty_weights

            path = self._folder / CHECKPOINT
            with init_empty_weights():
                network = RamPlusNetwork(len(self._thresholds), **self._architecture)
            tensors = published(weights.read_state(path))
            weights.fill(network, {key: tensors[key] for key in network.state_dict().keys() & tensors.keys()}, path)
            self._network = network.to(self._device).float().eval()
        return self._network
