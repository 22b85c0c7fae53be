"""Files that are read again carry a format number: files without one are read, files of a newer icmbench are refused by name."""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from icmbench.harness.cli import main
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.store.formats import FORMAT, FormatError, check_format, check_metadata, parse_object

NEWER = "has format 2, and this icmbench reads up to 1: use a newer icmbench"
CODECS = [{"name": "shift", "points": [6, 4]}, {"name": "shaky", "points": [4]}]


@pytest.fixture
def finished(tmp_path, experiment, calls):
    """The folder of a finished run."""
    result = run(load_experiment(experiment(codecs=CODECS)), tmp_path / "run")
    assert not result.missing
    calls()
    return tmp_path / "run"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def set_shard_format(file: Path, number: bytes | None) -> None:
    """Rewrite a Parquet file with another format number, or without one."""
    table = pq.read_table(file)
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"format"}
    pq.write_table(table.replace_schema_metadata(metadata | ({} if number is None else {b"format": number})), file)


def set_environment_format(folder: Path, number) -> None:
    """Change the format number in environment.json, or remove it."""
    path = folder / "environment.json"
    environment = json.loads(path.read_text())
    assert environment.pop("format") == FORMAT
    path.write_text(json.dumps(environment | ({} if number is None else {"format": number})))


def commands(folder: Path, experiment: Path) -> dict[str, list]:
    return {
        "run": ["run", experiment, "--out", folder],
        "report": ["report", folder],
        "compare": ["compare", folder, folder],
        "pack": ["pack", "export", folder, "--codec", "shift", "--out", folder.with_suffix(".icmpack")],
    }


def test_every_file_carries_the_number(finished):
    assert json.loads((finished / "environment.json").read_text())["format"] == 1
    assert {path.relative_to(finished).parts[0] for path in shards(finished)} == {
        "sources", "streams", "predictions", "replicates",
    }  # fmt: skip
    assert {pq.read_schema(path).metadata[b"format"] for path in shards(finished)} == {b"1"}


def test_a_folder_from_before_the_number_is_complete_and_read(finished, experiment, calls, capsys):
    before = pd.read_csv(finished / "scores.csv"), pd.read_csv(finished / "bdrate.csv")
    for file in shards(finished):
        set_shard_format(file, None)
    set_environment_format(finished, None)
    path = experiment(codecs=CODECS)
    for name, arguments in commands(finished, path).items():
        assert main([*map(str, arguments)]) == 0, (name, capsys.readouterr().err)
    assert calls().keys() <= {"decompress shift"}, "only the pictures of the report may be decoded again"
    for frame, file in zip(before, ("scores.csv", "bdrate.csv")):
        pd.testing.assert_frame_equal(pd.read_csv(finished / file), frame)
    assert json.loads((finished / "environment.json").read_text())["format"] == FORMAT


def test_a_newer_environment_is_refused_and_kept(finished, experiment, capsys):
    set_environment_format(finished, 2)
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    path = experiment(codecs=CODECS)
    for name, arguments in commands(finished, path).items():
        assert main([*map(str, arguments)]) == 2, name
        assert capsys.readouterr().err == f"icmbench: {finished / 'environment.json'} {NEWER}\n", name
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("folder", "refusing"),
    [
        ("sources", {"run", "pack"}),
        ("streams/photos/shift", {"run", "pack"}),
        ("predictions", {"run"}),
        ("replicates", {"run", "report"}),
    ],
)
def test_a_newer_shard_is_refused_and_kept(finished, experiment, capsys, folder, refusing):
    changed = shards(finished / folder)[0]
    set_shard_format(changed, b"2")
    before = changed.read_bytes()
    path = experiment(codecs=CODECS)
    for name in sorted(refusing):
        assert main([*map(str, commands(finished, path)[name])]) == 2, name
        assert f"{changed} {NEWER}\n" in capsys.readouterr().err, name
    assert changed.read_bytes() == before


def test_two_runs_predict_the_same(tmp_path, experiment):
    frames = []
    for name in ("first", "second"):
        run(load_experiment(experiment(codecs=CODECS[:1])), tmp_path / name)
        files = shards(tmp_path / name / "predictions")
        tables = {str(file.relative_to(tmp_path / name)): pq.read_table(file).drop_columns("seconds") for file in files}
        frames.append(tables)
    assert frames[0].keys() == frames[1].keys()
    assert all(table.equals(frames[1][name], check_metadata=True) for name, table in frames[0].items())


@pytest.mark.parametrize("number", [0, -1, 2, 1.0, True, "1", None, [1], 10**30])
def test_a_number_that_is_none_is_refused(number):
    with pytest.raises(FormatError, match=r"^run/x has format .{1,40}, and this icmbench reads up to 1"):
        check_format("run/x", number)


@pytest.mark.parametrize("text", [b"", b"2", b"one", b"\xff\n", b"9" * 99, b"-1"])
def test_metadata_that_hold_no_number_are_refused(text):
    with pytest.raises(UserError) as error:
        check_metadata("run/x", {b"format": text})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "1", "[" * 100_000, b"\xff", '{"format":'])
def test_what_is_no_json_object_is_damaged_rather_than_newer(text):
    with pytest.raises(ValueError):
        parse_object("run/x", text)
