"""What a cell lacks: a pure function from what the store holds to a frozen list of what is to be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import ImageBlock, Sources
from icmbench.harness.work.lookup import Streams
from icmbench.harness.work.series import AnySeries


@dataclass(frozen=True)
class Todo:
    """What one series lacks over one block of images.

    Attributes:
        streams: what the store holds of its streams.
        pixels: images whose reconstructions are needed, in the order of the block.
        predict: by label, the images that each task has to predict on; tasks without any are left out.
        keep: images whose reconstructions are to be kept as pictures.
        lost: images whose claimed pixels are needed but lost, so that all tasks will see another realisation.
    """

    streams: Streams
    pixels: tuple[str, ...]
    predict: Mapping[str, frozenset[str]]
    keep: frozenset[str]
    lost: frozenset[str]

    @property
    def done(self) -> bool:
        """Whether nothing is left to compute."""
        return not self.pixels


def find_todo(bench: Bench, block: ImageBlock, series: AnySeries, sources: Sources, keep: bool) -> Todo:
    """Compare what the experiment asks of a cell with what the store holds.

    Images with equal pixels and equal facts share their rows, so only the first of them is listed.

    Args:
        bench: the experiment and its store.
        block: the images.
        series: the codec at its point and seed, or the originals.
        sources: facts about the source pixels of the block.
        keep: whether every reconstruction is to be kept.
    """
    tasks = bench.scoring_tasks(block.dataset, series)
    ids = [i for i in block.ids if any(i in scored for _, scored in tasks.values())]
    streams = bench.lookup.streams(series, ids, sources, [*tasks.values()])
    pixels = dict(zip(ids, streams.pixels, strict=True))
    first = _first_of_equals(bench, block, series, streams, sources)
    open_ids = [i for i in ids if i not in streams.failed and first[i]]
    to_keep = frozenset(i for i in open_ids if keep and not series.is_original and not _is_kept(bench, pixels[i]))
    lost = frozenset(i for i in open_ids if i in streams.incomplete | to_keep and not series.deterministic and pixels[i])
    lost -= {i for i in lost if bench.store.load_picture(pixels[i] or "") is not None}
    predict: dict[str, frozenset[str]] = {}
    for label, (task, scored) in tasks.items():
        candidates = [i for i in open_ids if i in scored]
        rows = bench.lookup.predictions(task, candidates, [pixels[i] for i in candidates], sources)
        failed = bench.lookup.failed_to_predict(task, candidates, [pixels[i] for i in candidates], sources)
        missing = {i for i, row in zip(candidates, rows, strict=True) if row < 0 and i not in failed}
        predict[label] = frozenset(missing | (lost & {*candidates}))
    new = {i for i in open_ids if pixels[i] is None}
    needed = to_keep.union(new, *predict.values())
    return Todo(streams, tuple(i for i in open_ids if i in needed), {k: v for k, v in predict.items() if v}, to_keep, lost)


def _is_kept(bench: Bench, pixels: str | None) -> bool:
    return pixels is not None and bench.store.has_picture(pixels)


def _first_of_equals(bench: Bench, block: ImageBlock, series: AnySeries, streams: Streams, sources: Sources) -> dict[str, bool]:
    """For each image, whether no image before it has the same rows."""
    tasks = bench.scoring_tasks(block.dataset, series).values()
    seen = set()
    first = {}
    for image_id in streams.ids:
        facts = [repr(task.facts(image_id)) if image_id in scored else None for task, scored in tasks]
        signature = (streams.keys.get(image_id), sources.sha256.get(image_id), *facts)
        first[image_id] = signature not in seen
        seen.add(signature)
    return first
