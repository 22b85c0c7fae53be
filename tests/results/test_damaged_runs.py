"""A run folder with one damaged file: `report`, `bdrate` and `compare` work, or say in one sentence what is wrong.

derived.json refuses whatever was changed. To test what the readers behind it check, most tests record the damaged file there.
"""

import csv
import functools
import json
import os
import shutil
from collections import Counter
from copy import deepcopy

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from icmbench.harness.cli import main
from icmbench.harness.derive.bound import Derived
from icmbench.harness.derive.replicates import load_replicates
from icmbench.harness.derive.tables import NOT_READ, read_report_inputs, rewrite_report
from icmbench.harness.derive.tables import bundle as write_bundle
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.parquet_files import write_table
from icmbench.results import report
from icmbench.results.bd import bd_rate
from icmbench.results.bootstrap import INDEX
from icmbench.results.pictures import check_entries

ENVIRONMENT = {
    "format": 2,
    "command": ["icmbench", "run"],
    "experiment": {"name": "small", "anchor": "jpeg", "method": "pchip", "envelope": "pareto"},
    "primary": {"yolox": "AP"},
    "packages": {"numpy": "2.1"},
    "python": "3.13",
    "hardware": {"gpus": []},
    "git": None,
    "codecs": {"jpeg quality=24": {"quality": 24}},
    "tasks": {"yolox": {"version": 1}},
    "datasets": {"coco": {"images": 2}},
}
WEBP = "data:image/webp;base64,UklGRg=="
SHOWN = {"codec": "jpeg", "point": "1", "bits": 8, "bpp": 0.5, "score": 1.0, "damage": 1.0, "lost": [], "new": [], "clean": WEBP,
         "drawn": WEBP}  # fmt: skip
PICTURES = {
    "format": 2,
    "key": "0",
    "left_out": ["jpeg: slow"],
    "entries": [
        {"image": "a.png", "dataset": "coco", "task": "yolox", "metric": "AP", "unit": "%", "score": 1.0, "damage": None,
         "height": 4, "width": 4, "clean": WEBP, "drawn": WEBP, "shown": [SHOWN]}
    ],
}  # fmt: skip
ANALYSES = {
    "bit-split": "codec,point,part,bits\njpeg,1,header,16.5\njpeg,1,y,100.0\n",
    "bit-map": "codec,point,image,row,column,bits\njpeg,1,a.png,0,0,1.5\njpeg,1,a.png,0,1,2\n",
    "energy": "codec,point,channel,energy\nslim,1,1,0.5\nslim,1,2,0.25\n",
    "complexity": "codec,stage,part,parameters,gmac\nslim,encode,vae,34e6,500\n",
}
IMAGES = {"dataset": "coco", "id": ["a.png", "b.png"], "source": ["s0", "s1"]}
STREAMS = {"codec": "jpeg", "point": "1", "dataset": "coco", "id": ["a.png", "b.png"], "bytes": [10, 11], "height": 4, "width": 4,
           "sha256": ["p0", "p1"]}  # fmt: skip
REPLICATES = "replicates/yolox.parquet"
# What the tables of this run are: all that was made, without the analyses that somebody laid beside it.
TABLES = ["environment.json", "experiment.yaml", "images.parquet", "scores.csv", "bdrate.csv", "published.csv", "pictures.json",
          "streams.parquet", "analyses/bit-split.csv", REPLICATES]  # fmt: skip
# A value of every other type, and hostile ones of the same type.
OTHERS = [None, True, -1, 1e308, "", "\ud800", "\x00\x1b[2J", "<script>", "x" * 5000, [], [[]], {}, {"a": {"b": [1]}}]


def replicates(**changes):
    rows = [(codec, point, "", k) for codec in ("jpeg", "avif") for point in ("1", "2") for k in range(4)]
    frame = pd.DataFrame(rows, columns=INDEX).assign(bpp=0.5, AP=20.0, key="k", task="yolox")
    return frame.assign(**changes)


@pytest.fixture
def run_folder(plain_scores, tmp_path):
    """A finished run with everything that a report reads."""
    folder = tmp_path / "run"
    (folder / "analyses").mkdir(parents=True)
    few = plain_scores[(plain_scores["task"] == "yolox") & plain_scores["codec"].isin(["uncompressed", "jpeg", "avif"])]
    few[few["metric"] == "AP"].to_csv(folder / "scores.csv", index=False)
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "pictures.json").write_text(json.dumps(PICTURES))
    for name, text in ANALYSES.items():
        (folder / "analyses" / f"{name}.csv").write_text(text)
    (folder / "published.csv").write_text("codec,dataset,bpp,AP\nTheirs (reported),coco,0.1,12\nTheirs (reported),coco,0.2,20\n")
    (folder / "experiment.yaml").write_text("name: small\n")
    (folder / "bdrate.csv").write_text("codec\n")
    write_parquet(folder, "images.parquet", pd.DataFrame(IMAGES))
    write_parquet(folder, "streams.parquet", pd.DataFrame(STREAMS))
    write_parquet(folder, REPLICATES, replicates())
    Derived(Folder(folder)).write("inputs", TABLES, [], "report/index.html")
    return folder


def write_parquet(folder, name, frame):
    """Write a Parquet file as a run does, with the number of its format."""
    write_table(Folder(folder), name, pa.Table.from_pandas(frame, preserve_index=False))


def record(folder, name):
    """Record a damaged file in derived.json, so that its own reader meets it."""
    Derived(Folder(folder)).update([name])


@pytest.fixture
def walk(run_folder, tmp_path, capfd, monkeypatch):
    """A function that runs the commands on the folder; what it returns are their exit codes and what they said."""
    whole = tmp_path / "whole"
    shutil.copytree(run_folder, whole)
    monkeypatch.setattr("signal.signal", lambda *arguments: None)

    def call(*commands):
        results = []
        for command in commands:
            arguments = {
                "report": ["report", run_folder],
                "bundle": ["report", run_folder, "--bundle"],
                "bdrate": ["bdrate", run_folder / "scores.csv", "--anchor", "jpeg"],
                "compare": ["compare", whole, run_folder],
            }[command]
            code = main([*map(str, arguments)])  # An exception that it lets through fails the test.
            said = capfd.readouterr()
            assert code in (0, 2) and "Traceback" not in said.err and "Warning" not in said.err and "defect" not in said.err, (
                said.err
            )
            assert said.err.count("\n") == (code == 2) and len(said.err) < 2000, said.err
            assert code == 0 or said.err.startswith("icmbench: ")
            results.append((code, said.out + said.err))
        return results

    return call


def test_the_whole_folder_is_fine(walk):
    assert [code for code, _ in walk("report", "bundle", "bdrate", "compare")] == [0, 0, 0, 0]


@pytest.fixture
def without_drawing(monkeypatch):
    """Figures and tables of a report are made once: what is damaged here decides what is read, not what is drawn."""
    made = functools.cache(lambda: results(*calls[0]))
    calls, results = [], report._results
    monkeypatch.setattr(report, "_results", lambda *arguments: (calls.append(arguments), made())[1])
    monkeypatch.setattr(report, "write_figures", lambda *arguments: [])
    monkeypatch.setattr(report, "write_tables", lambda *arguments: [])


def paths_of(value, path=()):
    """The path of every value below a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths_of(inner, (*path, key))


def replaced(value, path, other):
    value = deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = other
    return value


def can_be_shown(pictures):
    try:
        check_entries(pictures)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("file", ["environment.json", "pictures.json"])
def test_json_of_other_types(run_folder, walk, file, without_drawing):
    """Every value of the two files is replaced by values of other types; those that a report needs by all of them."""
    content = ENVIRONMENT if file == "environment.json" else PICTURES
    page = run_folder / "report" / "index.html"
    codes = []
    for k, path in enumerate(paths_of(content)):
        for other in OTHERS if path[0] in ("experiment", "primary") else OTHERS[k % 4 :: 4]:
            (run_folder / file).write_text(json.dumps(replaced(content, path, other)))
            record(run_folder, file)
            codes += [code for code, _ in walk(*(["report", "compare"] if file == "environment.json" else ["report"]))]
            if file == "pictures.json" and path != ("format",):
                says_damaged = "Images not shown: pictures.json is damaged" in page.read_text(encoding="utf-8")
                assert codes[-1] == 0 and says_damaged == (not can_be_shown(replaced(content, path, other)))
            elif path == ("format",):
                assert codes[-1] == 2  # Another icmbench may mean something else by the rest.
    assert 0 in codes and 2 in codes


@pytest.mark.parametrize("file", ["environment.json", "pictures.json", "scores.csv", "published.csv", "analyses/bit-split.csv"])
@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe\x00", b"[]", b"7", b"null", b'{"a":', b'{"a":1,"a":2}', b"[" * 100_000, b'{"a":' * 200 + b"1" + b"}" * 200,
     b"codec\n", b'"', b"\x00" * 50, b"codec,point,part,bits\nj,1,y\n"],
)  # fmt: skip
def test_files_of_other_content(run_folder, walk, file, data, without_drawing):
    (run_folder / file).write_bytes(data)
    record(run_folder, file)
    codes = [code for code, _ in walk("report", "bdrate", "compare")]
    if file != "pictures.json":
        assert codes[0] == 2


@pytest.mark.parametrize(
    "file",
    ["environment.json", "pictures.json", "scores.csv", "published.csv", "analyses/energy.csv", "replicates/a.parquet",
     "images.parquet", "streams.parquet", "derived.json"],
)  # fmt: skip
def test_folders_and_pipes_where_files_are_expected(run_folder, walk, file, without_drawing):
    for make in (os.mkdir, os.mkfifo):
        path = run_folder / file
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)
        if file == "derived.json":
            assert [code for code, _ in walk("report", "bdrate", "compare")] == [2, 2, 2]
        else:
            record(run_folder, file)
            walk("report", "bdrate", "compare")
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("cell", ["", "nan", "inf", "-1", "text", "1e300", "1,5", "0.5"])
def test_damaged_analyses_are_named(run_folder, walk, name, cell, without_drawing):
    """A wrong cell in the last line. Positions are whole, everything is finite and at least 0."""
    text = ANALYSES[name]
    header = text.split("\n")[0].split(",")
    for column in range(2 if name != "complexity" else 3, len(header)):
        *lines, last = text.rstrip("\n").split("\n")
        cells = last.split(",")
        cells[column] = cell
        (run_folder / "analyses" / f"{name}.csv").write_text("\n".join([*lines, ",".join(cells)]) + "\n")
        record(run_folder, f"analyses/{name}.csv")
        [(code, said)] = walk("report")
        is_text, is_whole = header[column] in ("part", "image"), header[column] in ("row", "column", "channel")
        fine = (is_text and cell != "1,5") or (cell == "0.5" and not is_whole)
        assert code == (0 if fine else 2), (header[column], cell, said)
        assert fine or f"line {len(lines) + 1}" in said


@pytest.mark.parametrize(
    "frame",
    [
        replicates(),
        replicates(AP="text"),
        replicates(AP=[[1.0]] * 16),
        replicates(task=None),
        replicates(task=7),
        replicates(codec=[[1]] * 16),
        replicates(replicate="0"),
        replicates(replicate=0),
        replicates(replicate=np.arange(16)),
        replicates().drop(columns="bpp"),
        replicates().iloc[:-1],
        replicates().iloc[:0],
        pd.DataFrame({"a": [1]}),
    ],
)
def test_damaged_replicates_are_treated_as_absent(run_folder, walk, frame, without_drawing):
    write_parquet(run_folder, REPLICATES, frame)
    record(run_folder, REPLICATES)
    assert [code for code, _ in walk("report", "compare")] == [0, 0]
    assert ("paired replicates" in (run_folder / "bdrate.csv").read_text()) == frame.equals(replicates())


def test_replicates_of_other_tables_are_not_read(run_folder):
    """A file that an earlier run left lies in the folder, but derived.json does not list it."""
    folder = Folder(run_folder)
    write_parquet(run_folder, "replicates/ssd.parquet", replicates(task="ssd"))
    assert set(load_replicates(folder)) == {"ssd", "yolox"}
    inputs = read_report_inputs(run_folder)
    assert set(inputs.replicates) == {"yolox"}
    bundle = write_bundle(run_folder, inputs, rewrite_report(run_folder, inputs)[0])
    assert not any(b"replicates/ssd" in path.read_bytes() for path in bundle.rglob("*") if path.is_file())
    record(run_folder, "replicates/ssd.parquet")
    assert set(read_report_inputs(run_folder).replicates) == {"ssd", "yolox"}


@pytest.mark.parametrize("name", ["images.parquet", "streams.parquet"])
@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"\x00" * 100 + b"PAR1"])
def test_damaged_references_are_named(run_folder, walk, name, data):
    (run_folder / name).write_bytes(data)
    record(run_folder, name)
    [(code, said)] = walk("compare")
    assert code == 2 and f"{run_folder / name} is damaged" in said


READERS = {
    "report": [name for name in TABLES if name not in NOT_READ],
    "bundle": ["experiment.yaml", REPLICATES],  # It names what the tables were made from, beside what a report reads.
    "bdrate": ["scores.csv"],
    "compare": ["environment.json", "scores.csv", "images.parquet", "streams.parquet"],
}


@pytest.mark.parametrize(("command", "name"), [(command, name) for command, names in READERS.items() for name in names])
def test_files_that_were_changed_or_deleted_are_refused(run_folder, walk, without_drawing, command, name):
    """A byte more, a byte less, and the file absent, in each file that the command reads."""
    path = run_folder / name
    whole = path.read_bytes()
    for damage in (lambda: path.write_bytes(whole + b" "), lambda: path.write_bytes(whole[:-1]), path.unlink):
        damage()
        [(code, said)] = walk(command)
        assert code == 2 and str(run_folder) in said and name in said, said
        assert name == "environment.json" or str(path) in said, said
    path.write_bytes(whole)
    assert walk(command)[0][0] == 0


def test_every_file_of_the_tables_has_a_reader_that_refuses_it():
    """But bdrate.csv and the page, which `report` writes anew."""
    assert {name for names in READERS.values() for name in names} == {*TABLES} - {"bdrate.csv"}


def test_what_a_report_writes_may_be_damaged(run_folder, walk, without_drawing):
    assert walk("report")[0][0] == 0
    files = [run_folder / name for name in ("bdrate.csv", "report/index.html")]
    whole = [file.read_bytes() for file in files]
    for damage in (lambda file: file.write_bytes(b"cut"), lambda file: file.unlink()):
        for file in files:
            damage(file)
        assert walk("report")[0][0] == 0 and [file.read_bytes() for file in files] == whole


def test_a_damaged_or_absent_derived_json_is_refused(run_folder, walk):
    """No value of it can be replaced, and no name of a table can be left out, so that the table would silently be absent."""
    path = run_folder / "derived.json"
    whole = json.loads(path.read_text())
    contents = [replaced(whole, place, other) for place in paths_of(whole) for other in OTHERS]
    contents += [{**whole, "files": {n: sha for n, sha in whole["files"].items() if n != name}} for name in whole["files"]]
    contents += [{key: value for key, value in whole.items() if key != name} for name in whole]
    for content in [*contents, [], 7, None]:
        path.write_text(json.dumps(content))
        if content != whole:
            results = walk("report", "bdrate", "compare")
            assert [code for code, _ in results] == [2, 2, 2] and all(str(run_folder) in said for _, said in results), content
    path.unlink()
    [(code, said)] = walk("report")
    assert code == 2 and f"{run_folder}: holds no finished tables" in said


CURVE = {"codec": "a", "source": "b", "dataset": "coco", "task": "", "bpp": [0.1, 0.2], "metrics": {"AP": [1, 2], "AP50": [3, 4]}}


def test_damaged_published_files(run_folder, tmp_path, capfd, monkeypatch):
    """Every value of a JSON file of curves is replaced by one of each other type: one sentence, or curves."""
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    path = tmp_path / "paper.json"
    content = {"curves": [CURVE]}
    for place in paths_of(content):
        for other in [*OTHERS, float("nan"), 10**400]:
            path.write_text(json.dumps(replaced(content, place, other)))
            code = main(["bdrate", str(run_folder / "scores.csv"), "--anchor", "jpeg", "--published", str(path)])
            said = capfd.readouterr().err
            assert code in (0, 2) and said.count("\n") == (code == 2) and len(said) < 2000, said
            assert code == 0 or "paper.json" in said, said
            is_name = place[-1] in ("codec", "source", "dataset", "task")
            assert code == 2 or is_name or other in ([], {}) or place == ("curves",) or other == 1e308, (place, other)


def cut(rng, data):
    return data[: rng.integers(len(data))]


def flip(rng, data):
    place = rng.integers(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.integers(8)]) + data[place + 1 :]


def drop(rng, data):
    start = rng.integers(len(data))
    return data[:start] + data[start + rng.integers(1, 40) :]


def repeat(rng, data):
    start, length = rng.integers(len(data)), rng.integers(1, 120)
    return data[: start + length] + data[start:]


def swap(rng, data):
    a, b = sorted(rng.integers(len(data), size=2))
    return data[:a] + data[b:] + data[a:b]


def insert(rng, data):
    start = rng.integers(len(data))
    texts = [b"NaN", b",", b";", b"\n", b"null", b"1e9", b"-", b'"', b"\xff", b"\0", b"0", b"9", b"{", b"]", b"%"]
    return data[:start] + texts[rng.integers(len(texts))] + data[start:]


def drop_line(rng, data):
    lines = data.splitlines(keepends=True)
    del lines[rng.integers(len(lines))]
    return b"".join(lines)


def repeat_line(rng, data):
    lines = data.splitlines(keepends=True)
    lines.insert(rng.integers(len(lines) + 1), lines[rng.integers(len(lines))])
    return b"".join(lines)


MUTATIONS = [cut, flip, drop, repeat, swap, insert, drop_line, repeat_line]


def expected_percents(path):
    """BD-rates against jpeg of what Python's own csv module reads in a scores.csv, rounded as they are printed, by codec.

    A codec with a row without a rate, such as a damaged `uncompressed`, has none.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["codec"] != "uncompressed"]
    keys = {tuple(row[column] for column in ("dataset", "task", "model", "metric", "reference")) for row in rows}
    curves = {}
    for row in rows:
        curves.setdefault(row["codec"], []).append((float(row["bpp"] or "nan"), float(row["value"] or "nan")))
    higher = rows[0]["higher_is_better"].lower() == "true"
    results = {
        codec: bd_rate(curves["jpeg"], points, higher_is_better=higher) for codec, points in curves.items() if codec != "jpeg"
    }
    numbers = {codec: result.bd_rate_percent for codec, result in results.items()}
    return {} if len(keys) > 1 else {codec: f"{number:+.1f}" for codec, number in numbers.items() if number is not None}


def test_one_random_damage_to_any_file(run_folder, walk, without_drawing):
    """ICMBENCH_FUZZ=N tries N. Each is refused. If derived.json records the damaged file, each ends in an error of its reader, or
    in the BD-rates that the file states by Python's csv module.
    """
    reference = [said for _, said in walk("report", "bdrate", "compare")]
    files = ["scores.csv", "environment.json", "pictures.json", "published.csv", *(f"analyses/{name}.csv" for name in ANALYSES)]
    files += ["images.parquet", "streams.parquet", "derived.json"]
    sealed = (run_folder / "derived.json").read_bytes()
    counts = Counter()
    for seed in range(int(os.environ.get("ICMBENCH_FUZZ") or 60)):
        rng = np.random.default_rng(seed)
        file = files[rng.integers(len(files))] if seed % 2 else "scores.csv"
        mutate = MUTATIONS[rng.integers(len(MUTATIONS))]
        path = run_folder / file
        (run_folder / "derived.json").write_bytes(sealed)
        whole = path.read_bytes()
        path.write_bytes(mutate(rng, whole))
        if path.read_bytes() != whole and not (file == "derived.json" and is_same_json(path.read_bytes(), whole)):
            check_refusals(walk("report", "bdrate", "compare"), file)
            counts["refused as another file"] += file in TABLES
        if file != "derived.json":
            record(run_folder, file)
            outcome = check_outcome(walk("report", "bdrate", "compare"), reference, file, path, (seed, mutate.__name__))
            counts[outcome] += 1
        path.write_bytes(whole)
    print(dict(counts))
    assert counts["refused"] and counts["equal to the reference"] and counts["refused as another file"]


def is_same_json(data, other):
    try:
        return json.loads(data) == json.loads(other)  # Such as with a line given twice.
    except ValueError:
        return False


def check_refusals(results, file):
    """Every command refuses a damaged file that it reads and derived.json names, and any table if derived.json is damaged."""
    (report_code, _), (bdrate_code, _), (compare_code, _) = results
    assert report_code == 2 or file in NOT_READ or file not in [*TABLES, "derived.json"]
    assert bdrate_code == 2 or file not in ("scores.csv", "derived.json")
    assert compare_code == 2 or file in NOT_READ - {"images.parquet", "streams.parquet"} or file not in (
        "derived.json", "environment.json", "scores.csv", "images.parquet", "streams.parquet"
    )  # fmt: skip


def check_outcome(results, reference, file, path, words):
    """Every command refuses a damaged file, or its numbers are those that the file states."""
    (report_code, report_said), (bdrate_code, bdrate_said), (compare_code, compare_said) = results
    if report_code or bdrate_code or (compare_code and path.suffix == ".parquet"):
        return "refused"
    if file == "scores.csv":
        for codec, percent in expected_percents(path).items():
            assert percent in bdrate_said and percent in report_said, (words, codec, percent, bdrate_said)
        return "equal to the reference"
    assert bdrate_said == reference[1], (file, words)
    if file != "environment.json":  # That says which codec is the anchor, and how curves are interpolated.
        assert report_said == reference[0], (file, words)
    if path.suffix == ".parquet":  # Pages of data have checksums, so that what is read is what was written.
        assert compare_said == reference[2], (file, words)
    return "equal to the reference"
