"""What `plan` says of the standard sets, from a few measured images."""

import pandas as pd
import pyarrow.parquet as pq
import pytest

from icmbench.harness.commands.plan import plan, standard
from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.store.store import Store
from icmbench.harness.work.bench import Bench


def test_a_limited_run_tells_what_the_standard_sets_cost(tmp_path, experiment, icmbench):
    loaded = load_experiment(experiment())
    bench = Bench(loaded, Store(tmp_path / "run"))
    assert standard(bench).empty and plan(bench)["seconds"].isna().all()
    run(loaded.model_copy(update={"limit": 3}), tmp_path / "run")
    assert plan(bench)["seconds"].gt(0).all()  # no block of the whole set is there, yet the rates are
    frame = standard(bench).set_index(["part", "set"])
    coco = frame.loc["shift", "COCO val2017"]
    assert (coco["points"], coco["images"]) == (3, 5000)
    times, size = 0.0, 0
    for file in (tmp_path / "run" / "streams").rglob("*.parquet"):
        rows = pq.read_table(file).to_pandas()
        times += (rows.encode_seconds + rows.decode_seconds).median()
        size += file.stat().st_size
    megapixels = (40 * 60 + 60 * 40 + 33 * 47) / 3e6
    assert coco["seconds"] == pytest.approx(5000 * 0.27 / megapixels * times)
    assert coco["bytes"] == pytest.approx(5000 * 0.27 / megapixels * size / 3)
    within = frame.loc["mean-colour", "ImageNet val"]
    assert within["points"] == 4 and frame.loc["distance", "ImageNet val"]["points"] == 3  # the originals are shown to the model
    files = list((tmp_path / "run" / "predictions" / "photos" / "mean-colour").rglob("*.parquet"))
    seconds = pd.concat(pq.read_table(file).to_pandas() for file in files).seconds.median()
    assert within["seconds"] == pytest.approx(4 * 50_000 * seconds)
    shown = icmbench("plan", experiment(), "--out", tmp_path / "run").stdout
    assert "COCO val2017" in shown and "50000 images" in shown
