"""What moved between two runs, and which codec, weight, library, image or setting moved it.

    scores.csv of both --> values and rates that differ ---\
    environment.json   --> facts that differ            ----> a cause for each codec point and task, in sentences
    sources/, streams/ --> images whose pixels, bytes or reconstructions differ

The chain of a number is: source pixels -> bytes -> reconstruction -> prediction -> score. Its first link that differs is where
to look, and only the facts behind that link are named: those of the codec for bytes and reconstructions, those of the task for
scores of equal reconstructions. Where these agree, the libraries and the machine are what is left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from icmbench.results.scores import GROUP, UNCOMPRESSED, ScoresError, read_scores
from icmbench.results.writers import number, to_markdown

MOVES = ["codec", "point", "realisation", *GROUP, "column", "a", "b", "change"]
FACTS = ["part", "fact", "a", "b"]
IMAGES = ["dataset", "codec", "point", "images", "sources", "bytes", "reconstructions", "only_a", "only_b"]
PARTS = ("codecs", "tasks", "datasets", "packages", "python", "hardware", "git", "experiment")
SHOWN = 6  # facts that a sentence lists
ABSENT = "absent"


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    moves: values and bpp that differ, a row each, columns `MOVES`; `a` or `b` is NaN where that run has no such row.
    facts: what differs in environment.json, columns `FACTS`: part (as `PARTS`), dotted key, both values as text.
    images: of each codec point with streams in both runs, columns `IMAGES`: how many images both have, and of how many the
    source pixels, bytes and reconstructions differ.
    compared: number of values and rates that both runs have. sentences: the account for people.
    """

    moves: pd.DataFrame
    facts: pd.DataFrame
    images: pd.DataFrame
    compared: int
    sentences: Sequence[str]

    def __str__(self) -> str:
        """Sentences, then the tables that are not empty, as Markdown."""
        tables = {
            "Numbers that moved": self.moves,
            "Facts that differ": self.facts,
            "Images that differ": _moved_images(self.images),
        }
        blocks = [
            f"## {title}\n\n{to_markdown(frame.map(lambda cell: number(cell) if isinstance(cell, float) else str(cell)))}"
            for title, frame in tables.items()
            if len(frame)
        ]
        return "\n\n".join(["\n".join(self.sentences), *blocks]) + "\n"


def compare(run_a: str | Path, run_b: str | Path, tolerance: float = 1e-9) -> Comparison:
    """Compare two run folders. `tolerance`, relative to the larger of two numbers, is what counts as equal.

    Raises ScoresError where a folder has no readable scores.csv; environment.json and shards may be missing from either.
    """
    folders = [Path(run_a), Path(run_b)]
    frames = [_scores(folder) for folder in folders]
    moves, compared = _moves(frames[0], frames[1], tolerance)
    environments = [_environment(folder) for folder in folders]
    facts = _facts(*environments)
    images = _images(folders)
    lacking = [
        f"{folder} has no readable environment.json: its facts are unknown." for folder, e in zip(folders, environments) if not e
    ]
    sentences = [*_sentences(moves, facts, images, compared), *lacking]
    return Comparison(moves, facts, images, compared, sentences)


def _scores(folder: Path) -> pd.DataFrame:
    """A run's scores; the seed tells realisations apart, the digest of their pixels does not."""
    if not (folder / "scores.csv").is_file():
        raise ScoresError(f"{folder}: no scores.csv; give the --out folder of a finished run")
    scores = read_scores(folder / "scores.csv")
    scores["realisation"] = scores["realisation"].str.replace(r"(^| )[0-9a-f]{8}$", "", regex=True)
    scores["copy"] = scores.groupby([*GROUP, "codec", "point", "realisation"]).cumcount()
    return scores


def _moves(a: pd.DataFrame, b: pd.DataFrame, tolerance: float) -> tuple[pd.DataFrame, int]:
    place = ["codec", "point", "realisation", *GROUP, "copy"]
    columns = [*place, "value", "bpp"]
    both = pd.concat([a[place], b[place]]).drop_duplicates()  # in file order
    both = both.merge(a[columns], "left", place, indicator="in_a").merge(
        b[columns], "left", place, suffixes=("_a", "_b"), indicator="in_b"
    )
    shared = (both["in_a"] == "both") & (both["in_b"] == "both")
    long = []
    for column in ("value", "bpp"):
        numbers = both[[f"{column}_a", f"{column}_b"]].set_axis(["a", "b"], axis=1)
        equal = (numbers["a"] == numbers["b"]) | numbers.isna().all(axis=1)
        near = (numbers["a"] - numbers["b"]).abs() <= tolerance * numbers.abs().max(axis=1)
        moved = ~(equal | near) | (~shared & (column == "value"))
        rows = pd.concat([both[place], numbers], axis=1).assign(column=column, change=numbers["b"] - numbers["a"])
        long.append(rows[moved])
    # rates follow from the streams: once a codec point, dataset and task is enough
    rates = long[1].drop_duplicates(["codec", "point", "realisation", "dataset", "task", "a", "b"])
    return pd.concat([long[0], rates])[MOVES].reset_index(drop=True), int(shared.sum())


def _environment(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _facts(a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for part in PARTS:
        if part not in a or part not in b:
            continue  # nothing to compare with
        flat = [dict(_flat(environment[part])) for environment in (a, b)]
        for fact in dict.fromkeys((*flat[0], *flat[1])):
            values = [facts.get(fact, ABSENT) for facts in flat]
            if values[0] != values[1]:
                rows.append((part, " / ".join(fact), *values))
    return pd.DataFrame(rows, columns=FACTS)


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every leaf of JSON with its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for key, inner in items:
        yield from _flat(inner, (*path, str(key)))


def _images(folders: Sequence[Path]) -> pd.DataFrame:
    rows = []
    sources: dict[str, list[pd.DataFrame]] = {}
    shared = set.intersection(
        *({path.parent.relative_to(folder) for path in folder.glob("streams/*/*/*/*.parquet")} for folder in folders)
    )
    for where in sorted(shared):
        _, dataset, codec, point = where.parts
        if dataset not in sources:
            sources[dataset] = [_shards(folder / "sources" / dataset, ["sha256"]) for folder in folders]
        a, b = (_shards(folder / where, ["bytes", "height", "width", "sha256"]) for folder in folders)
        common = a.index.intersection(b.index)
        a_common, b_common = a.loc[common], b.loc[common]
        pixels = [frame.reindex(common)["sha256"] for frame in sources[dataset]]
        rows.append(
            {
                "dataset": dataset,
                "codec": codec,
                "point": point,
                "images": len(common),
                "sources": _differing(*pixels),
                "bytes": _differing(a_common["bytes"], b_common["bytes"]),
                "reconstructions": _differing(a_common["sha256"], b_common["sha256"]),
                "only_a": len(a.index.difference(common)),
                "only_b": len(b.index.difference(common)),
            }
        )
    return pd.DataFrame(rows, columns=IMAGES)


def _shards(folder: Path, columns: list[str]) -> pd.DataFrame:
    """All shards of a folder by image id; of an image in several (its codec was changed and run again) the newest counts."""
    files = sorted(folder.glob("*.parquet"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    frames = [pq.ParquetFile(path).read(["id", *columns]).to_pandas() for path in files]
    frame = pd.concat(frames) if frames else pd.DataFrame(columns=["id", *columns])
    return frame.drop_duplicates("id", keep="last").set_index("id")


def _differing(a: pd.Series, b: pd.Series) -> int:
    """In how many rows two aligned columns differ; what is unknown in both does not."""
    return int(((a != b) & ~(a.isna() & b.isna())).sum())


def _moved_images(images: pd.DataFrame) -> pd.DataFrame:
    return images[(images[["sources", "bytes", "reconstructions", "only_a", "only_b"]] > 0).any(axis=1)]


def _sentences(moves: pd.DataFrame, facts: pd.DataFrame, images: pd.DataFrame, compared: int) -> Iterator[str]:
    if not len(moves):
        yield f"All {compared} scores and their rates are equal."
        return
    there = moves["a"].notna() & moves["b"].notna()
    moved = moves[there & (moves["column"] == "value")]
    yield f"{len(moved)} of {compared} shared scores moved: {moved['codec'].nunique()} codecs, {moved['task'].nunique()} tasks."
    for run, other in (("first", "b"), ("second", "a")):
        lone = moves[moves[other].isna() & (moves["column"] == "value")]
        if len(lone):
            points = (lone["codec"] + " " + lone["point"].str.strip("-")).str.strip().unique().tolist()
            cause = _listed(_named(facts, "experiment"))
            yield f"{len(lone)} scores are in the {run} run alone, of {_some(points)}{cause}"
    for where, rows in moves[there].groupby(["codec", "point", "realisation", "dataset", "task"], sort=False):
        codec, point, realisation, dataset, task = map(str, where)
        numbers = ", ".join(_move(row) for row in rows.itertuples())
        series = " ".join(filter(None, (codec, point.strip("-"), realisation)))
        cause = _cause(series, codec, point, realisation, dataset, task, facts, images)
        yield f"{series} on {', '.join(filter(None, (dataset, task)))}: {numbers}. {cause}"


def _move(row: Any) -> str:
    name = row.metric if row.column == "value" else "rate in bpp"
    return f"{name} {number(row.a)} to {number(row.b)} ({row.change:+.3g})"


def _cause(
    series: str, codec: str, point: str, realisation: str, dataset: str, task: str, facts: pd.DataFrame,
    images: pd.DataFrame,
) -> str:  # fmt: skip
    """Where along the chain the runs part, and the facts behind that link."""
    seed = re.search(r"seed=\S+", realisation)
    folder = point + (f".{seed.group()}" if seed else "")
    known = images[(images["dataset"] == _safe(dataset)) & (images["codec"] == _safe(codec)) & (images["point"] == _safe(folder))]
    data = _named(facts, "datasets", dataset)
    own = _named(facts, "codecs", series)
    scoring = _named(facts, "tasks", task)
    around = [*_named(facts, "packages"), *_named(facts, "python"), *_named(facts, "hardware"), *_named(facts, "git", "commit")]
    if len(known):
        counts = known.iloc[0]
        of = f"of {counts['images']} images"
        if counts["sources"]:
            return f"The source pixels differ in {counts['sources']} {of}" + _listed(data)
        if counts["only_a"] or counts["only_b"]:
            return f"The runs coded different images ({counts['only_a']} and {counts['only_b']} of their own)" + _listed(data)
        if counts["bytes"]:
            return f"The streams differ in size in {counts['bytes']} {of}" + _listed(own, around)
        if counts["reconstructions"]:
            return f"Streams of equal size decode to other pixels in {counts['reconstructions']} {of}" + _listed(own, around)
        return f"Streams and reconstructions are equal in all {counts['images']} images: the task moved" + _listed(
            [*scoring, *data], [*around, *_named(facts, "experiment", "tasks")]
        )
    if codec == UNCOMPRESSED:
        return "No codec is involved" + _listed([*data, *scoring], around)
    return "Streams are not in both runs to compare" + _listed([*data, *own, *scoring], around)


def _safe(name: str) -> str:
    """A name as the folder of its shards."""
    return re.sub(r"[^A-Za-z0-9_.=+-]", "_", name).lstrip(".")[:80] or "_"


def _named(facts: pd.DataFrame, part: str, name: str = "") -> list[str]:
    """`settings / quality 20 to 30` of every fact that differs in a part, below a name in it."""
    mine = facts[facts["part"] == part]
    found = []
    for row in mine.itertuples():
        if not name or row.fact == name or row.fact.startswith(f"{name} / "):
            fact = row.fact.removeprefix(f"{name} / ") if name else row.fact
            found.append(
                f"{'' if part in ('codecs', 'tasks', 'packages') else part + ' / '}{fact} {_short(row.a)} to {_short(row.b)}"
            )
    return found


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:12]}..."


def _listed(facts: Sequence[str], around: Sequence[str] = ()) -> str:
    """The facts behind a link, or else those around it, or that none is known."""
    if facts:
        return f"; what differs there: {_some(facts)}."
    if around:
        return f"; its own facts agree, what differs around it: {_some(around)}."
    return "; no recorded fact differs."


def _some(facts: Sequence[str]) -> str:
    more = f" and {len(facts) - SHOWN} more" if len(facts) > SHOWN else ""
    return ", ".join(facts[:SHOWN]) + more
