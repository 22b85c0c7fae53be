"""Files are whole or absent, the first writer wins where that is asked for, and tables are read as they were written."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder, safe_name
from icmbench.harness.store.parquet_files import read_table, write_table
from icmbench.harness.store.rows import from_table, to_table
from icmbench.harness.store.whole_files import process_space

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("boxes", pa.list_(pa.float32())),
        ("count", pa.int64()),
        ("score", pa.float64()),
        ("mask", pa.large_binary()),
        ("names", pa.list_(pa.string())),
    ]
)
ROWS = [
    {"id": "a", "boxes": np.array([1.5, 2, 3, 4], "f4"), "count": np.int64(1), "score": None, "mask": b"\0x", "names": ["p", "q"]},
    {"id": "b", "boxes": np.zeros(0, "f4"), "count": 0, "score": 0.5, "mask": b"", "names": []},
]


def test_rows_survive_parquet(tmp_path):
    store = Folder(tmp_path)
    write_table(store, "x/y.parquet", to_table(ROWS, SCHEMA))
    rows = from_table(read_table(store, "x/y.parquet"), SCHEMA.names)
    assert [row["boxes"].tolist() for row in rows] == [[1.5, 2, 3, 4], []]
    assert rows[0]["boxes"].dtype == np.float32
    assert [{k: v for k, v in row.items() if k != "boxes"} for row in rows] == [
        {"id": "a", "count": 1, "score": None, "mask": b"\0x", "names": ["p", "q"]},
        {"id": "b", "count": 0, "score": 0.5, "mask": b"", "names": []},
    ]


def test_sliced_lists_start_at_their_own_offset(tmp_path):
    table = to_table(ROWS, SCHEMA).slice(1)
    assert from_table(table, ["boxes"])[0]["boxes"].tolist() == []


def test_the_first_writer_wins_only_where_asked(tmp_path):
    store = Folder(tmp_path)
    assert store.write("a", b"1", replace=False)
    assert not store.write("a", b"2", replace=False)
    assert store.read("a") == b"1"
    assert store.write("a", b"3")
    assert store.read("a") == b"3"


def test_object_stores_take_one_conditional_put():
    store = Folder("memory://conditional-put")
    assert store.write("a", b"1", replace=False)
    assert not store.write("a", b"2", replace=False)
    assert store.read("a") == b"1"


def test_leftovers_of_dead_writers_are_swept_and_those_of_the_living_kept(tmp_path):
    import os

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f"x.parquet.tmp-{process_space()}-{pid}-0").write_bytes(b"half")
    (tmp_path / "x.parquet.tmp-elsewhere-1-0").write_bytes(b"half")
    # A container of the same name with process ids of its own, in which that number is another process, or none.
    (tmp_path / f"x.parquet.tmp-{process_space()}9-{dead.pid}-0").write_bytes(b"half")
    Folder(tmp_path).remove_leftovers()
    kept = ["1", str(os.getpid()), str(dead.pid)]
    assert sorted(path.name.split("-")[-2] for path in tmp_path.iterdir()) == sorted(kept)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"x\.parquet is damaged .* delete it"):
        read_table(Folder(tmp_path), "x.parquet")


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "x").write_bytes(b"a file where a folder should be")
    with pytest.raises(UserError, match="cannot write"):
        Folder(tmp_path).write("x/y", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("text", ["../../etc/passwd", "/etc/passwd", "a\0b\n", "x" * 4000, "..", "", ".hidden"])
def test_names_become_one_harmless_component(text):
    name = safe_name(text)
    assert name and len(name) <= 80 and "/" not in name and not name.startswith(".") and name.isprintable()
