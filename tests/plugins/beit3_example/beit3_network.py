"""The multiway transformer of BEiT-3, for one modality at a time, as retrieval uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VISION, LANGUAGE = "A", "B"
FIRST_POSITION = 2  # the two before it are left from fairseq's padding


def experts(make) -> nn.ModuleDict:
    return nn.ModuleDict({VISION: make(), LANGUAGE: make()})


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (experts(lambda: nn.Linear(width, width)) for _ in range(4))
        self.inner_attn_ln = experts(lambda: nn.LayerNorm(width))

    def forward(self, x: Tensor, way: str, keep: Tensor | None) -> Tensor:
        queries, keys, values = (
            project[way](x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=keep)
        return self.out_proj[way](self.inner_attn_ln[way](mixed.transpose(1, 2).flatten(-2)))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.ffn_layernorm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x))))


class Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.ffn = Attention(width, heads), experts(lambda: FeedForward(width, inner))
        self.self_attn_layer_norm, self.final_layer_norm = (experts(lambda: nn.LayerNorm(width)) for _ in range(2))

    def forward(self, x: Tensor, way: str, keep: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm[way](x), way, keep)
        return x + self.ffn[way](self.final_layer_norm[way](x))


class VisionEmbedding(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))  # of pre-training, unused here

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.proj(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1)


class Encoder(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, layers: int, positions: tuple[int, int]) -> None:
        super().__init__()
        sizes = dict(zip((VISION, LANGUAGE), positions, strict=True))
        self.embed_positions = nn.ModuleDict({way: nn.Embedding(size, width) for way, size in sizes.items()})
        self.layers = nn.ModuleList(Layer(width, inner, heads) for _ in range(layers))
        self.layer_norm = experts(lambda: nn.LayerNorm(width))

    def forward(self, x: Tensor, way: str, padded: Tensor | None = None) -> Tensor:
        x = x + self.embed_positions[way].weight[FIRST_POSITION : FIRST_POSITION + x.shape[1]]
        keep = None
        if padded is not None:
            x, keep = x * ~padded[..., None], ~padded[:, None, None]
        for layer in self.layers:
            x = layer(x, way, keep)
        return self.layer_norm[way](x)


class Beit3(nn.Module):
    def __init__(
        self, vocabulary: int, width: int, inner: int, heads: int, layers: int, patch: int, positions: tuple[int, int], out: int
    ) -> None:
        super().__init__()
        self.side = patch * round((positions[0] - 1 - FIRST_POSITION) ** 0.5)
        self.beit3 = nn.Module()
        self.beit3.text_embed = nn.Embedding(vocabulary, width)
        self.beit3.vision_embed = VisionEmbedding(width, patch)
        self.beit3.encoder = Encoder(width, inner, heads, layers, positions)
        self.vision_head, self.language_head = nn.Linear(width, out, bias=False), nn.Linear(width, out, bias=False)
        self.logit_scale = nn.Parameter(torch.ones([]))

    @classmethod
    def of(cls, state: dict[str, Tensor], heads: int | None) -> Beit3:
        """The network of a checkpoint, whose tensors tell its sizes."""
        embeddings, patches = state["beit3.text_embed.weight"], state["beit3.vision_embed.proj.weight"]
        network = cls(
            vocabulary=len(embeddings),
            width=embeddings.shape[1],
            inner=len(state["beit3.encoder.layers.0.ffn.A.fc1.weight"]),
            heads=heads or embeddings.shape[1] // 64,
            layers=1 + max(int(name.split(".")[3]) for name in state if name.startswith("beit3.encoder.layers.")),
            patch=patches.shape[-1],
            positions=tuple(len(state[f"beit3.encoder.embed_positions.{way}.weight"]) for way in (VISION, LANGUAGE)),
            out=len(state["vision_head.weight"]),
        )
        network.load_state_dict(state)
        return network

    def embed_images(self, pixels: Tensor) -> Tensor:
        found = self.beit3.encoder(self.beit3.vision_embed(pixels), VISION)
        return F.normalize(self.vision_head(found[:, 0]), dim=-1)

    def embed_texts(self, tokens: Tensor, padded: Tensor) -> Tensor:
        found = self.beit3.encoder(self.beit3.text_embed(tokens), LANGUAGE, padded)
        return F.normalize(self.language_head(found[:, 0]), dim=-1)
