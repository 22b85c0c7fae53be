"""`plan` estimates the cost of the standard sets from a few measured images."""

import pandas as pd
import pyarrow.parquet as pq
import pytest

from icmbench.harness.commands.plan import estimate_standard_sets, plan
from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.store.folder import Folder
from icmbench.harness.work.bench import Bench


def test_a_limited_run_tells_what_the_standard_sets_cost(tmp_path, experiment, icmbench):
    loaded = load_experiment(experiment())
    bench = Bench(loaded, Folder(tmp_path / "run"))
    assert estimate_standard_sets(bench).empty and plan(bench)["seconds"].isna().all()
    run(loaded.model_copy(update={"limit": 3}), tmp_path / "run")
    assert plan(bench)["seconds"].gt(0).all()  # No block of the whole set has been computed, yet its cost is known.
    frame = estimate_standard_sets(bench).set_index(["part", "set"])
    coco = frame.loc["shift", "COCO val2017"]
    assert (coco["points"], coco["images"]) == (3, 5000)
    times, size = 0.0, 0
    for folder in (tmp_path / "run" / "store" / "streams").iterdir():
        files = [file for file in folder.iterdir() if not file.name.startswith("index")]
        rows = pd.concat(pq.read_table(file).to_pandas() for file in files)
        times += (rows.encode_seconds + rows.decode_seconds).median()
        size += sum(file.stat().st_size for file in files)
    megapixels = (40 * 60 + 60 * 40 + 33 * 47) / 3e6
    assert coco["seconds"] == pytest.approx(5000 * 0.27 / megapixels * times)
    assert coco["bytes"] == pytest.approx(5000 * 0.27 / megapixels * size / 3)
    colour = frame.loc["mean-colour", "ImageNet val"]
    assert colour["points"] == 4 and frame.loc["distance", "ImageNet val"]["points"] == 3  # One pass more: the originals.
    files = [file for file in (tmp_path / "run" / "store" / "predictions").rglob("*.parquet") if "index" not in file.name]
    tables = [pq.read_table(file).to_pandas() for file in files]
    seconds = pd.concat(table for table in tables if "colour" in table).seconds.median()
    assert colour["seconds"] == pytest.approx(4 * 50_000 * seconds)
    printed = icmbench("plan", experiment(), "--out", tmp_path / "run").stdout
    assert "COCO val2017" in printed and "50000 images" in printed
