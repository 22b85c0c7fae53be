"""One ANS stream for all symbols of an image, coded by constriction.

    writer.write(symbols, rows, tables)   any number of times, in the order of reading
    writer.finish() -> bytes              codes from the last symbol to the first, because ANS is a stack
    reader.read(rows, tables) -> symbols  rows may depend on all symbols read before
    reader.finish()                       checks that the stream ends where the symbols do

Within one call, symbols are sorted by table row, so that the coder gets each row's model once for all its symbols. An integer
outside its row is coded as the row's escape symbol, and its value follows after the call's other symbols in an Elias gamma code.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.entropy.tables import Tables, cumulative_counts

Symbols = npt.NDArray[np.int32]
MAX_SYMBOL = 1 << 22  # Larger than any meaningful latent; float32 still holds half steps at this size.
_BOTTOM = 256  # The coder's state before the first symbol is written. Reading a whole stream leads back to it.
_LENGTHS = 24  # number of bit lengths that an escaped value may have


@functools.cache
def _length_model() -> Any:
    """Geometric model of an escaped value's bit length."""
    import constriction

    counts = np.diff(cumulative_counts(0.5 ** np.arange(_LENGTHS)))
    return constriction.stream.model.Categorical(counts.astype(np.float64), perfect=False)


@functools.cache
def _uniform() -> Any:
    import constriction

    return constriction.stream.model.Uniform()


def _groups(rows: npt.NDArray[Any], count: int) -> tuple[npt.NDArray[np.intp], Iterator[tuple[int, slice]]]:
    """The order that sorts symbols by row, and each row in use with its slice of that order."""
    dtype = np.uint8 if count <= 256 else np.uint16  # numpy sorts these two by radix, which is fast.
    order = np.argsort(rows.astype(dtype, copy=False), kind="stable")
    ends = np.cumsum(np.bincount(rows, minlength=count)).tolist()
    starts = [0, *ends]
    return order, ((row, slice(start, end)) for row, (start, end) in enumerate(zip(starts, ends)) if end > start)


def _checksum(symbols: Symbols, start: int) -> int:
    return zlib.crc32(symbols.astype("<i4", copy=False).data, start)


class SymbolWriter:
    """Collects symbols in the order in which they will be read, and writes them as one stream.

    Attributes:
        checksum: CRC-32 of all symbols so far.
    """

    def __init__(self) -> None:
        self.checksum = 0
        self._calls: list[list[tuple[Any, ...]]] = []  # for each call of `write`, the arguments of `encode_reverse`

    def write(self, symbols: npt.ArrayLike, rows: npt.NDArray[Any], tables: Tables) -> None:
        """Add symbols to the stream.

        Args:
            symbols: (n,) integers.
            rows: (n,) integers, the table row of each symbol.
            tables: The tables.

        Raises:
            CodecError: the absolute value of a symbol exceeds MAX_SYMBOL.
        """
        values = np.asarray(symbols, np.int32)
        self.checksum = _checksum(values, self.checksum)
        order, groups = _groups(rows, len(tables.length))
        sorted_rows, values = rows[order], values[order]
        escape = tables.escape[sorted_rows]
        shifted = values - tables.offset[sorted_rows]
        outside = (shifted < 0) | (shifted >= escape)
        calls: list[tuple[Any, ...]] = []
        if outside.any():
            escaped = shifted[outside].astype(np.int64)
            limit = escape[outside]
            if np.abs(values[outside].astype(np.int64)).max() > MAX_SYMBOL:
                raise CodecError("a latent is too large to code; the weights do not fit this image or are damaged")
            shifted = np.where(outside, escape, shifted)
            calls = [(shifted[group], tables.models[row]) for row, group in groups]
            calls += _escape_calls(np.where(escaped < 0, -2 * escaped - 1, 2 * (escaped - limit)))
        else:
            calls = [(shifted[group], tables.models[row]) for row, group in groups]
        self._calls.append(calls)

    def finish(self) -> bytes:
        """The whole stream, at least 2 bytes. Trailing zero bytes, which carry no information, are left out."""
        data, _ = self.finish_sized(len(self._calls))
        return data

    def finish_sized(self, split: int) -> tuple[bytes, float]:
        """The whole stream, and how many of its bits the first calls of `write` took.

        Args:
            split: How many calls of `write` to count the bits of.
        """
        import constriction

        coder = constriction.stream.stack.AnsCoder(np.array([_BOTTOM], np.uint32))
        bits_after_split = 0
        for index in range(len(self._calls), 0, -1):
            for symbols, *model in reversed(self._calls[index - 1]):
                coder.encode_reverse(symbols, *model)
            if index == split + 1:
                bits_after_split = coder.num_valid_bits()
        data = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
        return data, coder.num_valid_bits() - bits_after_split


class SymbolReader:
    """Reads a stream that SymbolWriter wrote, possibly with zero bytes after it.

    Args:
        data: The stream.

    Attributes:
        checksum: CRC-32 of all symbols so far.

    Raises:
        BitstreamError: the stream is empty.
    """

    def __init__(self, data: bytes) -> None:
        import constriction

        self.checksum = 0
        data = data.rstrip(b"\0")
        if not data:
            raise BitstreamError("the payload is empty")
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._coder = constriction.stream.stack.AnsCoder(words)

    def read(self, rows: npt.NDArray[Any], tables: Tables) -> Symbols:
        """The next symbols of the stream.

        Args:
            rows: (n,) integers, the table row of each symbol.
            tables: The tables.

        Returns:
            (n,) int32.

        Raises:
            BitstreamError: the stream ends before the last of these symbols.
        """
        order, groups = _groups(rows, len(tables.length))
        shifted = np.empty(len(rows), np.int32)
        for row, group in groups:
            shifted[group] = self._coder.decode(tables.models[row], group.stop - group.start)
        sorted_rows = rows[order]
        escape = tables.escape[sorted_rows]
        outside = np.flatnonzero(shifted == escape)
        if len(outside):
            self._check_not_exhausted()
            folded = self._read_escaped(len(outside))
            shifted[outside] = np.where(folded & 1, -(folded >> 1) - 1, (folded >> 1) + escape[outside])
        symbols = np.empty(len(rows), np.int32)
        symbols[order] = shifted + tables.offset[sorted_rows]
        self._check_not_exhausted()
        self.checksum = _checksum(symbols, self.checksum)
        return symbols

    def finish(self) -> None:
        """Check that all symbols of the stream were read.

        Raises:
            BitstreamError: the stream holds more symbols, or other ones.
        """
        if self._coder.pos() != (0, _BOTTOM):
            raise BitstreamError("the payload does not end with its last symbol; it is damaged or was made by another model")

    def _check_not_exhausted(self) -> None:
        position, state = self._coder.pos()  # Coding a symbol never lowers the state, so no stream leads below the bottom.
        if position == 0 and state < _BOTTOM:
            raise BitstreamError("the payload ends before its last symbol; it is truncated or damaged")

    def _read_escaped(self, count: int) -> npt.NDArray[np.int64]:
        lengths = self._coder.decode(_length_model(), count).astype(np.int64)
        values = np.left_shift(1, lengths)
        wide = lengths > 0
        if wide.any():
            sizes = values[wide].astype(np.int32)
            values[wide] += self._coder.decode(_uniform(), sizes)
        return values - 1


def _escape_calls(folded: npt.NDArray[np.int64]) -> list[tuple[Any, ...]]:
    """Elias gamma code of folded + 1: its bit length by a geometric model, then the bits below the first one uncoded.

    The result holds the arguments of `encode_reverse`.
    """
    values = folded + 1
    lengths = np.frexp(values.astype(np.float64))[1] - 1
    wide = lengths > 0
    sizes = np.left_shift(1, lengths[wide]).astype(np.int32)
    calls: list[tuple[Any, ...]] = [(lengths.astype(np.int32), _length_model())]
    if len(sizes):
        calls.append(((values[wide] - sizes).astype(np.int32), _uniform(), sizes))
    return calls
