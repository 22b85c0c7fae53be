"""A static prior over CLIP's tokens: what a token of a caption costs in bits, given the token before it.

    token   its rank among the usual followers of the token before, or "another"         one table per row of `followers`
            the token itself, after "another" or if the token before has no row           one table, `single`

The counts ship beside the code. They come from the definitions and examples of WordNet 3.0 in Debian's package `wordnet-base`,
whose licence is PRIOR_NOTICE.txt; `python -m icmbench.codecs.diffusion.prompts.prior FOLDER FILE` makes them again from its
database. All counts are integers, so encoder and decoder agree on any machine. Streams name the prior by its number in
captions.CODERS, so a prior with other counts needs another number.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from icmbench.codecs.base import BitstreamError
from icmbench.codecs.diffusion.prompts import clip_tokens
from icmbench.codecs.entropy import tables
from icmbench.codecs.entropy.coder import SymbolReader, SymbolWriter

FILE = Path(__file__).parent / "caption_prior.npz"
MAX_ROWS, MAX_FOLLOWERS = 4000, 64  # Tokens with a row of their own, and entries of a row.
MIN_COUNT = 2  # Minimum bigram count for an entry.


@dataclass(frozen=True, eq=False)
class Prior:
    """Counts of tokens and of token pairs, and the entropy coder of tokens by these counts.

    Args:
        single: Counts of all tokens, (VOCABULARY_SIZE,).
        before: The tokens that have a row of followers, (rows,).
        sizes: The number of followers in each row, (rows,).
        followers: The followers row by row, the most usual ones first, (sum of sizes,).
        pairs: The counts of these followers, (sum of sizes,).
        other: The count of all other followers of each row's token, (rows,).
    """

    single: npt.NDArray[np.uint32]
    before: npt.NDArray[np.uint16]
    sizes: npt.NDArray[np.uint8]
    followers: npt.NDArray[np.uint16]
    pairs: npt.NDArray[np.uint32]
    other: npt.NDArray[np.uint32]

    def encode(self, tokens: Sequence[int]) -> bytes:
        """Entropy-code token ids below VOCABULARY_SIZE. `decode` also needs to be told how many there are."""
        writer = SymbolWriter()
        for previous, token in zip((clip_tokens.START, *tokens), tokens):
            row = self._row_of_token.get(previous)
            if row is not None:
                rank = self._ranks[row].get(token, len(self._ranks[row]))
                writer.write([rank], np.array([row]), self._pair_tables)
                if rank < len(self._ranks[row]):
                    continue
            writer.write([token], np.zeros(1, np.int64), self._single_table)
        return writer.finish()

    def decode(self, data: bytes, count: int) -> tuple[int, ...]:
        """The `count` token ids that `encode` coded into these bytes.

        Raises:
            BitstreamError: the bytes are not such a code.
        """
        reader = SymbolReader(data)
        tokens = [clip_tokens.START]
        for _ in range(count):
            row = self._row_of_token.get(tokens[-1])
            if row is not None:
                rank = int(reader.read(np.array([row]), self._pair_tables)[0])
                if 0 <= rank < len(self._ranks[row]):
                    tokens.append(list(self._ranks[row])[rank])
                    continue
                if rank != len(self._ranks[row]):
                    raise BitstreamError("the stream's text is damaged: it names a follower that the prior lacks")
            token = int(reader.read(np.zeros(1, np.int64), self._single_table)[0])
            if not 0 <= token < clip_tokens.VOCABULARY_SIZE:
                raise BitstreamError("the stream's text is damaged: it names a token that CLIP lacks")
            tokens.append(token)
        reader.finish()
        return tuple(tokens[1:])

    @functools.cached_property
    def _row_of_token(self) -> dict[int, int]:
        return {token: row for row, token in enumerate(self.before.tolist())}

    @functools.cached_property
    def _ranks(self) -> list[dict[int, int]]:
        """For each row, the rank of every follower."""
        return [{token: rank for rank, token in enumerate(row.tolist())} for row in self._split_by_row(self.followers)]

    @functools.cached_property
    def _pair_tables(self) -> tables.Tables:
        counts = [np.append(row, other) for row, other in zip(self._split_by_row(self.pairs), self.other)]
        return tables.build(counts, np.zeros(len(counts)), np.zeros(len(counts)))

    @functools.cached_property
    def _single_table(self) -> tables.Tables:
        return tables.build([self.single], [0], [0])

    def _split_by_row(self, entries: npt.NDArray[np.unsignedinteger]) -> list[npt.NDArray[np.unsignedinteger]]:
        return np.split(entries, np.cumsum(self.sizes)[:-1])


@functools.cache
def load_prior() -> Prior:
    """The prior that ships with this package."""
    with np.load(FILE) as arrays:
        return Prior(**arrays)


def count_tokens(texts: Iterable[Sequence[int]]) -> Prior:
    """The prior of a corpus.

    A pair seen n times counts n - 3/4 in its row and leaves 3/4 to "another" (absolute discounting, Ney et al. 1994). A token
    counts 1/8 more often than it was seen.

    Args:
        texts: CLIP's token ids, text by text.
    """
    single = np.ones(clip_tokens.VOCABULARY_SIZE, np.uint32)
    pairs: Counter[tuple[int, int]] = Counter()
    for tokens in texts:
        np.add.at(single, np.asarray(tokens, np.int64), 8)
        pairs.update(zip((clip_tokens.START, *tokens), tokens))
    rows: dict[int, list[tuple[int, int]]] = {}
    for (before, token), count in pairs.items():
        rows.setdefault(before, []).append((-count, token))
    totals = {before: -sum(negative for negative, _ in row) for before, row in rows.items()}
    entries = {before: [entry for entry in sorted(row)[:MAX_FOLLOWERS] if -entry[0] >= MIN_COUNT] for before, row in rows.items()}
    order = sorted((before for before in entries if entries[before]), key=lambda before: (-totals[before], before))[:MAX_ROWS]
    flat = [entry for before in order for entry in entries[before]]
    # Counts of pairs are in quarters: 4 n - 3 for an entry, and for "another" what the entries leave, plus one.
    other = [4 * totals[before] + 1 + sum(4 * negative + 3 for negative, _ in entries[before]) for before in order]
    return Prior(
        single,
        np.array(order, np.uint16),
        np.array([len(entries[before]) for before in order], np.uint8),
        np.array([token for _, token in flat], np.uint16),
        np.array([-4 * negative - 3 for negative, _ in flat], np.uint32),
        np.array(other, np.uint32),
    )


def wordnet_texts(folder: Path) -> Iterator[str]:
    """The definitions and example sentences of a WordNet database, one by one.

    Args:
        folder: Holds the files `data.noun`, `data.verb`, `data.adj` and `data.adv`.
    """
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):  # Indented lines are the licence at the top.
                yield from filter(None, (piece.replace('"', "").strip() for piece in re.split(r";\s+", line.partition(" | ")[2])))


def _main(folder: str, file: str) -> None:
    np.savez_compressed(file, **vars(count_tokens(map(clip_tokens.tokenize, wordnet_texts(Path(folder))))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
