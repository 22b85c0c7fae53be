"""What millions of rows and slow networks need: keys of many rows, files written in parts, many requests at once."""

import hashlib
import threading
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.derive.gathering import Gatherer
from icmbench.harness.store import key_index
from icmbench.harness.store.collection import Collection
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.keys import joined_keys, row_key, row_keys
from icmbench.harness.store.parallel import PARALLEL_REQUESTS, for_each, remove_all
from icmbench.harness.store.parquet_files import read_table, write_parts
from icmbench.harness.store.shards import ShardFiles
from icmbench.harness.store.tidying import compact, store_index
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.prefetch import Prefetcher

LOCAL, REMOTE = fsspec.filesystem("file"), fsspec.filesystem("memory")
WAIT = 10  # Seconds after which a test that waits for another thread fails.


def test_keys_of_many_rows_are_the_beginnings_of_the_hashes_of_their_parts():
    rows = [("ab", None, ""), ("it's", 2, "%s"), ("\0é", 0.5, ("t", 1))]
    texts = ["'ab'\0None\0''", "\"it's\"\x002\0'%s'", "'\\x00é'\x000.5\0('t', 1)"]
    expected = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
    assert row_keys(*zip(*rows, strict=True)) == expected == [row_key(*row) for row in rows]
    assert row_keys([], []) == []


def test_keys_of_a_column_are_joined_whatever_its_pieces():
    keys = [bytes([k]) * 16 for k in range(9)]
    pieces = [pa.array(part, pa.binary(16)) for part in (keys[:4], keys[4:4], keys[4:])]
    column = pa.chunked_array([pieces[0].slice(1), *pieces[1:]])
    assert joined_keys(column) == b"".join(keys[1:]) and joined_keys(column.slice(2, 4)) == b"".join(keys[3:7])
    assert joined_keys(column.slice(0, 0)) == b""


@pytest.mark.parametrize("merge_rows", [0, 3, 100])
def test_of_rows_with_one_key_the_one_written_first_is_found_and_of_its_copies_the_last(monkeypatch, merge_rows):
    monkeypatch.setattr(key_index, "MERGE_ROWS", merge_rows)
    # Two keys that share their first half, and a third one.
    keys = [b"x" * 8 + b"b" * 8, b"x" * 8 + b"a" * 8, b"y" * 16]
    rows = [(0, 5.0), (1, 2.0), (0, 3.0), (2, 1.0), (0, 3.0), (1, 7.0), (0, 4.0)]  # Key and time.
    index = key_index.KeyIndex(lambda numbers: np.array([rows[number][1] for number in numbers]))
    for part in (rows[:3], rows[3:4], rows[4:]):
        index.extend(pa.chunked_array([[keys[k] for k, _ in part]], pa.binary(16)))
    index.sort()
    assert index.find([*keys, b"z" * 16]).tolist() == [4, 1, 3, -1]
    assert [index.find_all(key).tolist() for key in keys] == [[4, 2, 6, 0], [1, 5], [3]]


def test_an_index_of_more_columns_than_are_needed_spares_reading_the_shards(tmp_path, monkeypatch):
    schema = pa.schema([("seconds", pa.float64()), ("machine", pa.string())])
    keys = row_keys(range(3))
    before = Collection(Folder(tmp_path), "predictions", "f", schema, ["seconds", "machine"])
    before.append([{"key": key, "seconds": float(k), "machine": "m"} for k, key in enumerate(keys)])
    store_index(before)
    monkeypatch.setattr(ShardFiles, "read_shards", lambda files, names: iter([(name, None) for name in names]))
    now = Collection(Folder(tmp_path), "predictions", "f", schema, ["seconds"])
    now.refresh()
    assert now.facts(now.find(keys), ["seconds"]).to_pydict() == {"seconds": [0.0, 1.0, 2.0]}


def test_a_table_that_is_written_in_parts_is_read_as_one(tmp_path):
    schema = pa.schema([("name", pa.string()), ("bits", pa.int64())])
    parts = [
        pa.table({"name": ["a", None], "bits": [1, 2]}, schema),
        schema.empty_table(),
        pa.table({"name": ["b"], "bits": [3]}, schema),
    ]
    write_parts(Folder(tmp_path), "parts.parquet", schema, iter(parts))
    assert read_table(Folder(tmp_path), "parts.parquet").to_pydict() == {"name": ["a", None, "b"], "bits": [1, 2, 3]}
    write_parts(Folder(tmp_path), "none.parquet", schema, ())
    assert read_table(Folder(tmp_path), "none.parquet").schema.names == ["name", "bits"]


def test_an_object_store_is_asked_for_many_files_at_once_and_a_disk_for_one():
    together = threading.Barrier(PARALLEL_REQUESTS)

    def wait_for_the_others(number):
        together.wait(WAIT)
        return number

    numbers = range(2 * PARALLEL_REQUESTS)
    assert list(for_each(REMOTE, wait_for_the_others, numbers)) == [*numbers]
    assert list(for_each(LOCAL, lambda number: threading.current_thread().name, "ab")) == [threading.current_thread().name] * 2


@pytest.mark.parametrize("fs", [LOCAL, REMOTE])
def test_files_are_removed_although_some_of_them_are_gone(tmp_path, fs):
    paths = [f"{tmp_path}/{name}" for name in "abc"]
    for path in (paths[0], paths[2]):
        fs.pipe_file(path, b"x")
    remove_all(fs, paths)
    assert not any(map(fs.exists, paths))


@pytest.mark.parametrize("fs", [LOCAL, REMOTE])
def test_an_error_of_one_of_many_requests_is_raised(fs):
    with pytest.raises(FileNotFoundError, match="b"):
        list(for_each(fs, lambda name: fs.cat_file(f"/nowhere/{name}"), ["b"] * 40))


def test_small_shards_of_an_object_store_are_merged():
    folder = Folder("memory://merged")
    columns = pa.schema([("value", pa.int64())])
    rows = Collection(folder, "failures", "f", columns, ["value"])
    keys = row_keys(range(50))
    for k, key in enumerate(keys):
        rows.append([{"key": key, "value": k}])
    names = rows.files.names()
    compact(rows, [names[:20], names[10:40], names[40:]])  # Ten shards are in two groups.
    assert len(names) == 50 and len(rows.files.names()) == 3
    for collection in (rows, Collection(folder, "failures", "f", columns, ["value"])):
        collection.refresh()
        found = collection.find(keys)
        assert (
            collection.read(found, ["value"]).column(0).to_pylist()
            == [*range(50)]
            == collection.facts(found, ["value"])["value"].to_pylist()
        )


def test_small_shards_that_a_worker_wrote_are_fetched_once(monkeypatch):
    reads = []
    monkeypatch.setattr(Folder, "read", lambda folder, name, read=Folder.read: reads.append(name) or read(folder, name))
    schema = pa.schema([("value", pa.int64())])
    worker, parent = (Collection(Folder("memory://fetched"), "failures", "f", schema, ["value"]) for _ in range(2))
    keys = row_keys(range(40))
    for k, key in enumerate(keys):
        worker.append([{"key": key, "value": k}])
    parent.refresh()
    compact(parent, [parent.shards_of(parent.find(keys))])
    merged = parent.files.names()
    assert len(merged) == 1 and len(reads) == len({*reads}) == 40 + 1
    assert parent.read(parent.find(keys), ["value"]).column(0).to_pylist() == [*range(40)]


def test_writes_of_one_cell_happen_in_order_and_those_of_two_at_once():
    order, both = [], threading.Barrier(2)
    first, second = object.__new__(type("Cell", (), {})), object.__new__(type("Cell", (), {}))

    def meet(name):
        both.wait(WAIT)
        order.append(name)

    with Prefetcher(threads=1, writers=2) as prefetcher:
        waits = [prefetcher.write(first, lambda: meet("a")), prefetcher.write(first, lambda: order.append("b"))]
        waits.append(prefetcher.write(second, lambda: meet("c")))
        for wait in waits:
            wait()
    assert {*order} == {"a", "b", "c"} and order.index("a") < order.index("b")
    with Prefetcher(threads=1) as prefetcher:
        assert prefetcher.write(first, threading.get_ident)() == threading.get_ident()


def test_a_gatherer_tells_the_streams_of_a_run_and_their_parts(tmp_path, experiment):
    path = experiment(codecs=[{"name": "shift", "points": [6, 4]}], fail_on_error=True)
    assert not run(load_experiment(path), tmp_path / "run").missing
    bench = Bench(load_experiment(path), Folder(tmp_path / "run"))
    streams = Gatherer(bench).streams
    originals, series = bench.series[0], bench.series[1]
    ids = list(bench.datasets["photos"].ids)
    assert list(streams.found("photos", series).ids) == ids and streams.found("photos", series).decoded.all()
    looked_up, frame, parts = streams.look_up("photos", series), streams.frame("photos", series), streams.parts("photos", series)
    assert streams.pixels("photos", series) == list(looked_up.pixels) == frame["sha256"].tolist()
    assert streams.pixels("photos", originals) == list(streams.look_up("photos", originals).pixels)
    # `Shift` has a header of 96 bits and calls all else y.
    assert parts.itemised == len(ids) and parts.header.tolist() == [96] * len(ids)
    assert parts.bits == {"header": 96 * len(ids), "y": 8 * frame["bytes"].sum() - 96 * len(ids)}
    split = pd.read_csv(tmp_path / "run" / "analyses" / "bit-split.csv").set_index(["point", "part"])["bits"]
    assert split[series.point, "header"] == 96 and split[series.point, "y"] == 8 * frame["bytes"].mean() - 96
    scores = pd.read_csv(tmp_path / "run" / "scores.csv")
    pixels = (frame["height"] * frame["width"]).sum()
    of_point = scores[(scores["codec"] == "shift") & (scores["point"] == series.point)]
    assert np.allclose(of_point["payload_bpp"], (8 * frame["bytes"].sum() - 96 * len(ids)) / pixels)


def test_a_run_folder_on_an_object_store_holds_what_one_on_a_disk_holds(tmp_path, experiment):
    path = experiment(codecs=[{"name": "shift", "points": [6, 4]}], shard_size=1)
    run(load_experiment(path), tmp_path / "run")
    assert not run(load_experiment(path), "memory://run").missing
    far = Folder("memory://run")
    for name in ("analyses/bit-split.csv", "bdrate.csv"):
        assert far.read(name) == (tmp_path / "run" / name).read_bytes()
    shards = [Path(name).name for name in far.fs.find(f"{far.path}/store") if name.endswith(".parquet")]
    near = [file.name for file in (tmp_path / "run" / "store").rglob("*.parquet")]
    assert sorted(name.partition("-")[0] for name in shards) == sorted(name.partition("-")[0] for name in near)
