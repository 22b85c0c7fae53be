"""Files that are read again carry a format number: files of another format are refused by name, and kept."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icmbench.harness.cli import main
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.store.formats import FORMAT, FormatError, check_format, check_metadata, parse_object

NEWER = "has format 4, and this icmbench reads formats 2 and 3: use a newer icmbench"
OLDER = "has format 1, of an older icmbench; this one reads formats 2 and 3: run the experiment into a new folder"
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


def set_shard_format(file: Path, number: bytes | None) -> Path:
    """Rewrite a shard with another format number, or without one, under the name that its bytes then have."""
    table = pq.read_table(file)
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"format"}
    pq.write_table(table.replace_schema_metadata(metadata | ({} if number is None else {b"format": number})), file)
    if "-" in file.name and "replicates" not in file.parts:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:32]
        file = file.rename(file.with_name(f"{file.name.partition('-')[0]}-{digest}.parquet"))
    return file


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
    for name in ("environment.json", "derived.json", "pictures.json"):
        assert json.loads((finished / name).read_text())["format"] == FORMAT
    assert {path.relative_to(finished).parts[0] for path in shards(finished)} == {
        "sources", "store", "replicates", "images.parquet", "streams.parquet",
    }  # fmt: skip
    assert {pq.read_schema(path).metadata[b"format"] for path in shards(finished)} == {b"%d" % FORMAT}


@pytest.mark.parametrize(("number", "sentence"), [(4, NEWER), (1, OLDER), (None, OLDER)])
def test_an_environment_of_another_format_is_refused_and_kept(finished, experiment, capsys, number, sentence):
    set_environment_format(finished, number)
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    path = experiment(codecs=CODECS)
    for name, arguments in commands(finished, path).items():
        assert main([*map(str, arguments)]) == 2, name
        assert capsys.readouterr().err == f"icmbench: {finished / 'environment.json'} {sentence}\n", name
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", ["sources", "store/streams", "store/predictions"])
def test_a_shard_of_a_newer_format_is_refused_and_kept(finished, experiment, capsys, place):
    for index in (finished / place).rglob("index-*.parquet"):
        index.unlink()
    changed = set_shard_format(shards(finished / place)[0], b"4")
    before = changed.read_bytes()
    assert main([*map(str, commands(finished, experiment(codecs=CODECS))["run"])]) == 2
    assert f"{changed} {NEWER}\n" in capsys.readouterr().err
    assert changed.read_bytes() == before


def test_two_runs_predict_the_same(tmp_path, experiment):
    tables = []
    for name in ("first", "second"):
        run(load_experiment(experiment(codecs=CODECS[:1])), tmp_path / name)
        read = {}
        for folder in (tmp_path / name / "store" / "predictions").iterdir():
            parts = [pq.read_table(file) for file in shards(folder) if "index" not in file.name]
            table = pa.concat_tables(parts).drop_columns(["seconds", "written"])
            read[folder.name] = table.combine_chunks().sort_by("key")
        tables.append(read)
    assert tables[0].keys() == tables[1].keys()
    assert all(table.equals(tables[1][name], check_metadata=True) for name, table in tables[0].items())


@pytest.mark.parametrize("number", [0, -1, 4, 2.0, True, "1", None, [1], 10**30])
def test_a_number_that_is_none_is_refused(number):
    with pytest.raises(FormatError, match=r"^run/x has format .{1,40}, and this icmbench reads formats 2 and 3"):
        check_format("run/x", number)


@pytest.mark.parametrize("text", [b"", b"4", b"one", b"\xff\n", b"9" * 99, b"-1"])
def test_metadata_that_hold_no_number_are_refused(text):
    with pytest.raises(UserError) as error:
        check_metadata("run/x", {b"format": text})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "1", "[" * 100_000, b"\xff", '{"format":'])
def test_what_is_no_json_object_is_damaged_rather_than_newer(text):
    with pytest.raises(ValueError):
        parse_object("run/x", text)
