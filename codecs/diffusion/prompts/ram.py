"""RAM++ (Huang et al. 2023), the tagger of Diff-ICMH, with its published weights.

    image --384x384--> Swin-L --> 1 + 144 features of 512
    51 descriptions per tag, weighted by how they agree with the first feature --> one query per tag
    queries --2 cross-attention layers over the features--> one logit per tag --threshold of the tag--> tags

The networks equal those of the published code and are built from transformers' Swin, so the authors' package is not needed.
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
from icmbench.codecs.diffusion.prompts.tags import RAM_TAG_LIST

CHECKPOINT = "ram_plus_swin_large_14m.pth"
THRESHOLDS = "ram_tag_list_threshold.txt"
SIZE = 384
SWIN = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12}
DESCRIPTIONS = 51  # Descriptions per tag. A language model wrote them and CLIP embedded them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's statistics of pixels in [0, 1].

# Patterns of names in the published checkpoint, which come from the original Swin and BERT code, and the names in this file.
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
    """One layer of the tagging head: the queries of tags attend to features of the image, not to each other."""

    def __init__(self, width: int, feature_width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(feature_width, width), nn.Linear(feature_width, width)
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
    """RAM++: pixels (B, 3, size, size), normalised with ImageNet's statistics -> logits (B, tags).

    The defaults are those of the published model.

    Args:
        tags: Number of tags.
        size: Side of the input in pixels.
        swin: Arguments of transformers' SwinConfig.
        width: Channels of the queries.
        embedding: Channels of the image features and of the descriptions' embeddings.
        heads: Attention heads of each layer of the tagging head.
        hidden: Channels within each layer's perceptron.
        descriptions: Descriptions per tag.
    """

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
        global_feature = F.normalize(features[:, 0], dim=-1)
        agreement = self.reweight_scale.exp() * global_feature @ self.label_embed.t()
        weight = agreement.view(len(pixels), self.tags, self.descriptions).softmax(-1)
        descriptions = torch.einsum("btd,tde->bte", weight, self.label_embed.view(self.tags, self.descriptions, -1))
        queries = F.relu(self.wordvec_proj(descriptions))
        for layer in self.layers:
            queries = layer(queries, features)
        return self.fc(queries).squeeze(-1)


def rename_published_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published checkpoint under the names of `RamPlusNetwork`, without the constants that it recomputes."""
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
    """The tagger of Diff-ICMH: a function from image to tag indexes.

    Args:
        folder: Holds the checkpoint, the tag list and the tags' thresholds, under their published names. The checkpoint of 3 GB is
            read when the first image comes.
        device: Where the network runs, as torch names it.
        **architecture: Arguments of `RamPlusNetwork`, for a network other than the published one.

    Attributes:
        fingerprint: SHA-256 of the checkpoint.

    Raises:
        CodecError: the folder lacks one of the files.
    """

    def __init__(self, folder: Path, device: str = "cpu", **architecture: Any) -> None:
        self._folder, self._device, self._architecture = folder, device, architecture
        for name in (CHECKPOINT, RAM_TAG_LIST, THRESHOLDS):
            if not (folder / name).is_file():
                raise CodecError(
                    f"RAM++ needs {name} in {folder}: the checkpoint is on its authors' hub, the lists are in their code"
                )
        self._thresholds = torch.tensor([float(line) for line in (folder / THRESHOLDS).read_text().split()], device=device)
        self._network: RamPlusNetwork | None = None
        self.fingerprint = file_sha256(folder / CHECKPOINT)

    @torch.no_grad()
    def __call__(self, image: Image) -> list[int]:
        """The indexes of the recognised tags, ascending, of an image, uint8 RGB (H, W, 3)."""
        pixels = torch.from_numpy(image.copy()).to(self._device).permute(2, 0, 1)[None].float() / 255
        # Diff-ICMH's code resizes in this way too: bilinear, without antialiasing.
        pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        return self.select(self._load()((pixels - mean) / std)[0])

    def select(self, logits: Tensor) -> list[int]:
        """The indexes of the tags whose probability is above their threshold, from logits (tags,)."""
        return (torch.sigmoid(logits) > self._thresholds).nonzero()[:, 0].tolist()

    def _load(self) -> RamPlusNetwork:
        if self._network is None:
            from accelerate import init_empty_weights

            path = self._folder / CHECKPOINT
            with init_empty_weights():
                network = RamPlusNetwork(len(self._thresholds), **self._architecture)
            tensors = rename_published_keys(weights.read_state(path))
            weights.fill_module(network, {key: tensors[key] for key in network.state_dict().keys() & tensors.keys()}, path)
            self._network = network.to(self._device).float().eval()
        return self._network
