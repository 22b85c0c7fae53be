"""z and y of one image in one stream, verified by the encoder before it returns.

z --round--> symbols --+                  +--> z_hat --h_s--> hyper parameters --context--> scales, means
                       +--> one stream ---+                                                     |
y --round around means-+                  +--> y_hat  <-----------------------------------------+
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.entropy import exact
from icmbench.codecs.entropy.checkerboard import Arithmetic, Coder
from icmbench.codecs.entropy.coder import SymbolReader, SymbolWriter
from icmbench.codecs.entropy.exact import Float32
from icmbench.codecs.entropy.integer import FixedPoint
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional, to_symbols
from icmbench.codecs.entropy.tables import Tables

MODES: dict[str, type[Arithmetic]] = {arithmetic.name: arithmetic for arithmetic in (Float32, FixedPoint)}


class PreparedContext(Protocol):
    """A context model for coding, as `prepare` of SCCTX and Quadtree4 gives it."""

    def code(self, hyper: Tensor, coder: Coder, y: Tensor | None = None) -> Tensor: ...


class Context(Protocol):
    """A context model."""

    def prepare(self, arithmetic: Arithmetic) -> PreparedContext: ...


@dataclass(frozen=True)
class CodedLatents:
    """payload: the stream; z_bits: the part of it that is z; checksum: CRC-32 of all symbols."""

    payload: bytes
    z_bits: float
    checksum: int


@dataclass(frozen=True)
class Latents:
    """What a decoder knows. y_hat, z_hat: (1, C, H, W) float32 on the CPU; checksum: CRC-32 of all symbols."""

    y_hat: Tensor
    z_hat: Tensor
    checksum: int


class _Encoder:
    def __init__(self, gaussian: GaussianConditional) -> None:
        self.writer, self._gaussian = SymbolWriter(), gaussian
        self._rows: list[tuple[Any, Tables]] = []

    def write(self, symbols: Any, rows: Any, tables: Tables) -> None:
        self.writer.write(symbols, rows, tables)
        self._rows.append((rows, tables))

    def code(self, scales: Tensor, means: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        symbols = to_symbols(target - means)
        self.write(symbols, self._gaussian.rows(scales), self._gaussian.tables)
        return torch.from_numpy(symbols).view(means.shape).to(means.dtype) + means

    def reads_back(self, payload: bytes) -> bool:
        """Whether the payload gives the symbols back under the rows they were written with. BitstreamError likewise if not."""
        reader = SymbolReader(payload)
        for rows, tables in self._rows:
            reader.read(rows, tables)
        reader.finish()
        return reader.checksum == self.writer.checksum


class _Decoder:
    def __init__(self, payload: bytes, gaussian: GaussianConditional) -> None:
        self.reader, self._gaussian = SymbolReader(payload), gaussian

    def code(self, scales: Tensor, means: Tensor, target: Tensor | None) -> Tensor:
        symbols = self.reader.read(self._gaussian.rows(scales), self._gaussian.tables)
        return torch.from_numpy(symbols).view(means.shape).to(means.dtype) + means


class HyperpriorCoder:
    """Codes latents with a hyperprior: prepared once for the weights as they are, then used for any number of images.

    mode: "default" (float32, exact on one machine) or "portable" (fixed point, exact everywhere). CodecError for another mode,
    for models without frequency tables, and in "portable" for networks without a grid form.

    The encoder decodes every stream before it returns it. Whether the networks give the same bits twice depends on kernels, and
    these on the size: the first image of each size is decoded by the decoder itself, networks and all; later images of that size
    are decoded with the table rows that they were coded with.
    """

    def __init__(
        self, bottleneck: EntropyBottleneck, gaussian: GaussianConditional, h_s: nn.Module, context: Context, mode: str = "default"
    ) -> None:
        if mode not in MODES:
            raise CodecError(f"unknown mode {mode!r}; use {' or '.join(MODES)}")
        arithmetic = MODES[mode]()
        self.mode = mode
        self._bottleneck, self._gaussian = bottleneck, gaussian
        self._tables = bottleneck.tables, gaussian.tables  # fails now rather than at the first image
        self._repeated: set[tuple[int, int]] = set()  # sizes of z at which the networks were seen to repeat themselves
        with torch.no_grad():
            self._medians = arithmetic.snap(bottleneck.medians.cpu())
            self._h_s: Any = arithmetic.prepare(h_s)
            self._context = context.prepare(arithmetic)

    def compress(self, y: Tensor, z: Tensor) -> CodedLatents:
        """y (1, C, H, W), z (1, D, h, w) of one image. CodecError if they cannot be coded, or decoding does not give them back."""
        return exact.run(lambda: self._compress(y.detach().cpu().float(), z.detach().cpu().float()))

    def decompress(self, payload: bytes, height: int, width: int) -> Latents:
        """The latents; height and width are those of z. BitstreamError unless the payload is exactly their symbols."""
        return exact.run(lambda: self._decompress(payload, height, width))

    def _compress(self, y: Tensor, z: Tensor) -> CodedLatents:
        encoder = _Encoder(self._gaussian)
        height, width = z.shape[-2:]
        symbols = to_symbols(z - self._medians)
        encoder.write(symbols, self._bottleneck.rows(height, width), self._bottleneck.tables)
        z_hat = self._dequantise(symbols, height, width)
        y_hat = self._context.code(self._h_s(z_hat), encoder, y)
        payload, z_bits = encoder.writer.finish_sized(1)
        try:
            verified = encoder.reads_back(payload)
            if (height, width) not in self._repeated:
                decoded = self._decompress(payload, height, width)
                verified = verified and decoded.checksum == encoder.writer.checksum and torch.equal(decoded.y_hat, y_hat)
        except BitstreamError:
            verified = False
        if not verified:
            raise CodecError("decoding did not give back the symbols: the entropy networks do not repeat here; use mode: portable")
        self._repeated.add((height, width))
        return CodedLatents(payload, z_bits, encoder.writer.checksum)

    def _decompress(self, payload: bytes, height: int, width: int) -> Latents:
        decoder = _Decoder(payload, self._gaussian)
        symbols = decoder.reader.read(self._bottleneck.rows(height, width), self._bottleneck.tables)
        z_hat = self._dequantise(symbols, height, width)
        y_hat = self._context.code(self._h_s(z_hat), decoder)
        decoder.reader.finish()
        return Latents(y_hat, z_hat.float(), decoder.reader.checksum)

    def _dequantise(self, symbols: Any, height: int, width: int) -> Tensor:
        return torch.from_numpy(symbols).view(1, -1, height, width).to(self._medians.dtype) + self._medians
