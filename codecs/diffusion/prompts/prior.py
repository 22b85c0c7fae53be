"""A static prior over CLIP's tokens, shipped beside the code: what a token of a caption costs, given the one before it.

    token   place among the usual followers of the one before, or "another"      a row of `followers`
            the token itself, after "another" or where there is no row           `single`

Built from the definitions and examples of WordNet 3.0, as in Debian's package `wordnet-base`, whose licence is PRIOR_NOTICE.txt;
`python -m icmbench.codecs.diffusion.prompts.prior FOLDER FILE` makes it anew.
All counts are integers, so encoder and decoder agree on any
machine. A prior of other counts needs another number in captions.CODERS: streams name it by that.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.codecs.base import BitstreamError
from icmbench.codecs.entropy import tables
from icmbench.codecs.entropy.coder import SymbolReader, SymbolWriter

FILE = Path(__file__).parent / "caption_prior.npz"
VOCABULARY = 49408  # CLIP's
START = 49406  # CLIP's token of beginning: what is before the first
ROWS, FOLLOWERS = 4000, 64  # tokens with a row of their own, and the most of its entries
LEAST = 2  # times that a pair was seen to be in a row


@dataclass(frozen=True, eq=False)
class Prior:
    """Counts. single: (VOCABULARY,) of tokens. before: (rows,) tokens that have followers; sizes: (rows,) how many.

    followers, pairs: (sum of sizes,) row by row, the most usual first, and their counts. other: (rows,) the count of all the rest.
    """

    single: npt.NDArray[np.uint32]
    before: npt.NDArray[np.uint16]
    sizes: npt.NDArray[np.uint8]
    followers: npt.NDArray[np.uint16]
    pairs: npt.NDArray[np.uint32]
    other: npt.NDArray[np.uint32]

    def encode(self, tokens: Sequence[int]) -> bytes:
        """Tokens below VOCABULARY as bytes, from which, with their number, `decode` makes them again."""
        writer = SymbolWriter()
        for previous, token in zip((START, *tokens), tokens):
            row = self._rows.get(previous)
            if row is not None:
                place = self._places[row].get(token, len(self._places[row]))
                writer.write([place], np.array([row]), self._pair_tables)
                if place < len(self._places[row]):
                    continue
            writer.write([token], np.zeros(1, np.int64), self._single_table)
        return writer.finish()

    def decode(self, data: bytes, count: int) -> tuple[int, ...]:
        """`count` tokens of bytes that `encode` made. BitstreamError for other bytes."""
        reader = SymbolReader(data)
        tokens = [START]
        for _ in range(count):
            row = self._rows.get(tokens[-1])
            if row is not None:
                place = int(reader.read(np.array([row]), self._pair_tables)[0])
                if 0 <= place < len(self._places[row]):
                    tokens.append(list(self._places[row])[place])
                    continue
                if place != len(self._places[row]):
                    raise BitstreamError("the stream's text is damaged: it names a follower that the prior lacks")
            token = int(reader.read(np.zeros(1, np.int64), self._single_table)[0])
            if not 0 <= token < VOCABULARY:
                raise BitstreamError("the stream's text is damaged: it names a token that CLIP lacks")
            tokens.append(token)
        reader.finish()
        return tuple(tokens[1:])

    @functools.cached_property
    def _rows(self) -> dict[int, int]:
        return {token: row for row, token in enumerate(self.before.tolist())}

    @functools.cached_property
    def _places(self) -> list[dict[int, int]]:
        """Of each row, the place of every follower."""
        parts = np.split(self.followers, np.cumsum(self.sizes)[:-1])
        return [{token: place for place, token in enumerate(part.tolist())} for part in parts]

    @functools.cached_property
    def _pair_tables(self) -> tables.Tables:
        parts = np.split(self.pairs, np.cumsum(self.sizes)[:-1])
        counts = [np.append(part, other) for part, other in zip(parts, self.other)]
        return tables.build(counts, np.zeros(len(counts)), np.zeros(len(counts)))

    @functools.cached_property
    def _single_table(self) -> tables.Tables:
        return tables.build([self.single], [0], [0])


@functools.cache
def load() -> Prior:
    """The prior that ships with this package."""
    with np.load(FILE) as arrays:
        return Prior(**arrays)


def count(texts: Iterable[Sequence[int]]) -> Prior:
    """The prior of a corpus, given as tokens text by text.

    A pair seen n times counts n - 3/4 among its row and leaves 3/4 to "another" (absolute discounting, Ney et al. 1994); a token
    counts 1/8 more than it was seen.
    """
    single = np.ones(VOCABULARY, np.uint32)
    pairs: Counter[tuple[int, int]] = Counter()
    for tokens in texts:
        np.add.at(single, np.asarray(tokens, np.int64), 8)
        pairs.update(zip((START, *tokens), tokens))
    rows: dict[int, list[tuple[int, int]]] = {}
    for (before, token), times in pairs.items():
        rows.setdefault(before, []).append((-times, token))
    total = {before: -sum(times for times, _ in row) for before, row in rows.items()}
    kept = {before: [entry for entry in sorted(row)[:FOLLOWERS] if -entry[0] >= LEAST] for before, row in rows.items()}
    order = sorted((before for before in kept if kept[before]), key=lambda before: (-total[before], before))[:ROWS]
    flat = [entry for before in order for entry in kept[before]]
    other = [4 * total[before] + 1 + sum(4 * times + 3 for times, _ in kept[before]) for before in order]
    return Prior(
        single,
        np.array(order, np.uint16),
        np.array([len(kept[before]) for before in order], np.uint8),
        np.array([token for _, token in flat], np.uint16),
        np.array([-4 * times - 3 for times, _ in flat], np.uint32),
        np.array(other, np.uint32),
    )


def wordnet(folder: Path) -> Iterator[str]:
    """The definitions and example sentences of a WordNet database (`data.noun` ...), one by one."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):  # the licence at the top
                yield from filter(None, (piece.replace('"', "").strip() for piece in re.split(r";\s+", line.partition(" | ")[2])))


def _main(folder: str, file: str) -> None:
    from icmbench.codecs.diffusion.backbone.stable_diffusion import clip_tokenizer

    tokenizer: Any = clip_tokenizer()
    np.savez_compressed(file, **vars(count(map(tokenizer.encode, wordnet(Path(folder))))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
