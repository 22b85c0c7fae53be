"""Which images the report shows, and their pixels: those that coding damaged most, decoded again or taken from kept pictures.

predictions of single images -> score of each alone -> damage = original - reconstruction -> the worst N
kept reconstruction, or stored stream -> pixels -> task.draw -> entries of results/pictures.py
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as Pillow

from icmbench.codecs.base import decompress_all
from icmbench.harness.derive.scoring import SeriesPredictions, gather, targets_of
from icmbench.harness.store.shards import Series, digest, picture_name, pixel_sha256, stream_name
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.bench import Bench
from icmbench.results import pictures
from icmbench.results.scores import UNCOMPRESSED
from icmbench.tasks.base import Image, Prediction, Target, Task

CANDIDATES = 200  # images whose damage is judged, spread evenly over a task's
SERIES = 6  # codec points of an image
PATIENCE = 60.0  # seconds of decoding, judged by what the run measured, that a report may cost
VERSION = 1  # of what the entries hold


def entries(
    bench: Bench, scores: pd.DataFrame, failed: Mapping[str, frozenset[str]], count: int, known: dict[str, Any]
) -> dict[str, Any]:
    """`{"key", "entries", "left_out"}`: at most `count` images, shared among the tasks that can draw, the most damaged first.

    known: what an earlier run left, returned as it is while nothing that decides it has changed. left_out: why some codec points
    are not shown. Raises nothing for single images that cannot be decoded: they are left out.
    """
    labels = [label for label in failed if type(bench.tasks[label]).draw is not Task.draw]
    decides = scores[scores["task"].isin(labels)].drop(columns=["low", "high", "undefined"])
    key = digest([VERSION, count, decides.to_csv(index=False)])
    if known.get("key") == key:
        return known
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    for k, label in enumerate(labels[:count]):
        share = count // len(labels[:count]) + (k < count % len(labels[:count]))
        try:
            found += _of_task(bench, label, scores[scores["task"] == label], failed[label], share, left_out)
        except Exception as error:  # pictures must not cost a run its tables
            left_out.append(f"{label}: {reason(error)}")
    return {"key": key, "entries": found, "left_out": sorted(set(left_out))}


def _of_task(
    bench: Bench, label: str, scores: pd.DataFrame, failed: frozenset[str], count: int, left_out: list[str]
) -> list[dict[str, Any]]:
    task = bench.tasks[label]
    metric = next((m for m in task.metrics if m.primary), task.metrics[0])
    dataset = next(block.dataset for block in bench.experiment.tasks if block.label == label)
    originals = gather(bench, label, bench.series[0], failed)
    place = {image_id: k for k, image_id in enumerate(originals.ids)}
    targets = targets_of(task, originals.ids, originals)
    sign = 1 if metric.higher_is_better else -1
    candidates = originals.ids[:: -(-len(originals.ids) // CANDIDATES) or 1]

    def alone(prediction: Prediction, target: Target) -> float:
        """The primary score of one image; NaN where it has none, as of a size without a label."""
        return sign * task.aggregate(task.statistics([prediction], [target]))[metric.name]

    top = {i: alone(originals.predictions[place[i]], targets[place[i]]) for i in candidates}
    chosen: list[tuple[Series, SeriesPredictions]] = []
    for series in _series(bench, scores, left_out, count):
        chosen.append((series, gather(bench, label, series, failed)))
    damage = pd.DataFrame(
        {
            series.name: [top[i] - alone(evidence.predictions[place[i]], targets[place[i]]) for i in candidates]
            for series, evidence in chosen
        },
        index=candidates,
    )
    worst = damage.mean(axis=1).dropna().sort_values(ascending=False, kind="stable").index[:count]
    found = []
    for image_id in worst:
        original = bench.read(dataset, image_id)
        before = originals.predictions[place[image_id]]
        reconstructions = []
        for series, evidence in chosen:
            try:
                pixels = _pixels(bench, dataset, image_id, series)
            except Exception as error:
                left_out.append(f"{series.name}: {reason(error)}")
                continue
            if pixels is None:
                left_out.append(f"{series.name}: decoded again its pixels are not those scored; run with --keep reconstructions")
                continue
            after = evidence.predictions[place[image_id]]
            assert evidence.streams is not None
            row = evidence.streams.loc[image_id]
            loss = float(damage.loc[image_id, series.name])
            facts = {
                **{"codec": series.label, "point": series.point, "bits": 8 * int(row["bytes"])},
                "bpp": 8 * row["bytes"] / (row["height"] * row["width"]),
                **{"score": sign * (top[image_id] - loss), "damage": loss},
            }
            reconstructions.append(pictures.shown(facts, (task.names(before), task.names(after)), pixels, task.draw(pixels, after)))
        if reconstructions:
            where = {"image": image_id, "dataset": dataset, "task": label, "metric": metric.name, "unit": metric.unit}
            drawn = task.draw(original, before)
            found.append(pictures.entry(where, sign * top[image_id], original, drawn, reconstructions))
    return found


def _series(bench: Bench, scores: pd.DataFrame, left_out: list[str], count: int) -> list[Series]:
    """Up to `SERIES` codec points: every codec's lowest, then its middle one; slow decoders only where pictures are kept."""
    rated = scores[scores["codec"] != UNCOMPRESSED].drop_duplicates(["codec", "point"]).sort_values("bpp", kind="stable")
    seconds = {(row.codec, row.point): row.decode_seconds for row in rated.itertuples()}
    ranks = {codec: rows["point"].tolist() for codec, rows in rated.groupby("codec", sort=False)}
    wanted = [(codec, points[0]) for codec, points in ranks.items()]
    wanted += [(codec, points[len(points) // 2]) for codec, points in ranks.items() if len(points) > 1]
    found = []
    for codec, point in wanted[:SERIES]:
        series = next(s for s in bench.series if (s.label, s.point) == (codec, point))
        spent = seconds[codec, point]
        if series.deterministic and spent * count > PATIENCE / SERIES and not _keeps(bench, series):
            left_out.append(f"{series.name}: decoding takes {spent:.0f} s an image; run with --keep reconstructions")
        else:
            found.append(series)
    return found


def _keeps(bench: Bench, series: Series) -> bool:
    return any(bench.store.exists(f"reconstructions/{dataset}/{series.folder}") for dataset in bench.datasets)


def _pixels(bench: Bench, dataset: str, image_id: str, series: Series) -> Image | None:
    """The pixels that were scored; None where they were not kept and cannot be had again."""
    block = next(block for block in bench.blocks(dataset) if image_id in block.ids)
    sources, frame = bench.known_sources(block), bench.streams(block, series)
    assert sources is not None and frame is not None
    file = stream_name(block, sources, series)
    wanted = frame.loc[image_id, "sha256"]
    kept = picture_name(file, image_id)
    if bench.store.exists(kept):
        with Pillow.open(io.BytesIO(bench.store.read(kept)), formats=["PNG"]) as picture:
            image = np.asarray(picture)
        if pixel_sha256(image) == wanted:
            return image
    table = bench.store.read_table(file, ["id", "data"])
    data = table.column("data")[table.column("id").to_pylist().index(image_id)].as_py()
    image = decompress_all(series.codec, [data])[0]  # type: ignore[arg-type]
    return image if pixel_sha256(image) == wanted else None
