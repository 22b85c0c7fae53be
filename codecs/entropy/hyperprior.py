"""z and y of one image in one stream, which the encoder decodes before it returns it.

z --round--> symbols --+                  +--> z_hat --h_s--> hyper parameters --context--> scales, means
                       +--> one stream ---+                                                     |
y --round around means-+                  +--> y_hat  <-----------------------------------------+
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.entropy import exact
from icmbench.codecs.entropy.coder import SymbolReader, SymbolWriter
from icmbench.codecs.entropy.context import Arithmetic, ContextModel
from icmbench.codecs.entropy.exact import Float32
from icmbench.codecs.entropy.integer import FixedPoint
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional, to_symbols
from icmbench.codecs.entropy.tables import Tables

MODES: dict[str, type[Arithmetic]] = {arithmetic.name: arithmetic for arithmetic in (Float32, FixedPoint)}


@dataclass(frozen=True)
class CodedLatents:
    """Latents in coded form.

    Attributes:
        payload: The stream.
        z_bits: How many bits of the stream are z.
        checksum: CRC-32 of all symbols.
    """

    payload: bytes
    z_bits: float
    checksum: int


@dataclass(frozen=True)
class Latents:
    """Decoded latents.

    Attributes:
        y_hat: (1, C, H, W) float32, on the CPU.
        z_hat: (1, D, h, w) float32, on the CPU.
        checksum: CRC-32 of all symbols.
    """

    y_hat: Tensor
    z_hat: Tensor
    checksum: int


class _SymbolEncoder:
    """Writes the symbols of z and, as a `PassCoder`, of y."""

    def __init__(self, gaussian: GaussianConditional) -> None:
        self.writer, self._gaussian = SymbolWriter(), gaussian
        self._rows: list[tuple[Any, Tables]] = []  # for each call of `write`

    def write(self, symbols: Any, rows: Any, tables: Tables) -> None:
        self.writer.write(symbols, rows, tables)
        self._rows.append((rows, tables))

    def code(self, scales: Tensor, means: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        symbols = to_symbols(target - means)
        self.write(symbols, self._gaussian.table_rows(scales), self._gaussian.tables)
        return torch.from_numpy(symbols).view(means.shape).to(means.dtype) + means

    def reads_back(self, payload: bytes) -> bool:
        """Whether the payload decodes to the symbols, with the table rows that they were written with.

        A payload that does not may also raise BitstreamError.
        """
        reader = SymbolReader(payload)
        for rows, tables in self._rows:
            reader.read(rows, tables)
        reader.finish()
        return reader.checksum == self.writer.checksum


class _SymbolDecoder:
    """Reads the symbols of z and, as a `PassCoder`, of y."""

    def __init__(self, payload: bytes, gaussian: GaussianConditional) -> None:
        self.reader, self._gaussian = SymbolReader(payload), gaussian

    def code(self, scales: Tensor, means: Tensor, target: Tensor | None) -> Tensor:
        symbols = self.reader.read(self._gaussian.table_rows(scales), self._gaussian.tables)
        return torch.from_numpy(symbols).view(means.shape).to(means.dtype) + means


class HyperpriorCoder:
    """Codes latents with a hyperprior. It is prepared for the weights as they are, and serves any number of images.

    The encoder decodes every stream before it returns it. Whether the networks compute the same bits twice depends on the kernels,
    and these on the size of the maps. Therefore the first image of each size is decoded by the whole decoder, networks included;
    later images of that size are only decoded with the table rows that they were coded with.

    Args:
        bottleneck: The probability model of z.
        gaussian: The probability model of y.
        h_s: The hyper synthesis, from z_hat to hyper parameters.
        context: The context model of y.
        mode: "default" (float32, exact on one machine) or "portable" (fixed point, exact on every processor).

    Raises:
        CodecError: the mode is unknown, a model has no frequency tables, or a network has no grid form in mode "portable".
    """

    def __init__(
        self,
        bottleneck: EntropyBottleneck,
        gaussian: GaussianConditional,
        h_s: nn.Module,
        context: ContextModel,
        mode: str = "default",
    ) -> None:
        if mode not in MODES:
            raise CodecError(f"unknown mode {mode!r}; use {' or '.join(MODES)}")
        arithmetic = MODES[mode]()
        self.mode = mode
        self._bottleneck, self._gaussian = bottleneck, gaussian
        self._tables = bottleneck.tables, gaussian.tables  # Missing tables raise an error here, not at the first image.
        self._verified_sizes: set[tuple[int, int]] = set()  # sizes of z at which the networks computed the same bits twice
        with torch.no_grad():
            self._medians = arithmetic.snap(bottleneck.medians.cpu())
            self._h_s: Any = arithmetic.prepare(h_s)
            self._context = context.prepare(arithmetic)

    def compress(self, y: Tensor, z: Tensor) -> CodedLatents:
        """Code the latents of one image.

        Args:
            y: (1, C, H, W).
            z: (1, D, h, w).

        Raises:
            CodecError: a latent is too large or not finite, or the stream does not decode to the symbols.
        """
        return exact.run_exactly(lambda: self._compress(y.detach().cpu().float(), z.detach().cpu().float()))

    def decompress(self, payload: bytes, height: int, width: int) -> Latents:
        """Decode the latents of one image.

        Args:
            payload: The stream.
            height: Height of z.
            width: Width of z.

        Raises:
            BitstreamError: the payload is not one whole stream of latents of this size.
        """
        return exact.run_exactly(lambda: self._decompress(payload, height, width))

    def _compress(self, y: Tensor, z: Tensor) -> CodedLatents:
        encoder = _SymbolEncoder(self._gaussian)
        height, width = z.shape[-2:]
        symbols = to_symbols(z - self._medians)
        encoder.write(symbols, self._bottleneck.table_rows(height, width), self._bottleneck.tables)
        z_hat = self._dequantise(symbols, height, width)
        y_hat = self._context.code(self._h_s(z_hat), encoder, y)
        payload, z_bits = encoder.writer.finish_sized(1)
        try:
            verified = encoder.reads_back(payload)
            if (height, width) not in self._verified_sizes:
                decoded = self._decompress(payload, height, width)
                verified = verified and decoded.checksum == encoder.writer.checksum and torch.equal(decoded.y_hat, y_hat)
        except BitstreamError:
            verified = False
        if not verified:
            raise CodecError("decoding did not give back the symbols: the entropy networks do not repeat here; use mode: portable")
        self._verified_sizes.add((height, width))
        return CodedLatents(payload, z_bits, encoder.writer.checksum)

    def _decompress(self, payload: bytes, height: int, width: int) -> Latents:
        decoder = _SymbolDecoder(payload, self._gaussian)
        symbols = decoder.reader.read(self._bottleneck.table_rows(height, width), self._bottleneck.tables)
        z_hat = self._dequantise(symbols, height, width)
        y_hat = self._context.code(self._h_s(z_hat), decoder)
        decoder.reader.finish()
        return Latents(y_hat, z_hat.float(), decoder.reader.checksum)

    def _dequantise(self, symbols: Any, height: int, width: int) -> Tensor:
        return torch.from_numpy(symbols).view(1, -1, height, width).to(self._medians.dtype) + self._medians
