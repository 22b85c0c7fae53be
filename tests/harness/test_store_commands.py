"""`icmbench store`: what is there, whether it is whole, what no run needs, and copies of a part."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from icmbench.harness.cli import main
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.config.selection import Selection
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.keys import digest
from icmbench.harness.store.leases import hold
from icmbench.harness.store.references import LEASES, leave_reference, refuse_while_cleaned
from icmbench.harness.store.store import Store
from icmbench.harness.store.whole_files import process_space
from icmbench.harness.work.bench import Bench

DAY = 24 * 3600
SHIFT = {"name": "shift", "points": [6, 4]}
SHAKY = {"name": "shaky", "points": [4]}


@pytest.fixture
def store(capsys):
    """A function that calls `icmbench store` in this process and returns exit code, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()
        code = main(["store", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def finish(path, out, **options):
    """Run an experiment, which leaves a reference in its store."""
    experiment = load_experiment(path)
    result = run(experiment, out, RunOptions(**options), source=path)
    assert not result.missing, result.outcome.failures
    bench = Bench(experiment, Folder(out))
    series = [digest(each.fingerprint) for each in bench.series if not each.is_original]
    tasks = [digest(task.fingerprint) for task in bench.tasks.values()]
    contexts = [digest(task.context_fingerprint) for task in bench.tasks.values() if task.has_context]
    leave_reference(bench.store.folder, bench.folder, [*series, *tasks, *contexts])
    return result


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def make_old(folder):
    for path in Path(folder).rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 2 * DAY,) * 2)


def collections(store, address):
    return {
        (each["kind"], each["about"].get("codec") or each["about"]["task"])
        for each in json.loads(store("ls", address, "--json")[1])
    }


def test_ls_and_du_say_what_is_there(tmp_path, experiment, store):
    finish(experiment(codecs=[SHIFT, SHAKY]), tmp_path / "run", keep=True)
    for address in (tmp_path / "run", tmp_path / "run" / "store"):
        listed = json.loads(store("ls", address, "--json")[1])
        lines = [(each["kind"], each["about"].get("codec") or each["about"]["task"], each["about"].get("point")) for each in listed]
        assert lines == [
            ("streams", "shaky", "bits=4"),
            ("streams", "shift", "bits=2"),
            ("streams", "shift", "bits=4"),
            ("predictions", "distance", None),
            ("predictions", "mean-colour", None),
        ]
        assert [each["rows"] for each in listed] == [10, 10, 10, 30, 40]
        for each in listed:
            folder = tmp_path / "run" / "store" / each["kind"] / each["digest"]
            assert each["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
            latest = max(pq.read_table(path)["written"].to_numpy().max() for path in folder.glob("0*.parquet"))
            assert each["latest"] == latest and any(str(tmp_path / "run") in holder for holder in each["held_by"])
            assert digest(each["fingerprint"]) == each["digest"]
    code, out, _ = store("ls", tmp_path / "run")
    assert code == 0 and len(out.splitlines()) == 6 and listed[0]["digest"] in out and listed[0]["fingerprint"] not in out
    assert listed[0]["fingerprint"] in store("ls", tmp_path / "run", "--long")[1]
    used = json.loads(store("du", tmp_path / "run", "--json")[1])
    files = [path for path in (tmp_path / "run" / "store").rglob("*") if path.is_file()]
    assert used["total"] == {"rows": 100, "files": len(files), "bytes": sum(path.stat().st_size for path in files)}
    assert {line["name"]: line["rows"] for line in used["collections"] if line["name"] == "shift"} == {"shift": 20}
    assert [line["files"] for line in used["collections"] if line["kind"] in ("pictures", "contexts")] == [30, 1]
    assert store("du", tmp_path / "run")[1].splitlines()[-1].split()[0] == "total"


def corrupt(path, others, kind, generator):
    """Flip a byte, cut the end, or exchange a file with another one; returns the names of the files that changed."""
    data = path.read_bytes()
    if kind == "flip":
        at = generator.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << generator.randrange(8))]) + data[at + 1 :])
    elif kind == "cut":
        path.write_bytes(data[: generator.randrange(len(data))])
    else:
        other = generator.choice([each for each in others if each.read_bytes() != data])
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return {path, other}
    return {path}


def test_verify_finds_each_of_200_corruptions_and_nothing_else(tmp_path, experiment, store):
    from icmbench.harness.store.verifying import verify

    finish(experiment(codecs=[SHIFT, SHAKY, {**SHAKY, "label": "again", "points": [2]}], limit=5), tmp_path / "run", keep=True)
    place = tmp_path / "run" / "store"
    assert store("verify", place) == (0, f"{place}: every file is whole\n", "")
    files = sorted(path for path in place.rglob("*") if path.is_file())
    kinds = {path.relative_to(place).parts[0] for path in files}
    assert kinds == {"streams", "predictions", "claims", "contexts", "reconstructions", "references"}
    generator = random.Random(16)
    for trial in range(200):
        path = generator.choice([each for each in files if each.relative_to(place).parts[0] == sorted(kinds)[trial % 6]])
        before = {each: each.read_bytes() for each in files}
        changed = corrupt(path, files, ("flip", "cut", "swap")[trial // 6 % 3], generator)
        found = {place / damage.file.name for damage in verify(Folder(place))}
        assert changed <= found, (trial, path)
        # Only what depends on a damaged file may be suspected beside it.
        assert all(each.parent in {p.parent for p in changed} for each in found), (trial, path, found)
        for each in changed:
            each.write_bytes(before[each])
    assert not list(verify(Folder(place)))


def test_repair_deletes_what_is_computed_again_and_nothing_else(tmp_path, experiment, store, calls):
    path = experiment(codecs=[SHIFT], limit=4)
    whole = finish(path, tmp_path / "run", keep=True)
    place = tmp_path / "run" / "store"
    before = files_of(place)
    shard = next(path for path in sorted((place / "streams").rglob("0*.parquet")))
    picture = next(iter(sorted((place / "reconstructions").rglob("*.png"))))
    reference = next((place / "references").iterdir())
    for damaged in (shard, picture, reference):
        damaged.write_bytes(damaged.read_bytes()[:-9])
    code, out, _ = store("verify", tmp_path / "run", "--repair")
    assert code == 1 and out.count("damaged files deleted, 1 left") == 1 and len(out.splitlines()) == 4
    assert {*before} - {*files_of(place)} == {each.relative_to(place).as_posix() for each in (shard, picture)}
    calls()
    again = finish(path, tmp_path / "run", keep=True)
    assert calls()["compress shift"] == 4
    columns = ["codec", "point", "task", "value", "bpp"]
    pd.testing.assert_frame_equal(
        again.scores[columns].reset_index(drop=True), whole.scores[columns].reset_index(drop=True), check_dtype=False
    )
    assert store("verify", place)[0] == 0


def test_claims_on_a_shard_that_is_deleted_are_deleted_with_it(tmp_path, experiment, store):
    """Claims on streams that are gone would stand in the way of new ones."""
    path = experiment(codecs=[SHAKY], limit=4, anchor="shaky", tasks=[{"name": "distance", "dataset": "photos"}])
    finish(path, tmp_path / "run")
    place = tmp_path / "run" / "store"
    shard = next((place / "streams").rglob("0*.parquet"))
    shard.write_bytes(shard.read_bytes() + b"x")
    code, out, _ = store("verify", place, "--repair")
    assert (code, out.splitlines()[-1]) == (0, "5 damaged files deleted, 0 left") and not list((place / "claims").rglob("*.0"))
    finish(path, tmp_path / "run")
    assert store("verify", place)[0] == 0


def test_clean_spares_what_a_run_needs_and_what_is_young(tmp_path, experiment, store, calls):
    shared = tmp_path / "shared"
    first = experiment(name="first", store="shared", codecs=[SHIFT], limit=3)
    finish(first, tmp_path / "first")
    second = experiment(
        name="second", store="shared", codecs=[SHAKY], limit=3, anchor="shaky", tasks=[{"name": "distance", "dataset": "photos"}]
    )
    finish(second, tmp_path / "second", keep=True)
    everything = files_of(shared)
    assert "would remove 0 B in 0 files" in store("clean", shared)[1]
    make_old(shared)
    assert "would remove 0 B in 0 files" in store("clean", shared)[1]

    shutil.rmtree(tmp_path / "second")
    code, out, _ = store("clean", shared, "--yes")
    assert code == 0 and f"run {tmp_path / 'second'}" in out and "its run folder is gone" in out and "--run" in out
    assert files_of(shared) == everything  # It was not named.
    code, _, errors = store("clean", shared, "--run", tmp_path / "first")
    assert code == 2 and re.search("delete its folder first", errors), errors

    code, out, _ = store("clean", shared, "--run", tmp_path / "second")
    assert "would remove" in out and "nothing was removed; add --yes" in out and files_of(shared) == everything
    # Someone else is about to use these streams.
    streams = next(each["digest"] for each in json.loads(store("ls", shared, "--json")[1]) if each["about"].get("codec") == "shaky")
    with hold(Folder(shared), LEASES, {"run": "elsewhere", "fingerprints": [streams]}):
        assert "streams of shaky" not in store("clean", shared, "--run", tmp_path / "second")[1]
    code, out, _ = store("clean", shared, "--run", tmp_path / "second", "--yes")
    assert collections(store, shared) == {("streams", "shift"), ("predictions", "distance"), ("predictions", "mean-colour")}
    left = files_of(shared)
    assert not any(name.startswith(("claims", "reconstructions")) for name in left)
    assert len([name for name in left if name.startswith("references")]) == 1
    path = experiment(name="first", store="shared", codecs=[SHIFT], limit=3)
    calls()
    finish(path, tmp_path / "first")
    assert calls() == {}


def test_clean_keeps_what_the_run_folder_around_a_store_names(tmp_path, experiment, store):
    path = experiment(codecs=[SHIFT], limit=3)
    finish(path, tmp_path / "run")
    path = experiment(codecs=[{"name": "shift", "points": [6, 2]}], limit=3)
    finish(path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "store" / "references")
    assert "younger than a day" in store("clean", tmp_path / "run", "--yes")[1]
    make_old(tmp_path / "run" / "store")
    assert "streams of shift bits=4" in store("clean", tmp_path / "run", "--yes")[1]
    points = [each["about"].get("point") for each in json.loads(store("ls", tmp_path / "run", "--json")[1])]
    assert points == ["bits=2", "bits=6", None, None]


def test_a_run_folder_that_was_moved_is_recognised(tmp_path, experiment, store):
    """Its store may lie in it or elsewhere; a copy whose original is there, and a run that was cut down since, are two runs."""
    inner = experiment(codecs=[SHIFT], limit=3)
    finish(inner, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    for place in ("moved", "copied"):
        make_old(tmp_path / place / "store")
        assert "kept for" not in store("clean", tmp_path / place)[1] and "would remove 0 B" in store("clean", tmp_path / place)[1]
        assert str(tmp_path / "run") not in store("ls", tmp_path / place)[1]
    finish(inner, tmp_path / "moved")
    assert "kept for" not in store("clean", tmp_path / "moved")[1]

    shared = tmp_path / "shared"
    finish(experiment(codecs=[SHIFT], limit=3, store="shared"), tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "second")
    make_old(shared)
    assert f"run {tmp_path / 'first'}" in store("clean", shared)[1]  # Nobody can tell where it is until it is run there.
    finish(experiment(codecs=[SHIFT], limit=3, store="shared"), tmp_path / "second")
    assert "kept for" not in store("clean", shared)[1]
    everything = files_of(shared)
    shutil.copytree(tmp_path / "second", tmp_path / "third")
    finish(experiment(codecs=[{"name": "shift", "points": [6]}], limit=3, store="shared"), tmp_path / "third")
    shutil.rmtree(tmp_path / "second")
    out = store("clean", shared, "--yes")[1]  # The copy needs less than its original, which is gone.
    assert f"run {tmp_path / 'second'}" in out and f"run {tmp_path / 'first'}" in out
    assert {*everything} <= {*files_of(shared)}


def test_a_part_that_is_computed_takes_nothing_from_the_reference_of_its_run(tmp_path, experiment, store):
    shared = tmp_path / "shared"
    codecs = [SHIFT, {"name": "jpeg", "points": [30]}]
    path = experiment(codecs=codecs, limit=3, store="shared")
    run(load_experiment(path), tmp_path / "run", source=path)
    everything = collections(store, shared)
    [reference] = (shared / "references").iterdir()
    whole = json.loads(reference.read_text())["fingerprints"]
    part = Selection(codec=("jpeg",), task=("distance",))
    run(load_experiment(path), tmp_path / "run", RunOptions(only=part), source=path)
    assert json.loads(reference.read_text())["fingerprints"] == whole
    make_old(shared)
    store("clean", shared, "--yes")
    assert collections(store, shared) == everything
    data = reference.read_bytes()
    reference.write_bytes(data[:-40])
    run(load_experiment(path), tmp_path / "run", RunOptions(only=part), source=path)
    assert reference.read_bytes() == data[:-40]  # What the whole needs is not known, so `clean` must go on refusing.
    run(load_experiment(path), tmp_path / "run", source=path)
    assert json.loads(reference.read_text())["fingerprints"] == whole


def test_an_expired_lease_is_listed_and_its_shards_go_when_it_is_named(tmp_path, experiment, store):
    finish(experiment(codecs=[SHIFT], store="shared", limit=3), tmp_path / "run")
    shared = tmp_path / "shared"
    held = [each["digest"] for each in json.loads(store("ls", shared, "--json")[1]) if each["kind"] == "streams"]
    shutil.rmtree(shared / "references")
    make_old(shared)
    lease = {"owner": "ann", "host": "elsewhere", "pid": 1, "run": "/gone/run", "fingerprints": held, "beat": time.time() - DAY}
    Folder(shared).write_json("leases/elsewhere-1-1.json", lease)
    out = store("clean", shared, "--yes")[1]
    assert "kept for ann on elsewhere" in out and "run /gone/run" in out
    assert collections(store, shared) == {("streams", "shift")}
    code, _, errors = store("clean", shared, "--run", "/gone/other")
    assert code == 2 and re.search("no expired lease and no reference", errors), errors
    store("clean", shared, "--run", "/gone/run", "--yes")
    assert [name for name in files_of(shared) if "/index-" not in name] == []
    (shared / "leases" / "x.json").write_text("{")
    code, _, errors = store("clean", shared)
    assert code == 2 and re.search(r"x\.json is no readable lease", errors), errors


def test_half_written_files_go_and_others_stay(tmp_path, experiment, store):
    finish(experiment(codecs=[SHIFT], limit=3), tmp_path / "run")
    place = tmp_path / "run" / "store" / "streams"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f"a.tmp-{process_space()}-{dead.pid}-0", "b.tmp-elsewhere-1-0", "c.parquet.lock", "diary.txt"]
    for name in names:
        (place / name).write_text("x")
    (place / "young.tmp-elsewhere-1-0").write_text("x")
    for name in names:
        os.utime(place / name, (time.time() - 2 * DAY,) * 2)
    store("clean", tmp_path / "run", "--yes")
    assert sorted(path.name for path in place.iterdir() if path.is_file()) == ["diary.txt", "young.tmp-elsewhere-1-0"]


def test_no_run_begins_while_a_store_is_cleaned(tmp_path):
    from icmbench.harness.store.cleaning import cleaning_lease

    folder = Folder(tmp_path / "store")
    refuse_while_cleaned(folder)
    with cleaning_lease(folder), pytest.raises(UserError, match=r"is being cleaned \(process \d+ of"):
        refuse_while_cleaned(folder)
    refuse_while_cleaned(folder)


@pytest.mark.parametrize("target", ["disk", "memory://copy-of-a-part"])
def test_a_run_on_a_copied_part_computes_nothing(tmp_path, experiment, store, calls, target):
    target = str(tmp_path / "disk") if target == "disk" else target
    everything = [SHIFT, {"name": "shaky", "label": "trembling", "points": [4]}, {"name": "picky", "points": [4]}]
    finish(experiment(codecs=everything, limit=4), tmp_path / "whole", keep=True)
    code, out, _ = store("copy", tmp_path / "whole", target, "--codec", "shift", "trembling", "--task", "distance", "--pictures")
    assert code == 0 and "4 claims" in out and "12 pictures" in out, out
    assert collections(store, target) == {("streams", "shift"), ("streams", "shaky"), ("predictions", "distance")}
    assert store("verify", target)[0] == 0
    part = experiment(codecs=everything[:2], limit=4, store=target, tasks=[{"name": "distance", "dataset": "photos"}])
    calls()
    finish(part, tmp_path / "part", keep=True)
    assert calls() == {}
    assert "0 rows in 0 shards" in store("copy", tmp_path / "whole", target, "--codec", "shift")[1]
    # Back, into a store that is new, all of it.
    assert store("copy", target, tmp_path / "back")[0] == 0
    assert collections(store, tmp_path / "back") == collections(store, target)
    code, _, errors = store("copy", tmp_path / "whole", target, "--codec", "nothing")
    assert code == 2 and re.search(r"--codec nothing: .* it has picky, shaky, shift, trembling", errors), errors


def test_what_the_destination_holds_stands(tmp_path, experiment, store, calls):
    """Two runs of a decoder that is not deterministic: each store keeps its own realisation as the first."""
    path = experiment(codecs=[SHAKY, SHIFT], limit=4, anchor="shift")
    runs = [tmp_path / "a", tmp_path / "b"]
    scores = [finish(path, each).scores for each in runs]
    first = dict.fromkeys(runs)
    for each in runs:
        first[each] = {path.name: path.read_bytes() for path in (each / "store" / "claims").rglob("*.0")}
    assert first[runs[0]] != first[runs[1]]
    assert "4 claims" in store("copy", *runs)[1]
    claims = {path.name: path.read_bytes() for path in (runs[1] / "store" / "claims").rglob("*") if path.is_file()}
    assert {name: data for name, data in claims.items() if name.endswith(".0")} == first[runs[1]]
    assert sum(name.endswith(".1") for name in claims) == 4
    rows = {each["about"].get("codec"): each["rows"] for each in json.loads(store("ls", runs[1], "--json")[1])}
    assert rows["shaky"] == 8 and rows["shift"] == 4
    assert "0 rows in 0 shards" in store("copy", *runs)[1] and store("verify", runs[1])[0] == 0
    calls()
    again = finish(path, runs[1]).scores
    assert calls() == {} and again.value.tolist() == scores[1].value.tolist()


def test_damaged_shards_are_left_out_of_a_copy(tmp_path, experiment, store):
    finish(experiment(codecs=[SHIFT], limit=3), tmp_path / "run")
    shard = sorted((tmp_path / "run" / "store" / "streams").rglob("0*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[::-1])
    code, _, error = store("copy", tmp_path / "run", tmp_path / "copy")
    assert code == 1 and shard.name in error and "its bytes are not those of its name" in error
    assert store("verify", tmp_path / "copy")[0] == 0


def test_links_are_never_followed(tmp_path, experiment, store):
    path = experiment(codecs=[SHIFT], limit=3)
    finish(path, tmp_path / "run", keep=True)
    place = tmp_path / "run" / "store"
    outside = tmp_path / "outside"
    shutil.copytree(place / "streams", outside)
    shutil.rmtree(place / "streams")
    (place / "streams").symlink_to(outside)
    (place / "predictions" / ("0" * 20)).symlink_to(tmp_path)
    (place / "contexts" / f"{'0' * 20}.npz").symlink_to("/etc/passwd")
    os.mkfifo(place / "contexts" / f"{'1' * 20}.npz")
    make_old(place)
    before = files_of(outside)
    assert {kind for kind, _ in collections(store, place)} == {"predictions"}
    assert "streams" in store("ls", place)[2] and store("verify", place)[0] == 0
    out = store("clean", place, "--yes")[1]
    assert "pictures: streams is a link" in out and files_of(outside) == before and len(list(place.rglob("*.png"))) == 6
    finish(path, tmp_path / "other")
    code, _, errors = store("copy", tmp_path / "other", place)
    assert code == 2 and re.search("which may lead out of the store", errors), errors


def test_what_is_no_store_is_one_sentence(tmp_path, store, photos):
    code, _, errors = store("ls", tmp_path / "nowhere")
    assert code == 2 and re.search("there is no such folder", errors), errors
    code, _, errors = store("clean", photos, "--yes")
    assert code == 2 and re.search("is no store and no run folder", errors), errors
    code, _, errors = store("copy", photos, tmp_path / "x")
    assert code == 2 and re.search("is no store and no run folder", errors), errors


def test_a_store_of_the_first_format_is_refused(tmp_path, store, experiment):
    import pyarrow as pa

    old = tmp_path / "old" / "streams" / "photos" / "shift" / "bits=2"
    old.mkdir(parents=True)
    pq.write_table(pa.table({"id": ["a"]}), old / "000000-0123456789abcdef0123.parquet")
    code, _, errors = store("du", tmp_path / "old")
    assert code == 2 and re.search("old is of another format than the store of this icmbench, which has format 2", errors), errors
    (tmp_path / "old" / "environment.json").write_text('{"format": 1, "python": "3"}')
    code, _, errors = store("verify", tmp_path / "old")
    assert code == 2 and "old is of another format" in errors and errors.count("\n") == 1


def test_hostile_names_reach_no_terminal(tmp_path, store):
    from icmbench.harness.store.store import STREAM

    made = Store(tmp_path / "store").streams('["\\u001b", null]', {"codec": "\x1b[2J\n../..", "point": "[red]"})
    import numpy as np

    from icmbench.harness.store.keys import row_key

    row = dict.fromkeys(STREAM.names) | {"key": row_key("0", ""), "source": "0", "facts": "", "stream": "x", "data": b"x"}
    made.append([row | {"bytes": np.int64(1)}])
    (tmp_path / "store" / "streams" / "..\x1b[2J.parquet").write_text("x")
    for arguments in (("ls",), ("ls", "--long"), ("du",), ("verify",), ("clean",)):
        _, out, error = store(arguments[0], tmp_path / "store", *arguments[1:])
        assert not {"\x1b", "\x07"} & set(out + error)
    assert "a stream is not the one of its recorded hash" in store("verify", tmp_path / "store")[1]
