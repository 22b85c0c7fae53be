"""One ANS stream for all symbols of an image: constriction, symbols grouped by table row, tails escaped.

    writer.write(symbols, rows, tables)   as often as wanted, in the order of reading
    writer.finish() -> bytes              ANS is a stack: coding runs backwards, from the last symbol to the first
    reader.read(rows, tables) -> symbols  rows may depend on everything read before
    reader.finish()                       BitstreamError unless the stream ends where the symbols do

Within one call symbols are coded row by row, so that each row's model is handed to the coder once for all its symbols.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.entropy.tables import Tables, quantise

Symbols = npt.NDArray[np.int32]
MAX_SYMBOL = 1 << 22  # larger than any latent that means something; float32 still holds its half steps
_BOTTOM = 256  # the coder's state below the first symbol written; a whole stream leaves exactly this behind
_CLASSES = 24  # bit lengths of an escaped value


@functools.cache
def _class_model() -> Any:
    import constriction

    return constriction.stream.model.Categorical(np.diff(quantise(0.5 ** np.arange(_CLASSES))).astype(np.float64), perfect=False)


@functools.cache
def _uniform() -> Any:
    import constriction

    return constriction.stream.model.Uniform()


def _groups(rows: npt.NDArray[Any], count: int) -> tuple[npt.NDArray[np.intp], Iterator[tuple[int, slice]]]:
    """The order that sorts symbols by row, and each row in use with its place in that order."""
    small = np.uint8 if count <= 256 else np.uint16  # numpy sorts these by radix
    order = np.argsort(rows.astype(small, copy=False), kind="stable")
    ends = np.cumsum(np.bincount(rows, minlength=count)).tolist()
    starts = [0, *ends]
    return order, ((row, slice(start, end)) for row, (start, end) in enumerate(zip(starts, ends)) if end > start)


def _checksum(symbols: Symbols, start: int) -> int:
    return zlib.crc32(symbols.astype("<i4", copy=False).data, start)


class SymbolWriter:
    """Collects symbols in the order of reading. `checksum`: CRC-32 of all symbols so far."""

    def __init__(self) -> None:
        self.checksum = 0
        self._parts: list[list[tuple[Any, ...]]] = []  # what encode_reverse is called with, call by call

    def write(self, symbols: npt.ArrayLike, rows: npt.NDArray[Any], tables: Tables) -> None:
        """symbols: (n,) integers; rows: (n,) integers below len(tables.cdf). CodecError if a symbol is beyond MAX_SYMBOL."""
        values = np.asarray(symbols, np.int32)
        self.checksum = _checksum(values, self.checksum)
        order, groups = _groups(rows, len(tables.length))
        sorted_rows, values = rows[order], values[order]
        escape = tables.escape[sorted_rows]
        shifted = values - tables.offset[sorted_rows]
        outside = (shifted < 0) | (shifted >= escape)
        part: list[tuple[Any, ...]] = []
        if outside.any():
            beyond = shifted[outside].astype(np.int64)
            limit = escape[outside]
            if np.abs(values[outside].astype(np.int64)).max() > MAX_SYMBOL:
                raise CodecError("a latent is too large to code; the weights do not fit this image or are damaged")
            shifted = np.where(outside, escape, shifted)
            part = [(shifted[place], tables.models[row]) for row, place in groups]
            part += _escape_calls(np.where(beyond < 0, -2 * beyond - 1, 2 * (beyond - limit)))
        else:
            part = [(shifted[place], tables.models[row]) for row, place in groups]
        self._parts.append(part)

    def finish(self) -> bytes:
        """The whole stream, at least 2 bytes. Trailing zero bytes carry nothing and are left out."""
        data, _ = self.finish_sized(len(self._parts))
        return data

    def finish_sized(self, split: int) -> tuple[bytes, float]:
        """The stream, and how many of its bits the first `split` calls of `write` took."""
        import constriction

        coder = constriction.stream.stack.AnsCoder(np.array([_BOTTOM], np.uint32))
        rest = 0
        for index in range(len(self._parts), 0, -1):
            for symbols, *model in reversed(self._parts[index - 1]):
                coder.encode_reverse(symbols, *model)
            if index == split + 1:
                rest = coder.num_valid_bits()
        data = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
        return data, coder.num_valid_bits() - rest


class SymbolReader:
    """Reads what SymbolWriter wrote. `checksum`: CRC-32 of all symbols so far."""

    def __init__(self, data: bytes) -> None:
        import constriction

        self.checksum = 0
        data = data.rstrip(b"\0")
        if not data:
            raise BitstreamError("the payload is empty")
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._coder = constriction.stream.stack.AnsCoder(words)

    def read(self, rows: npt.NDArray[Any], tables: Tables) -> Symbols:
        """(n,) int32 symbols for (n,) rows below len(tables.cdf). BitstreamError where the stream has run out."""
        order, groups = _groups(rows, len(tables.length))
        shifted = np.empty(len(rows), np.int32)
        for row, place in groups:
            shifted[place] = self._coder.decode(tables.models[row], place.stop - place.start)
        sorted_rows = rows[order]
        escape = tables.escape[sorted_rows]
        outside = np.flatnonzero(shifted == escape)
        if len(outside):
            self._check()
            folded = self._escaped(len(outside))
            shifted[outside] = np.where(folded & 1, -(folded >> 1) - 1, (folded >> 1) + escape[outside])
        symbols = np.empty(len(rows), np.int32)
        symbols[order] = shifted + tables.offset[sorted_rows]
        self._check()
        self.checksum = _checksum(symbols, self.checksum)
        return symbols

    def finish(self) -> None:
        """BitstreamError unless exactly everything was read."""
        if self._coder.pos() != (0, _BOTTOM):
            raise BitstreamError("the payload does not end with its last symbol; it is damaged or was made by another model")

    def _check(self) -> None:
        position, state = self._coder.pos()  # coding a symbol never lowers the state, so below the bottom nothing was coded
        if position == 0 and state < _BOTTOM:
            raise BitstreamError("the payload ends before its last symbol; it is truncated or damaged")

    def _escaped(self, count: int) -> npt.NDArray[np.int64]:
        lengths = self._coder.decode(_class_model(), count).astype(np.int64)
        values = np.left_shift(1, lengths)
        wide = lengths > 0
        if wide.any():
            sizes = values[wide].astype(np.int32)
            values[wide] += self._coder.decode(_uniform(), sizes)
        return values - 1


def _escape_calls(folded: npt.NDArray[np.int64]) -> list[tuple[Any, ...]]:
    """Elias gamma of folded + 1: its bit length by a geometric model, the bits below the first as they are."""
    values = folded + 1
    lengths = np.frexp(values.astype(np.float64))[1] - 1
    wide = lengths > 0
    sizes = np.left_shift(1, lengths[wide]).astype(np.int32)
    calls: list[tuple[Any, ...]] = [(lengths.astype(np.int32), _class_model())]
    if len(sizes):
        calls.append(((values[wide] - sizes).astype(np.int32), _uniform(), sizes))
    return calls
