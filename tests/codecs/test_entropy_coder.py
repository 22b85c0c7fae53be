"""Frequency tables and the symbol stream, without torch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.entropy import tables
from icmbench.codecs.entropy.coder import MAX_SYMBOL, SymbolReader, SymbolWriter
from icmbench.codecs.entropy.tables import Tables

SCALES = np.exp(np.linspace(np.log(0.11), np.log(256), 64))
GAUSSIAN = tables.gaussian(SCALES)
GOLDEN = "8effffb7c701df2f4f8bf4841a"


def coded(parts):
    """The stream and checksum of calls (symbols, rows) of the writer."""
    writer = SymbolWriter()
    for symbols, rows in parts:
        writer.write(symbols, rows, GAUSSIAN)
    return writer.finish(), writer.checksum


def decoded(data, all_rows):
    """The symbols of calls of the reader, and the checksum."""
    reader = SymbolReader(data)
    symbols = [reader.read(rows, GAUSSIAN) for rows in all_rows]
    reader.finish()
    return symbols, reader.checksum


def draw(seed, count, spread=1.0):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 64, count).astype(np.uint8)
    return np.rint(rng.normal(size=count) * SCALES[rows] * spread).astype(np.int32), rows


def test_counts_are_positive_and_exact():
    rng = np.random.default_rng(0)
    for size in (1, 2, 17, 3000):
        pmf = rng.random(size) ** 20
        cdf = tables.cumulative_counts(pmf, precision=16)
        assert cdf[0] == 0 and cdf[-1] == 1 << 16 and (np.diff(cdf) >= 1).all()
        expected = pmf / pmf.sum() * ((1 << 16) - size) + 1
        assert np.abs(np.diff(cdf) - expected).max() <= 1


def test_gaussian_tables_hold_the_gaussian():
    for row in (0, 20, 63):
        counts = np.diff(GAUSSIAN.cdf[row, : GAUSSIAN.length[row]]) / (1 << tables.PRECISION)
        x = np.arange(GAUSSIAN.offset[row], GAUSSIAN.offset[row] + GAUSSIAN.escape[row])
        exact = norm.cdf((x + 0.5) / SCALES[row]) - norm.cdf((x - 0.5) / SCALES[row])
        assert x[0] == -x[-1] and np.abs(counts[:-1] - exact).max() < 1e-3 * exact.max()
        assert counts[-1] < 1e-6


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 300), max_size=5), st.sampled_from([0.1, 1, 30, 1e3]))
def test_symbols_come_back_in_any_number_of_parts(seed, counts, spread):
    parts = [draw([seed, i], count, spread) for i, count in enumerate(counts)]
    data, checksum = coded(parts)
    symbols, decoded_checksum = decoded(data, [rows for _, rows in parts])
    assert decoded_checksum == checksum
    for (expected, _), got in zip(parts, symbols):
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, expected)


def test_escapes_reach_the_limit_and_no_further():
    edge = [MAX_SYMBOL, -MAX_SYMBOL, 0, 1, -1, 2, -2, 3, -3]
    rows = np.zeros(len(edge), np.uint8)
    data, _ = coded([(edge, rows)])
    np.testing.assert_array_equal(decoded(data, [rows])[0][0], edge)
    with pytest.raises(CodecError, match="too large"):
        coded([([MAX_SYMBOL + 1], rows[:1])])


def test_no_symbols_make_a_stream_of_two_bytes():
    none = np.zeros(0, np.uint8)
    for parts in ([], [(none, none)], [(none, none)] * 3):
        data, checksum = coded(parts)
        assert len(data) == 2 and checksum == 0
        assert sum(map(len, decoded(data, [rows for _, rows in parts])[0])) == 0


@pytest.mark.parametrize("scales", [(0.05, 2), (0.11, 256), (0.5, 20)])
def test_size_is_within_half_a_percent_of_the_ideal(scales):
    rng = np.random.default_rng(1)
    sigma = np.exp(rng.uniform(*np.log(scales), 1_000_000)).clip(min=0.11)
    symbols = np.rint(rng.normal(size=len(sigma)) * sigma)
    bits = -np.log2((norm.cdf((0.5 - np.abs(symbols)) / sigma) - norm.cdf((-0.5 - np.abs(symbols)) / sigma)).clip(1e-300)).sum()
    rows = np.searchsorted(SCALES[:-1], sigma).astype(np.uint8)
    data, _ = coded([(symbols, rows)])
    assert 0.999 * bits < 8 * len(data) < 1.005 * bits
    np.testing.assert_array_equal(decoded(data, [rows])[0][0], symbols)


def test_three_million_symbols_round_trip():
    parts = [draw(i, 600_000) for i in range(5)]
    data, checksum = coded(parts)
    symbols, decoded_checksum = decoded(data, [rows for _, rows in parts])
    assert decoded_checksum == checksum and all((got == expected).all() for (expected, _), got in zip(parts, symbols))


def test_the_parts_of_a_stream_share_its_bits():
    first, second = draw(1, 2000), draw(2, 6000)
    writer = SymbolWriter()
    for symbols, rows in (first, second):
        writer.write(symbols, rows, GAUSSIAN)
    data, bits = writer.finish_sized(1)
    assert abs(bits - 8 * len(coded([first])[0])) < 64 and bits < 8 * len(data)


def test_a_stream_that_ends_early_or_late_is_refused():
    symbols, rows = draw(5, 4000)
    data, _ = coded([(symbols, rows)])
    for cut in (2, 4, len(data) // 2, len(data) - 1):
        with pytest.raises(BitstreamError):
            decoded(data[:cut], [rows])
    with pytest.raises(BitstreamError):
        decoded(data, [rows[:-1]])
    with pytest.raises(BitstreamError):
        decoded(data, [np.append(rows, 9).astype(np.uint8)])
    with pytest.raises(BitstreamError, match="empty"):
        decoded(b"\0\0", [rows])


def test_an_exhausted_stream_is_noticed_at_once():
    symbols, rows = draw(6, 1000)
    reader = SymbolReader(coded([(symbols, rows)])[0])
    reader.read(rows, GAUSSIAN)
    with pytest.raises(BitstreamError, match="ends before"):
        for _ in range(3):
            reader.read(rows, GAUSSIAN)


def test_another_model_is_noticed():
    symbols, rows = draw(7, 4000)
    data, _ = coded([(symbols, rows)])
    wrong_rows = rows.copy()
    wrong_rows[17] = (rows[17] + 1) % 64
    with pytest.raises(BitstreamError):
        decoded(data, [wrong_rows])


def test_zero_bytes_after_a_stream_are_nothing():
    symbols, rows = draw(8, 100)
    data, _ = coded([(symbols, rows)])
    assert data[-1] != 0
    np.testing.assert_array_equal(decoded(data + bytes(7), [rows])[0][0], symbols)


def test_golden_stream():
    """These bytes must never change. They depend on constriction, on its rounding of tables and on the order of symbols."""
    symbols = np.array([0, 1, -1, 5, -300, 40, 0, 0, 2, -2, 100000], np.int32)
    rows = np.array([0, 10, 10, 30, 63, 50, 0, 5, 20, 20, 40], np.uint8)
    data, checksum = coded([(symbols[:6], rows[:6]), (symbols[6:], rows[6:])])
    assert (data.hex(), checksum) == (GOLDEN, 921389804)


@pytest.mark.parametrize(
    "cdf, length",
    [
        ([[0, 5, 5, 9]], [4]),
        ([[1, 5, 7, 9]], [4]),
        ([[0, 9, 7, 10]], [4]),
        ([[0, 5, 7, 9]], [5]),
        ([[0, 5, 7, 9]], [2]),
        ([[0, 5, 7, 9]], [4, 4]),
    ],
)
def test_damaged_tables_are_refused(cdf, length):
    with pytest.raises(ValueError, match="table"):
        Tables(np.array(cdf, np.int32), np.array(length, np.int32), np.zeros(1, np.int32))
