"""What moved between two runs, and which codec, weight, library, image or setting moved it.

    scores.csv of both --> values and rates that differ ---\
    environment.json   --> facts that differ            ----> a cause for each codec point and task, in sentences
    images.parquet, streams.parquet --> images whose pixels, bytes or reconstructions differ

The chain of a number is: source pixels -> bytes -> reconstruction -> prediction -> score. Its first link that differs is where
to look, and only the facts behind that link are named: facts of the codec for bytes and reconstructions, facts of the task for
scores of equal reconstructions. If these agree, the libraries and the machine remain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from icmbench.results.json_files import parse_json
from icmbench.results.plain_files import read_plain_file
from icmbench.results.scores import KEY_COLUMNS, UNCOMPRESSED, ScoresError, estimated_codecs, read_scores
from icmbench.results.writers import number_text, to_markdown

MOVE_COLUMNS = ["codec", "point", "realisation", *KEY_COLUMNS, "column", "a", "b", "change"]
FACT_COLUMNS = ["part", "fact", "a", "b"]
# Files of a run folder, and the columns that are read of them: the images of the run, and its streams.
REFERENCES = {
    "images.parquet": ["dataset", "id", "source"],
    "streams.parquet": ["codec", "point", "dataset", "id", "bytes", "sha256"],
}
# A column of streams.parquet that older runs lack: there it is 8 times `bytes`. Sizes that a codec estimates stand in it alone.
BITS = "bits"
# Those of these columns that tell rows apart.
REFERENCE_KEYS = ("codec", "point", "dataset", "id")
DIFFERENCE_COLUMNS = ["sources", "bytes", "reconstructions", "only_a", "only_b"]
IMAGE_COLUMNS = ["dataset", "codec", "point", "images", *DIFFERENCE_COLUMNS]
# The parts of environment.json that are compared.
PARTS = ("codecs", "tasks", "datasets", "packages", "python", "hardware", "git", "experiment")
# The most facts or points that one sentence lists.
MAX_LISTED = 6
# Stands for the value of a fact that one run does not have.
ABSENT = "absent"


@dataclass(frozen=True)
class Comparison:
    """Two runs, a and b, side by side.

    Attributes:
        moves: one row per value or bpp that differs, columns `MOVE_COLUMNS`; `a` or `b` is NaN if that run has no such row.
        facts: what differs in environment.json, columns `FACT_COLUMNS`: part (one of `PARTS`), dotted key, both values as text.
        images: one row per codec point with streams in both runs, columns `IMAGE_COLUMNS`: how many images both have, in how many
            of these the source pixels, bytes and reconstructions differ, and how many only one run has. Source pixels that only one
            run has recorded do not differ.
        compared: number of scores that both runs have.
        sentences: the account for people.
    """

    moves: pd.DataFrame
    facts: pd.DataFrame
    images: pd.DataFrame
    compared: int
    sentences: Sequence[str]

    def __str__(self) -> str:
        """The sentences, then the tables that are not empty, as Markdown."""
        tables = {
            "Numbers that moved": self.moves,
            "Facts that differ": self.facts,
            "Images that differ": self.images[(self.images[DIFFERENCE_COLUMNS] > 0).any(axis=1)],
        }
        blocks = [
            f"## {title}\n\n{to_markdown(frame.map(lambda cell: number_text(cell) if isinstance(cell, float) else str(cell)))}"
            for title, frame in tables.items()
            if len(frame)
        ]
        return "\n\n".join(["\n".join(self.sentences), *blocks]) + "\n"


def compare(run_a: str | Path, run_b: str | Path, tolerance: float = 1e-9) -> Comparison:
    """Compare two run folders.

    Args:
        run_a: the folder of a finished run. environment.json, images.parquet and streams.parquet may be missing.
        run_b: another such folder.
        tolerance: two numbers are equal if they differ by no more than this share of the larger one.

    Raises:
        ScoresError: a folder has no readable scores.csv.
    """
    folders = [Path(run_a), Path(run_b)]
    frames = [_read_run_scores(folder) for folder in folders]
    moves, compared = _moves(frames[0], frames[1], tolerance)
    kinds = _kinds_of_rates(*frames)
    environments = [_read_environment(folder) for folder in folders]
    facts = _facts(*environments)
    images = _images(folders)
    unreadable = [
        f"{folder} has no readable environment.json: its facts are unknown."
        for folder, environment in zip(folders, environments)
        if not environment
    ]
    sentences = [*_sentences(moves, facts, images, compared), *kinds, *unreadable]
    return Comparison(moves, facts, images, compared, sentences)


def _read_run_scores(folder: Path) -> pd.DataFrame:
    """A run's scores, with realisations told apart by their seed alone, and `copy` numbering those that then look equal.

    The digest of a realisation's pixels, eight hexadecimal digits that may follow an x, is dropped: runs of one seed must match
    even if their pixels differ.
    """
    if not (folder / "scores.csv").is_file():
        raise ScoresError(f"{folder}: no scores.csv; give the --out folder of a finished run")
    scores = read_scores(folder / "scores.csv")
    scores["realisation"] = scores["realisation"].str.replace(r"(^| )x?[0-9a-f]{8}$", "", regex=True)
    scores["copy"] = scores.groupby([*KEY_COLUMNS, "codec", "point", "realisation"]).cumcount()
    return scores


def _moves(a: pd.DataFrame, b: pd.DataFrame, tolerance: float) -> tuple[pd.DataFrame, int]:
    """The values and rates that differ, in file order, columns `MOVE_COLUMNS`; and the number of rows that both runs have."""
    identity = ["codec", "point", "realisation", *KEY_COLUMNS, "copy"]
    columns = [*identity, "value", "bpp"]
    both = pd.concat([a[identity], b[identity]]).drop_duplicates()
    both = both.merge(a[columns], "left", identity, indicator="in_a").merge(
        b[columns], "left", identity, suffixes=("_a", "_b"), indicator="in_b"
    )
    shared = (both["in_a"] == "both") & (both["in_b"] == "both")
    moves = []
    for column in ("value", "bpp"):
        numbers = both[[f"{column}_a", f"{column}_b"]].set_axis(["a", "b"], axis=1)
        equal = (numbers["a"] == numbers["b"]) | numbers.isna().all(axis=1)
        near = (numbers["a"] - numbers["b"]).abs() <= tolerance * numbers.abs().max(axis=1)
        moved = ~(equal | near) | (~shared & (column == "value"))
        rows = pd.concat([both[identity], numbers], axis=1).assign(column=column, change=numbers["b"] - numbers["a"])
        moves.append(rows[moved])
    values, rates = moves
    # Rates follow from the streams, so all metrics of a codec point, dataset and task have the same one.
    rates = rates.drop_duplicates(["codec", "point", "realisation", "dataset", "task", "a", "b"])
    return pd.concat([values, rates])[MOVE_COLUMNS].reset_index(drop=True), int(shared.sum())


def _kinds_of_rates(a: pd.DataFrame, b: pd.DataFrame) -> Iterator[str]:
    """Sentences on codecs whose rates are estimated in both runs, or in one of them alone."""
    first, second = estimated_codecs(a), estimated_codecs(b)
    if both := sorted(first & second):
        yield f"The rates of {_enumerate(both)} are estimated, not measured in real bytes."
    for codec in sorted(first ^ second):
        if codec in {*a["codec"]} & {*b["codec"]}:
            names = ("first", "second") if codec in first else ("second", "first")
            estimating, other = names
            kinds = f"estimated in the {estimating} run and of real bytes in the {other}"
            yield f"The rates of {codec} are {kinds}: do not compare them."
        else:
            yield f"The rates of {codec}, which one run alone has, are estimated, not measured in real bytes."


def _read_environment(folder: Path) -> dict[str, Any]:
    try:
        environment = parse_json(read_plain_file(folder / "environment.json"))
    except (OSError, ValueError):
        return {}
    return environment if isinstance(environment, dict) else {}


def _facts(a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    """The facts that differ, columns `FACT_COLUMNS`; a part that only one run has is left out."""
    rows = []
    for part in PARTS:
        if part not in a or part not in b:
            continue
        flat = [dict(_flatten(environment[part])) for environment in (a, b)]
        for fact in dict.fromkeys((*flat[0], *flat[1])):
            values = [facts.get(fact, ABSENT) for facts in flat]
            if values[0] != values[1]:
                rows.append((part, " / ".join(fact), *values))
    return pd.DataFrame(rows, columns=FACT_COLUMNS)


def _flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every leaf of a JSON value: its path, and itself as text."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        yield path, _whole_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    for key, inner in items:
        yield from _flatten(inner, (*path, _whole_text(str(key))))


def _whole_text(text: str) -> str:
    """A text with question marks for halves of characters, as arguments of a command may hold and no table can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _images(folders: Sequence[Path]) -> pd.DataFrame:
    """Counts of differing images for each codec point with streams in both runs, columns `IMAGE_COLUMNS`."""
    images, streams = ([_read(folder / name, columns) for folder in folders] for name, columns in REFERENCES.items())
    sources = [{name: rows.set_index("id")["source"] for name, rows in frame.dropna().groupby("dataset")} for frame in images]
    unknown = pd.Series(dtype=object)
    by_point = [dict(tuple(frame.groupby(["dataset", "codec", "point"]))) for frame in streams]
    rows = []
    for key in sorted(by_point[0].keys() & by_point[1].keys()):
        a, b = (frames[key].set_index("id") for frames in by_point)
        common = a.index.intersection(b.index)
        a_common, b_common = a.loc[common], b.loc[common]
        pixels = pd.concat([of_run.get(key[0], unknown).reindex(common) for of_run in sources], axis=1, keys=["a", "b"]).dropna()
        rows.append(
            {
                **dict(zip(("dataset", "codec", "point"), key, strict=True)),
                "images": len(common),
                "sources": _count_differing(pixels["a"], pixels["b"]),
                "bytes": _count_differing(a_common[BITS], b_common[BITS]),
                "reconstructions": _count_differing(a_common["sha256"], b_common["sha256"]),
                "only_a": len(a.index.difference(common)),
                "only_b": len(b.index.difference(common)),
            }
        )
    return pd.DataFrame(rows, columns=IMAGE_COLUMNS)


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """Columns of a Parquet file of a run folder, and `BITS` where it has `bytes`; no rows if it is absent."""
    if path.exists() or path.is_symlink():
        return _read_table(path, columns)
    return pd.DataFrame(columns=[*columns, BITS] if "bytes" in columns else columns)


def _read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Columns of a Parquet file.

    Raises:
        ScoresError: the file is damaged, lacks a column, has one that holds lists, or gives a row twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        file = pq.ParquetFile(path, page_checksum_verification=True)
        optional = [BITS] if "bytes" in columns and BITS in file.schema_arrow.names else []
        table = file.read([*columns, *optional])
        missing = [name for name in columns if name not in table.column_names or pa.types.is_nested(table.field(name).type)]
        if missing:
            raise ValueError(f"no column {missing[0]!r} of single values")
        types = {"bytes": pa.int64(), BITS: pa.float64()}
        table = table.cast(pa.schema([(name, types.get(name, pa.string())) for name in table.column_names]))
        keys = [name for name in columns if name in REFERENCE_KEYS]
        frame: pd.DataFrame = table.to_pandas()
        for row in frame[frame.duplicated(keys)].itertuples():
            raise ValueError(f"it holds image {row.id!r} twice")
        if "bytes" in columns:
            frame[BITS] = frame[BITS].fillna(8 * frame["bytes"]) if optional else 8 * frame["bytes"]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        cause = " ".join(str(error).split())
        raise ScoresError(f"{path} is damaged ({cause}): delete it and run the same experiment again") from None
    return frame


def _count_differing(a: pd.Series, b: pd.Series) -> int:
    """In how many rows two aligned columns differ; a value that is unknown in both does not differ."""
    return int(((a != b) & ~(a.isna() & b.isna())).sum())


def _sentences(moves: pd.DataFrame, facts: pd.DataFrame, images: pd.DataFrame, compared: int) -> Iterator[str]:
    if not len(moves):
        yield f"All {compared} scores and their rates are equal."
        return
    in_both = moves["a"].notna() & moves["b"].notna()
    moved = moves[in_both & (moves["column"] == "value")]
    yield f"{len(moved)} of {compared} shared scores moved: {moved['codec'].nunique()} codecs, {moved['task'].nunique()} tasks."
    for run, other in (("first", "b"), ("second", "a")):
        lone = moves[moves[other].isna() & (moves["column"] == "value")]
        if len(lone):
            points = (lone["codec"] + " " + lone["point"].str.strip("-")).str.strip().unique().tolist()
            cause = _facts_clause(_facts_below(facts, "experiment"))
            yield f"{len(lone)} scores are in the {run} run alone, of {_enumerate(points)}{cause}"
    for identity, rows in moves[in_both].groupby(["codec", "point", "realisation", "dataset", "task"], sort=False):
        codec, point, realisation, dataset, task = map(str, identity)
        numbers = ", ".join(_move_text(row) for row in rows.itertuples())
        series = " ".join(filter(None, (codec, point.strip("-"), realisation)))
        cause = _cause(series, codec, point, realisation, dataset, task, facts, images)
        yield f"{series} on {', '.join(filter(None, (dataset, task)))}: {numbers}. {cause}"


def _move_text(row: Any) -> str:
    name = row.metric if row.column == "value" else "rate in bpp"
    return f"{name} {number_text(row.a)} to {number_text(row.b)} ({row.change:+.3g})"


def _cause(
    series: str, codec: str, point: str, realisation: str, dataset: str, task: str, facts: pd.DataFrame,
    images: pd.DataFrame,
) -> str:  # fmt: skip
    """The first link of the chain that differs, and the facts behind that link."""
    data_facts = _facts_below(facts, "datasets", dataset)
    codec_facts = _facts_below(facts, "codecs", series)
    task_facts = _facts_below(facts, "tasks", task)
    machine_facts = [
        *_facts_below(facts, "packages"),
        *_facts_below(facts, "python"),
        *_facts_below(facts, "hardware"),
        *_facts_below(facts, "git", "commit"),
    ]
    seed = re.search(r"seed=\S+", realisation)
    point_name = point + (f".{seed.group()}" if seed else "")  # As streams.parquet names it.
    rows = images[(images["dataset"] == dataset) & (images["codec"] == codec) & (images["point"] == point_name)]
    if len(rows):
        counts = rows.iloc[0]
        share = f"of {counts['images']} images"
        if counts["sources"]:
            return f"The source pixels differ in {counts['sources']} {share}" + _facts_clause(data_facts)
        if counts["only_a"] or counts["only_b"]:
            only = f"{counts['only_a']} and {counts['only_b']}"
            return f"The runs coded different images ({only} of their own)" + _facts_clause(data_facts)
        if counts["bytes"]:
            return f"The streams differ in size in {counts['bytes']} {share}" + _facts_clause(codec_facts, machine_facts)
        if counts["reconstructions"]:
            differing = f"{counts['reconstructions']} {share}"
            return f"Streams of equal size decode to other pixels in {differing}" + _facts_clause(codec_facts, machine_facts)
        return f"Streams and reconstructions are equal in all {counts['images']} images: the task moved" + _facts_clause(
            [*task_facts, *data_facts], [*machine_facts, *_facts_below(facts, "experiment", "tasks")]
        )
    if codec == UNCOMPRESSED:
        return "No codec is involved" + _facts_clause([*data_facts, *task_facts], machine_facts)
    return "Streams are not in both runs to compare" + _facts_clause([*data_facts, *codec_facts, *task_facts], machine_facts)


def _facts_below(facts: pd.DataFrame, part: str, name: str = "") -> list[str]:
    """`settings / quality 20 to 30` for every fact that differs in a part, or below a name in that part."""
    texts = []
    for row in facts[facts["part"] == part].itertuples():
        if not name or row.fact == name or row.fact.startswith(f"{name} / "):
            fact = row.fact.removeprefix(f"{name} / ") if name else row.fact
            prefix = "" if part in ("codecs", "tasks", "packages") else f"{part} / "
            texts.append(f"{prefix}{fact} {_shorten(row.a)} to {_shorten(row.b)}")
    return texts


def _shorten(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:12]}..."


def _facts_clause(own_facts: Sequence[str], other_facts: Sequence[str] = ()) -> str:
    """The end of a sentence: the facts of the link itself, or else other facts that can move it, or else that there are none."""
    if own_facts:
        return f"; what differs there: {_enumerate(own_facts)}."
    if other_facts:
        return f"; its own facts agree, what differs around it: {_enumerate(other_facts)}."
    return "; no recorded fact differs."


def _enumerate(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more
