"""Which images the report shows, and their pixels: those that coding damaged most, decoded again or taken from kept pictures.

predictions of single images -> score of each alone -> damage = original - reconstruction -> the worst N
kept reconstruction, stored stream, or source where rates are estimated -> pixels -> task.draw -> entries of results/pictures.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from icmbench.harness.derive.gathering import Gatherer, SeriesPredictions
from icmbench.harness.derive.scoring import targets_of
from icmbench.harness.store.keys import digest, pixel_sha256
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.series import Series
from icmbench.results import pictures
from icmbench.results.scores import UNCOMPRESSED
from icmbench.tasks.base import Image

CANDIDATES = 200  # Images of a task whose damage is judged, spread evenly over all of them.
MAX_SERIES = 6  # Codec points shown of one image.
MAX_DECODING_SECONDS = 60.0  # Seconds of decoding that a report may cost, judged by the times that the run measured.
VERSION = 1  # Raised by hand when the entries hold something else, so that stored ones are made again.


def picture_entries(
    gatherer: Gatherer, scores: pd.DataFrame, failed: Mapping[str, frozenset[str]], count: int, stored: dict[str, Any]
) -> dict[str, Any]:
    """Entries of the report's per-image page: the most damaged images of each task that can draw its predictions.

    Single images that cannot be decoded are left out.

    Args:
        gatherer: reads the store.
        scores: the scores of the run, columns `icmbench.results.scores.SCORE_COLUMNS`.
        failed: by label of each task that has scores, the ids of images to leave out.
        count: number of images to show at most, shared equally among the tasks.
        stored: what this function returned in an earlier run, or an empty mapping. It is returned again if nothing changed that
            decides the entries.

    Returns:
        A mapping with `key`, a digest of what decides the entries; `entries`, as made by `icmbench.results.pictures`; and
        `left_out`, sentences that say why some codec points are not shown.
    """
    bench = gatherer.bench
    labels = [label for label in failed if bench.tasks[label].draws]
    # Whether a rate is estimated changes with its codec, whose rates are among what decides.
    deciding = scores[scores["task"].isin(labels)].drop(columns=["low", "high", "undefined", "rate_kind"])
    key = digest([VERSION, count, deciding.to_csv(index=False)])
    if stored.get("key") == key and _is_whole(stored):
        return stored
    entries: list[dict[str, Any]] = []
    left_out: list[str] = []
    for k, label in enumerate(labels[:count]):
        share = count // len(labels[:count]) + (k < count % len(labels[:count]))
        try:
            entries += _task_entries(gatherer, label, scores[scores["task"] == label], failed[label], share, left_out)
        except Exception as error:  # A run must not lose its tables because a picture cannot be made.
            left_out.append(f"{label}: {reason(error)}")
    return {"key": key, "entries": entries, "left_out": sorted(set(left_out))}


def _is_whole(stored: dict[str, Any]) -> bool:
    """Whether stored entries are as `icmbench.results.pictures` makes them; damaged ones are made again."""
    try:
        pictures.check_entries(stored)
    except ValueError:
        return False
    return True


def _task_entries(
    gatherer: Gatherer, label: str, scores: pd.DataFrame, failed: frozenset[str], count: int, left_out: list[str]
) -> list[dict[str, Any]]:
    """Entries of the images of one task whose score suffers most, averaged over the codec points shown."""
    bench = gatherer.bench
    task, dataset = bench.tasks[label], bench.dataset_of(label)
    metric = next((m for m in task.metrics if m.primary), task.metrics[0])
    originals = gatherer.gather(label, bench.series[0], failed)
    index = {image_id: k for k, image_id in enumerate(originals.ids)}
    targets = targets_of(task, originals.ids, originals)
    sign = 1 if metric.higher_is_better else -1
    candidates = originals.ids[:: -(-len(originals.ids) // CANDIDATES) or 1]

    def score_alone(gathered: SeriesPredictions, image_id: str) -> float:
        """The primary score of one image, signed so that more is better; NaN if undefined, like AP of small objects without any."""
        k = index[image_id]
        return sign * task.aggregate(task.statistics([gathered.predictions[k]], [targets[k]]))[metric.name]

    score_of_original = {i: score_alone(originals, i) for i in candidates}
    coded = [
        (series, gatherer.gather(label, series, failed)) for series in _choose_series(gatherer, dataset, scores, left_out, count)
    ]
    damage = pd.DataFrame(
        {series.name: [score_of_original[i] - score_alone(gathered, i) for i in candidates] for series, gathered in coded},
        index=candidates,
    )
    worst = damage.mean(axis=1).dropna().sort_values(ascending=False, kind="stable").index[:count]
    entries = []
    for image_id in worst:
        original = bench.source_pixels.read(dataset, image_id)
        before = originals.predictions[index[image_id]]
        reconstructions = []
        for series, gathered in coded:
            pixels = _scored_pixels(gatherer, dataset, image_id, series, left_out)
            if pixels is None:
                continue
            after = gathered.predictions[index[image_id]]
            loss = float(damage.loc[image_id, series.name])
            facts = _rate_facts(series, gathered, image_id) | {"score": sign * (score_of_original[image_id] - loss), "damage": loss}
            names = task.names(before), task.names(after)
            reconstructions.append(pictures.reconstruction_entry(facts, names, pixels, task.draw(pixels, after)))
        if reconstructions:
            subject = {"image": image_id, "dataset": dataset, "task": label, "metric": metric.name, "unit": metric.unit}
            drawn = task.draw(original, before)
            entries.append(pictures.image_entry(subject, sign * score_of_original[image_id], original, drawn, reconstructions))
    return entries


def _rate_facts(series: Series, gathered: SeriesPredictions, image_id: str) -> dict[str, Any]:
    assert gathered.streams is not None
    row = gathered.streams.loc[image_id]
    bpp = float(row["bits"] / (row["height"] * row["width"]))
    facts = {"codec": series.label, "point": series.point, "bits": round(row["bits"]), "bpp": bpp}
    return facts | ({"estimated": True} if series.estimated else {})


def _choose_series(gatherer: Gatherer, dataset: str, scores: pd.DataFrame, left_out: list[str], count: int) -> list[Series]:
    """Up to `MAX_SERIES` codec points: the lowest of every codec, then the middle one of every codec.

    Slow decoders are left out unless their pictures were kept.
    """
    rated = scores[scores["codec"] != UNCOMPRESSED].drop_duplicates(["codec", "point"]).sort_values("bpp", kind="stable")
    seconds = {(row.codec, row.point): row.decode_seconds for row in rated.itertuples()}
    points_of_codec = {codec: rows["point"].tolist() for codec, rows in rated.groupby("codec", sort=False)}
    choice = [(codec, points[0]) for codec, points in points_of_codec.items()]
    choice += [(codec, points[len(points) // 2]) for codec, points in points_of_codec.items() if len(points) > 1]
    chosen = []
    for codec, point in choice[:MAX_SERIES]:
        series = next(s for s in gatherer.bench.series if isinstance(s, Series) and (s.label, s.point) == (codec, point))
        # Coding and decoding are one call where the codec estimates its rate.
        cost = gatherer.streams.frame(dataset, series)["seconds"].mean() if series.estimated else seconds[codec, point]
        if (
            series.deterministic
            and cost * count > MAX_DECODING_SECONDS / MAX_SERIES
            and not _keeps_pictures(gatherer, dataset, series)
        ):
            action = "reconstructing" if series.estimated else "decoding"
            left_out.append(f"{series.name}: {action} takes {cost:.0f} s an image; run with --keep reconstructions")
        else:
            chosen.append(series)
    return chosen


def _keeps_pictures(gatherer: Gatherer, dataset: str, series: Series) -> bool:
    first = next((pixels for pixels in gatherer.streams.pixels(dataset, series) if pixels), None)
    return first is not None and gatherer.bench.store.has_picture(first)


def _scored_pixels(gatherer: Gatherer, dataset: str, image_id: str, series: Series, left_out: list[str]) -> Image | None:
    """The pixels that were scored, uint8 (height, width, 3); None, with the reason added to `left_out`, if they are lost."""
    try:
        pixels = _load_or_decode(gatherer, dataset, image_id, series)
    except Exception as error:
        left_out.append(f"{series.name}: {reason(error)}")
        return None
    if pixels is None:
        action = "reconstructed" if series.estimated else "decoded"
        left_out.append(f"{series.name}: {action} again its pixels are not those scored; run with --keep reconstructions")
    return pixels


def _load_or_decode(gatherer: Gatherer, dataset: str, image_id: str, series: Series) -> Image | None:
    """The kept reconstruction, or one made again: from the stored stream, or from the source where the codec estimates its rate.

    Returns:
        The pixels, uint8 (height, width, 3); None if neither has the recorded ones.
    """
    bench, streams = gatherer.bench, gatherer.streams.found(dataset, series)
    k = streams.ids.index(image_id)
    sha256 = gatherer.streams.pixels(dataset, series)[k]
    assert sha256 is not None
    kept = bench.store.load_picture(sha256)
    if kept is not None:
        return kept
    if series.estimated:
        image = series.reconstruct([bench.source_pixels.read(dataset, image_id)], [image_id])[0][0]
    else:
        data = bench.lookup.collection(series).read(streams.rows[k : k + 1], ["data"]).column(0)[0].as_py()
        image = series.decode([data])[0]
    return image if pixel_sha256(image) == sha256 else None
