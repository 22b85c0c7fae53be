"""Which of a dataset's categories each of a model's categories means, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError


def match_categories(known: Sequence[str], wanted: Sequence[str]) -> npt.NDArray[np.int64]:
    """For each category that the model knows, its index among the dataset's, -1 where it has none.

    A name lists synonyms between commas or semicolons, in any case. Equal lists are matched first, then equal first synonyms,
    then a synonym in common; what is matched in one round takes no part in the next. Raises DatasetError where a category of the
    dataset stays without one of the model, or has several.
    """
    models, datasets = [_synonyms(name) for name in known], [_synonyms(name) for name in wanted]
    found = np.full(len(known), -1, dtype=np.int64)
    rounds: list[Callable[[tuple[str, ...]], Iterable[object]]] = [
        lambda names: [names],
        lambda names: names[:1],
        lambda names: names,
    ]
    for keys in rounds:
        free = sorted(set(range(len(wanted))) - set(found.tolist()))
        places: dict[object, set[int]] = {}
        for index in free:
            for key in keys(datasets[index]):
                places.setdefault(key, set()).add(index)
        for position in np.flatnonzero(found < 0):
            partners = set().union(*(places.get(key, set()) for key in keys(models[position])))
            if len(partners) == 1:
                found[position] = partners.pop()
    taken = found[found >= 0]
    missing = sorted(set(range(len(wanted))) - set(taken.tolist()))
    if missing:
        raise DatasetError(
            f"the model has no category for {len(missing)} of the dataset's {len(wanted)}, the first is {wanted[missing[0]]!r}; "
            "use a model trained on these categories, or reference: original"
        )
    if len(taken) != len(wanted):
        twice = wanted[int(np.argmax(np.bincount(taken)))]
        raise DatasetError(f"several categories of the model mean {twice!r} of the dataset; rename them in the model")
    return found


def _synonyms(name: str) -> tuple[str, ...]:
    return tuple(part for part in (" ".join(text.split()).casefold() for text in re.split(r"[,;]", name)) if part)
