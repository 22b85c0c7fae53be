"""Which of a dataset's categories each of a model's categories means, decided by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError

log = logging.getLogger(__name__)


def match_shared_categories(
    model_names: Sequence[str], dataset_names: Sequence[str], mapping: Mapping[str, str] | None = None
) -> npt.NDArray[np.int64]:
    """Match the names that model and dataset share, in any case and with underscores as spaces.

    Categories that only one side has are logged: those of the model take no part, those of the dataset have AP 0.

    Args:
        model_names: the model's categories.
        dataset_names: the dataset's categories.
        mapping: the dataset's name of those of the model's categories that have another name there.

    Returns:
        int64 (model categories,), index of the same name among the dataset's, -1 if the dataset does not have it.

    Raises:
        DatasetError: no name is shared, or the mapping holds a name that is not one of the model's or of the dataset's.

    Example:
        >>> match_shared_categories(["cat", "cell phone"], ["Cat", "Mobile phone"], {"cell phone": "Mobile phone"})
        array([0, 1])
    """
    dataset_index = {_normalised(name): index for index, name in enumerate(dataset_names)}
    renamed = _checked_mapping(mapping or {}, model_names, dataset_names)
    names = [renamed.get(_normalised(name), _normalised(name)) for name in model_names]
    matched = np.array([dataset_index.get(name, -1) for name in names], dtype=np.int64)
    if not (matched >= 0).any():
        raise DatasetError(
            f"the model's categories ({_first_three(model_names)}) and the dataset's ({_first_three(dataset_names)}) have no name "
            "in common; use a model of these categories, or reference: original"
        )
    foreign = [name for name, index in zip(model_names, matched) if index < 0]
    if foreign:
        log.info("boxes of %d categories that the dataset does not have are left out: %s", len(foreign), ", ".join(foreign))
    unknown = [name for index, name in enumerate(dataset_names) if index not in matched]
    if unknown:
        log.warning("the model does not know %d of the dataset's categories, their AP is 0: %s", len(unknown), ", ".join(unknown))
    return matched


def _checked_mapping(mapping: Mapping[str, str], model_names: Sequence[str], dataset_names: Sequence[str]) -> dict[str, str]:
    """The mapping with its names as they are compared. Raises DatasetError if it holds a name that one side does not have."""
    for names, known, owner in ((mapping, model_names, "the model"), (mapping.values(), dataset_names, "the dataset")):
        spelled = set(map(_normalised, known))
        stray = next((name for name in names if _normalised(name) not in spelled), None)
        if stray is not None:
            raise DatasetError(
                f"mapping: {stray!r} is no category of {owner} ({_first_three(known)}); write the model's name, a colon and the "
                "dataset's name"
            )
    renamed = {_normalised(name): _normalised(other) for name, other in mapping.items()}
    if len(renamed) < len(mapping):
        raise DatasetError(f"mapping: names one category of the model twice ({_first_three(list(mapping))}); leave one of them out")
    return renamed


def _normalised(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _first_three(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def match_categories(model_names: Sequence[str], dataset_names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Match every category of the dataset with exactly one of the model.

    A name is a list of synonyms between commas or semicolons, in any case. Equal lists are matched first, then equal first
    synonyms, then names with any synonym in common. What is matched in one round takes no part in the next.

    Args:
        model_names: the model's categories; it may have more than the dataset.
        dataset_names: the dataset's categories.

    Returns:
        int64 (model categories,), index of the match among the dataset's categories, -1 if there is none.

    Raises:
        DatasetError: a category of the dataset matches none of the model's, or several.

    Example:
        >>> match_categories(["screen door", "screen", "sky"], ["sky", "screen door;screen", "screen;silver screen"])
        array([1, 2, 0])
    """
    model_synonyms, dataset_synonyms = [_synonyms(name) for name in model_names], [_synonyms(name) for name in dataset_names]
    matched = np.full(len(model_names), -1, dtype=np.int64)
    rounds: list[Callable[[tuple[str, ...]], Iterable[object]]] = [
        lambda synonyms: [synonyms],
        lambda synonyms: synonyms[:1],
        lambda synonyms: synonyms,
    ]
    for keys in rounds:
        unmatched = sorted(set(range(len(dataset_names))) - set(matched.tolist()))
        candidates: dict[object, set[int]] = {}
        for index in unmatched:
            for key in keys(dataset_synonyms[index]):
                candidates.setdefault(key, set()).add(index)
        for position in np.flatnonzero(matched < 0):
            partners = set().union(*(candidates.get(key, set()) for key in keys(model_synonyms[position])))
            if len(partners) == 1:
                matched[position] = partners.pop()
    _check_one_each(matched[matched >= 0], dataset_names)
    return matched


def _check_one_each(matched: npt.NDArray[np.int64], dataset_names: Sequence[str]) -> None:
    missing = sorted(set(range(len(dataset_names))) - set(matched.tolist()))
    if missing:
        raise DatasetError(
            f"the model has no category for {len(missing)} of the dataset's {len(dataset_names)}, "
            f"the first is {dataset_names[missing[0]]!r}; use a model trained on these categories, or reference: original"
        )
    if len(matched) != len(dataset_names):
        repeated = dataset_names[int(np.argmax(np.bincount(matched)))]
        raise DatasetError(f"several categories of the model mean {repeated!r} of the dataset; rename them in the model")


def _synonyms(name: str) -> tuple[str, ...]:
    return tuple(synonym for synonym in (" ".join(text.split()).casefold() for text in re.split(r"[,;]", name)) if synonym)
