"""The multiway transformer of BEiT-3 (Wang et al. 2022, section 2.1) for one modality at a time, as retrieval uses it.

Layers map float32 (n, tokens, width) to the same shape. A `modality` is VISION or LANGUAGE, the key of the expert that is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VISION, LANGUAGE = "A", "B"
FIRST_POSITION = 2  # As in fairseq, rows 0 and 1 of the position embeddings are unused.


def experts(build) -> nn.ModuleDict:
    """One module per modality, each made by `build()`."""
    return nn.ModuleDict({VISION: build(), LANGUAGE: build()})


class Attention(nn.Module):
    """Multi-head self-attention whose projections and norm belong to the modality."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (experts(lambda: nn.Linear(width, width)) for _ in range(4))
        self.inner_attn_ln = experts(lambda: nn.LayerNorm(width))

    def forward(self, x: Tensor, modality: str, mask: Tensor | None) -> Tensor:
        """Attend to the tokens where `mask`, bool (n, 1, 1, tokens), is True; None attends to all."""
        queries, keys, values = (
            projection[modality](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out_proj[modality](self.inner_attn_ln[modality](attended.transpose(1, 2).flatten(-2)))


class FeedForward(nn.Module):
    """Two linear layers with a norm before the second (sub-LayerNorm)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.ffn_layernorm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x))))


class Layer(nn.Module):
    """Attention and feed-forward network, each with a norm before it and a residual connection around it."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.ffn = Attention(width, heads), experts(lambda: FeedForward(width, inner))
        self.self_attn_layer_norm, self.final_layer_norm = (experts(lambda: nn.LayerNorm(width)) for _ in range(2))

    def forward(self, x: Tensor, modality: str, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm[modality](x), modality, mask)
        return x + self.ffn[modality](self.final_layer_norm[modality](x))


class VisionEmbedding(nn.Module):
    """Pixels (n, 3, side, side) to a [CLS] token followed by one token per patch."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))  # Only used in pre-training, but part of the checkpoints.

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.proj(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1)


class Encoder(nn.Module):
    """Position embeddings, the layers and a final norm."""

    def __init__(self, width: int, inner: int, heads: int, layers: int, positions: tuple[int, int]) -> None:
        super().__init__()
        sizes = dict(zip((VISION, LANGUAGE), positions, strict=True))
        self.embed_positions = nn.ModuleDict({modality: nn.Embedding(size, width) for modality, size in sizes.items()})
        self.layers = nn.ModuleList(Layer(width, inner, heads) for _ in range(layers))
        self.layer_norm = experts(lambda: nn.LayerNorm(width))

    def forward(self, x: Tensor, modality: str, is_padding: Tensor | None = None) -> Tensor:
        """Encode tokens. `is_padding`, bool (n, tokens), marks those that no other token attends to."""
        x = x + self.embed_positions[modality].weight[FIRST_POSITION : FIRST_POSITION + x.shape[1]]
        mask = None
        if is_padding is not None:
            x, mask = x * ~is_padding[..., None], ~is_padding[:, None, None]
        for layer in self.layers:
            x = layer(x, modality, mask)
        return self.layer_norm[modality](x)


class Beit3(nn.Module):
    """BEiT-3 with the two heads of retrieval.

    Args:
        vocabulary: number of text tokens.
        width: channels of a token.
        inner: channels inside a feed-forward network.
        heads: number of attention heads.
        layers: number of layers.
        patch: side of a patch, in pixels.
        positions: rows of the position embeddings for vision and for language.
        out: channels of an embedding.

    Attributes:
        side: side of an image, in pixels.
    """

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
    def from_state(cls, state: dict[str, Tensor], heads: int | None) -> Beit3:
        """Build the network of a checkpoint; its sizes are read from the shapes of the tensors.

        Args:
            state: tensors by name.
            heads: number of attention heads; None takes one per 64 channels.
        """
        embeddings, patches = state["beit3.text_embed.weight"], state["beit3.vision_embed.proj.weight"]
        network = cls(
            vocabulary=len(embeddings),
            width=embeddings.shape[1],
            inner=len(state["beit3.encoder.layers.0.ffn.A.fc1.weight"]),
            heads=heads or embeddings.shape[1] // 64,
            layers=1 + max(int(name.split(".")[3]) for name in state if name.startswith("beit3.encoder.layers.")),
            patch=patches.shape[-1],
            positions=tuple(len(state[f"beit3.encoder.embed_positions.{modality}.weight"]) for modality in (VISION, LANGUAGE)),
            out=len(state["vision_head.weight"]),
        )
        network.load_state_dict(state)
        return network

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Embed images, float32 (n, 3, side, side) from -1 to 1, as float32 (n, out) with rows of unit length."""
        encoded = self.beit3.encoder(self.beit3.vision_embed(pixels), VISION)
        return F.normalize(self.vision_head(encoded[:, 0]), dim=-1)

    def embed_texts(self, tokens: Tensor, is_padding: Tensor) -> Tensor:
        """Embed texts, int64 (m, tokens) with bool (m, tokens) for the padding, as float32 (m, out) with rows of unit length."""
        encoded = self.beit3.encoder(self.beit3.text_embed(tokens), LANGUAGE, is_padding)
        return F.normalize(self.language_head(encoded[:, 0]), dim=-1)
