"""The images that runs share: equal sets are recognised by the hashes of the pixels, different ones are named or intersected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from icmbench.harness.config.errors import UserError
from icmbench.harness.derive.recorded import RecordedRun
from icmbench.harness.derive.stand_ins import RecordedBuilder, RecordedDataset
from icmbench.tasks.base import Dataset

NAMED = 3  # Images that a message names; of the others it says how many there are.


@dataclass
class MergedImages:
    """The images of one dataset of a merge. Picklable.

    Attributes:
        dataset: its name.
        ids: the images, in the order in which runs scored them.
        sha256: hashes of their source pixels; images that no run read are left out.
        limit: `limit` of the dataset; the number of images if they are the intersection of different sets.
        preprocessing: `preprocessing` of the dataset.
        source: position of the run whose section of the experiment names the dataset on this machine; None if none of them does.
        why: why none does.
        counts: how many images each run has, by its address, where the sets differ.
    """

    dataset: str
    ids: list[str]
    sha256: dict[str, str]
    limit: int | None = None
    preprocessing: str = "native"
    source: int | None = None
    why: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def view(self, dataset: Dataset | None) -> RecordedDataset:
        """The images as a dataset.

        Args:
            dataset: the dataset on this machine, made of the section of `source`.
        """
        return RecordedDataset(self.dataset, self.ids, self.limit, self.preprocessing, dataset, self.why)


def unite_images(runs: Sequence[RecordedRun], name: str, common: bool) -> MergedImages:
    """The images of one dataset of several runs.

    A run may have read a part of its images only: one that computed `--shard 1/2`, or that scores those with labels alone. What it
    has read must then be among the images of the others.

    Args:
        runs: all runs of the merge.
        name: the dataset.
        common: whether different sets are cut to what they share.

    Raises:
        UserError: the sets differ and are not to be cut, they share nothing, or it cannot be told what the images are.
    """
    holders = [run for run in runs if name in run.datasets]
    reference = next((run for run in holders if _has_read_all(run, name)), None)
    known: dict[str, str] = {}
    for run in [reference] if reference else holders:
        known = run.hashes(name) | known
    all_hashes, count = Counter(known.values()), (reference or holders[0]).counts[name]
    for run in holders:
        hashes = run.hashes(name)
        is_foreign = any(known[i] != sha256 for i, sha256 in hashes.items()) if reference is None else False
        if run.counts[name] == count and not is_foreign and not Counter(hashes.values()) - all_hashes:
            continue
        if common:
            return _intersection(runs, holders, name)
        others = [other for other in holders if any(other.hashes(name).get(i, sha256) != sha256 for i, sha256 in hashes.items())]
        raise UserError(_differences(reference or [*others, *holders][0], run, name))
    images = _united(runs, holders, name, reference, known, count)
    limits = [run.environment["datasets"][name].get("limit") for run in holders]
    images.limit = None if None in limits else limits[0]
    return images


def _has_read_all(run: RecordedRun, name: str) -> bool:
    return len(run.hashes(name)) == run.counts[name]


def _united(
    runs: Sequence[RecordedRun],
    holders: Sequence[RecordedRun],
    name: str,
    reference: RecordedRun | None,
    known: dict[str, str],
    count: int,
) -> MergedImages:
    """The images of runs that agree, under the names of a run whose dataset is here."""
    listed: list[str] | None = [*known] if reference else None
    if reference is None:  # A run may list images that it has not read.
        listed = next(([*run.images[name]] for run in holders if len(run.images[name]) == count), None)
        listed = listed or (sorted(known) if len(known) == count else None)
    reasons = []
    for run in holders:
        has_own_names = reference is not None and _has_read_all(run, name)
        sha256, ids = (run.hashes(name), [*run.hashes(name)]) if has_own_names else (known, listed)
        try:
            there = [*RecordedBuilder(run).dataset(name).ids]
        except UserError as error:
            reasons.append(str(error))
            continue
        ids = ids or (there if len(there) == count else None)
        lacking = sorted({*(ids or ()), *sha256} - {*there})
        if ids is None or lacking:
            what = f"lacks {_some(lacking)}" if lacking else f"has {len(there)} images, and the runs had {count}"
            reasons.append(f"datasets.{name}: it {what}")
            continue
        wanted = {*ids}
        return _make(runs, holders, name, [i for i in there if i in wanted], sha256, source=runs.index(run))
    why = "; ".join(dict.fromkeys(reasons))
    if listed is None:
        raise UserError(
            f"dataset {name!r}: the runs read {len(known)} of its {count} images, and which the others are cannot be told here "
            f"({why}): add the runs that read them, or name the folder of its paths by --folder"
        )
    return _make(runs, holders, name, listed, known, why=why)


def _make(
    runs: Sequence[RecordedRun],
    holders: Sequence[RecordedRun],
    name: str,
    ids: Sequence[str],
    sha256: Mapping[str, str],
    source: int | None = None,
    why: str = "",
) -> MergedImages:
    described = (runs[source] if source is not None else holders[0]).environment["datasets"][name]
    preprocessing = str(described.get("preprocessing", "native"))
    hashes = {image_id: sha256[image_id] for image_id in ids if image_id in sha256}
    return MergedImages(name, list(ids), hashes, preprocessing=preprocessing, source=source, why=why)


def _intersection(runs: Sequence[RecordedRun], holders: Sequence[RecordedRun], name: str) -> MergedImages:
    """The images that all runs have read; of several with the same pixels as many as each run has."""
    shared = Counter(holders[0].hashes(name).values())
    for run in holders[1:]:
        shared &= Counter(run.hashes(name).values())
    if not shared:
        raise UserError(f"dataset {name!r}: the runs have no image in common: merge runs over the same images")
    counts = {run.address: run.counts[name] for run in holders}
    reasons = []
    for run in holders:
        ids = _choose(run.hashes(name), shared, [other.hashes(name) for other in holders])
        try:
            there = RecordedBuilder(run).dataset(name).ids
        except UserError as error:
            reasons.append(str(error))
            continue
        lacking = sorted({*ids} - {*there})
        if not lacking:
            images = _make(runs, holders, name, ids, run.hashes(name), source=runs.index(run))
            break
        reasons.append(f"datasets.{name}: it lacks {_some(lacking)}")
    else:
        hashes = holders[0].hashes(name)
        ids = _choose(hashes, shared, [other.hashes(name) for other in holders])
        images = _make(runs, holders, name, ids, hashes, why="; ".join(dict.fromkeys(reasons)))
    images.limit, images.counts = len(images.ids), counts
    return images


def _choose(hashes: Mapping[str, str], shared: Mapping[str, int], others: Sequence[Mapping[str, str]]) -> list[str]:
    """Image ids of a run that are shared, in its order; of equal pictures those first that have one name in all runs."""
    remaining = dict(shared)
    chosen = set()
    same_name = {i for i, sha256 in hashes.items() if all(other.get(i) == sha256 for other in others)}
    for image_id in sorted(hashes, key=lambda i: i not in same_name):
        if remaining.get(hashes[image_id], 0) > 0:
            remaining[hashes[image_id]] -= 1
            chosen.add(image_id)
    return [image_id for image_id in hashes if image_id in chosen]


def _differences(first: RecordedRun, second: RecordedRun, name: str) -> str:
    """One sentence about how the images of two runs differ."""
    a, b = first.hashes(name), second.hashes(name)
    changed = sorted(i for i in a.keys() & b.keys() if a[i] != b[i])
    only_a, only_b = _surplus(a, b, changed), _surplus(b, a, changed)
    parts = [f"{len(changed)} of one name with other pixels ({_some(changed)})"] if changed else []
    parts += [f"{len(only_a)} only in {first.address} ({_some(only_a)})"] if only_a else []
    parts += [f"{len(only_b)} only in {second.address} ({_some(only_b)})"] if only_b else []
    if not parts:
        parts = [f"{first.counts[name]} images in {first.address} and {second.counts[name]} in {second.address}"]
    shared = sum((Counter(a.values()) & Counter(b.values())).values())
    return (
        f"{first.address} and {second.address} have different images in dataset {name!r}: {', '.join(parts)}; "
        f"merge runs over the same images, or the {shared} that they share by --common"
    )


def _surplus(first: Mapping[str, str], second: Mapping[str, str], but: Sequence[str]) -> list[str]:
    """Images of one run whose pixels are not among those of another, or not as often."""
    remaining = Counter(second.values())
    surplus = []
    for image_id, sha256 in first.items():
        remaining[sha256] -= 1
        if remaining[sha256] < 0 and image_id not in but:
            surplus.append(image_id)
    return sorted(surplus)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more
