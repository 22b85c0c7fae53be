"""The loop end to end: what is computed, what is not computed again, and the resulting scores."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.results.columns import SCORE_COLUMNS
from icmbench.tasks.base import DatasetError

TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]


def scores_without_times(folder):
    return pd.read_csv(folder / "scores.csv").drop(columns=TIMES)


def test_scores_are_what_a_short_loop_gives(tmp_path, photos, experiment):
    result = run(load_experiment(experiment()), tmp_path / "run")
    assert not result.missing and not result.outcome.failures
    table = pd.read_csv(tmp_path / "run" / "scores.csv")
    assert list(table.columns) == SCORE_COLUMNS
    assert (tmp_path / "run" / "bdrate.csv").exists() and Path(result.report).exists()

    from harness_plugins import Shift

    codec = Shift(4)
    images = [np.asarray(Image.open(path)) for path in sorted(photos.iterdir())]
    streams = [codec.compress(image) for image in images]
    decoded = [codec.decompress(stream) for stream in streams]
    pixels = np.array([image.shape[0] * image.shape[1] for image in images])
    bits = np.array([8 * len(stream) for stream in streams])
    row = table[(table.codec == "shift") & (table.point == "bits=4") & (table.metric == "distance")].iloc[0]
    assert row.value == pytest.approx(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(decoded, images)]))
    assert row.bpp == pytest.approx(bits.sum() / pixels.sum())
    assert row.payload_bpp == pytest.approx((bits - 96).sum() / pixels.sum())
    assert row.mean_image_bpp == pytest.approx((bits / pixels).mean())
    assert (row.expected, row.scored, row.failed, row.limited) == (10, 10, 0, False)
    assert row.reference == "source"
    within = table[(table.point == "bits=4") & (table.metric == "within")].iloc[0]
    close = [np.abs(a.mean((0, 1)) - b.mean((0, 1))).max() < 2 for a, b in zip(decoded, images)]
    assert within.value == pytest.approx(100 * np.mean(close))
    assert within.reference == "original"
    ceiling = table[table.codec == "uncompressed"]
    assert list(ceiling.metric) == ["within"] and ceiling.value.iloc[0] == 100 and ceiling.bpp.isna().all()


def test_a_second_run_calls_no_codec_and_no_model(tmp_path, experiment, calls):
    path = experiment()
    run(load_experiment(path), tmp_path / "run")
    first = scores_without_times(tmp_path / "run")
    # 3 points x 10 images, decoded once for both tasks; the model predicts on the originals too.
    assert calls() == {"compress shift": 30, "context": 1, "decompress shift": 30, "distance": 3 * 5, "model": 40}
    result = run(load_experiment(path), tmp_path / "run")
    assert calls() == {}
    assert (result.outcome.codec_images, result.outcome.model_images) == (0, 0)
    pd.testing.assert_frame_equal(first, scores_without_times(tmp_path / "run"))


def test_only_what_depends_on_a_change_is_redone(tmp_path, experiment, calls, photos):
    run(load_experiment(experiment()), tmp_path / "run")
    calls()
    run(load_experiment(experiment(codecs=[{"name": "shift", "points": [6, 4, 2, 1]}])), tmp_path / "run")
    assert calls() == {"compress shift": 10, "decompress shift": 10, "distance": 5, "model": 10}
    Image.new("RGB", (40, 60), (9, 99, 199)).save(photos / "1.png")
    run(load_experiment(experiment()), tmp_path / "run")
    assert calls() == {"compress shift": 3, "decompress shift": 3, "distance": 3, "model": 4}  # One image at three points.
    only = [{"name": "distance", "dataset": "photos", "label": "again"}]
    run(load_experiment(experiment(tasks=only)), tmp_path / "run")
    assert calls() == {}  # The label is another, the predictions are the same.
    run(load_experiment(experiment(tasks=[{"name": "lift", "dataset": "photos"}])), tmp_path / "run")
    counted = calls()
    assert counted.keys() == {"decompress shift", "distance"}  # The streams are stored, so nothing is compressed.
    assert counted["decompress shift"] == 30


def test_touched_files_are_hashed_again_but_not_coded_again(tmp_path, experiment, calls, photos):
    run(load_experiment(experiment()), tmp_path / "run")
    calls()
    for path in photos.iterdir():
        path.touch()
    run(load_experiment(experiment()), tmp_path / "run")
    assert calls() == {}


def test_two_processes_give_the_same_scores_as_one(tmp_path, experiment, calls):
    tasks = [{"name": "mean-colour", "dataset": "photos", "model": {"name": "averager"}, "reference": "original"}]
    path = experiment(tasks=tasks)
    run(load_experiment(path), tmp_path / "one")
    calls_of_one = calls()
    result = run(load_experiment(path), tmp_path / "two", RunOptions(workers=2))
    assert not result.missing and calls() == calls_of_one
    pd.testing.assert_frame_equal(scores_without_times(tmp_path / "one"), scores_without_times(tmp_path / "two"))
    images = [pd.read_parquet(tmp_path / name / "images.parquet") for name in ("one", "two")]
    assert images[0].notna().all(axis=None) and images[0].equals(images[1])
    shards = (tmp_path / "two" / "store").rglob("0*.parquet")
    assert {path.name.partition("-")[0] for path in shards} == {"000010"}, "what workers wrote in parts is merged"


def test_limit_restricts_and_marks(tmp_path, experiment):
    limited = load_experiment(experiment()).model_copy(update={"limit": 3})
    result = run(limited, tmp_path / "run")
    assert result.scores.limited.all()
    assert (result.scores.expected == 3).all()


def test_seeds_are_realisations_of_one_point(tmp_path, experiment):
    path = experiment(codecs=[{"name": "shift", "points": [4], "seeds": [0, 1]}])
    result = run(load_experiment(path), tmp_path / "run")
    assert set(result.scores[result.scores.codec == "shift"].realisation) == {"seed=0", "seed=1"}
    with pytest.raises(UserError, match=r"codecs\.0\.seeds: codec 'jpeg' takes no seed"):
        run(load_experiment(experiment(codecs=[{"name": "jpeg", "seeds": [0]}], anchor=None)), tmp_path / "run")


def test_a_shaky_decoder_never_mixes_realisations(tmp_path, experiment, calls):
    shaky = [{"name": "shaky", "points": [4]}]
    both = experiment(codecs=shaky, anchor=None)
    tasks = load_experiment(both).tasks
    run(load_experiment(both), tmp_path / "run")
    first = scores_without_times(tmp_path / "run")
    again = run(load_experiment(both), tmp_path / "run")
    assert again.outcome.codec_images == 0
    pd.testing.assert_frame_equal(first, scores_without_times(tmp_path / "run"))
    assert first[first.codec == "shaky"].realisation.nunique() == 1
    calls()
    third = tasks[1].model_copy(update={"name": "lift", "label": "third"})
    result = run(load_experiment(both).model_copy(update={"tasks": [*tasks, third]}), tmp_path / "run")
    # A new task needs new pixels, so every task sees the new realisation; nothing is compressed again.
    counted = calls()
    assert counted.pop("distance") >= 2 * 4 and counted == {"decompress shaky": 10, "model": 10}
    assert not result.missing
    rows = result.scores[result.scores.codec == "shaky"]
    assert rows.realisation.nunique() == 1 and rows.realisation.iloc[0] != first[first.codec == "shaky"].realisation.iloc[0]
    assert rows[rows.task == "third"].value.iloc[0] == rows[rows.task == "distance"].value.iloc[0]


def test_kept_reconstructions_serve_later_tasks(tmp_path, experiment, calls):
    shaky = [{"name": "shaky", "points": [4]}]
    run(load_experiment(experiment(codecs=shaky, anchor=None)), tmp_path / "run", RunOptions(keep=True))
    first = scores_without_times(tmp_path / "run")
    pictures = list((tmp_path / "run" / "store" / "reconstructions").rglob("*.png"))
    assert len(pictures) == 10
    calls()
    tasks = [{"name": "lift", "dataset": "photos"}]
    result = run(load_experiment(experiment(codecs=shaky, tasks=tasks, anchor=None)), tmp_path / "run", RunOptions(keep=True))
    assert calls().keys() == {"distance"}
    assert result.scores.value.iloc[0] == first[first.metric == "distance"].value.iloc[0]


def test_failures_name_their_cells_and_lose_nothing_else(tmp_path, experiment, calls, monkeypatch):
    monkeypatch.setenv("ICMBENCH_PICKY", "1")
    codecs = [{"name": "shift", "points": [4]}, {"name": "picky", "points": [4]}, {"name": "small", "points": [4]}]
    path = experiment(codecs=codecs)
    result = run(load_experiment(path), tmp_path / "run")
    reasons = {failure.cell: failure.reason for failure in result.outcome.failures}
    assert set(reasons) == {"photos / picky bits=4 / block 0", *(f"photos / small bits=4 / block {k}" for k in range(3))}
    assert reasons["photos / picky bits=4 / block 0"].startswith("ArithmeticError: too dark")
    assert "not uint8 (33, 47, 3)" in reasons["photos / small bits=4 / block 0"]
    assert sorted(result.missing) == sorted(
        [f"photos / small bits=4 / block {k} / {task}" for k in range(3) for task in ("mean-colour", "distance")]
        + [f"photos / picky bits=4 / block 0 / {task}" for task in ("mean-colour", "distance")]
    )
    assert set(result.scores.codec) == {"uncompressed", "shift"}
    calls()
    monkeypatch.delenv("ICMBENCH_PICKY")
    result = run(load_experiment(path), tmp_path / "run")
    assert calls()["compress picky"] == 4  # Only the block that failed is computed.
    assert set(result.scores.codec) == {"uncompressed", "shift", "picky"}


def test_a_damaged_image_is_an_error_that_names_it(tmp_path, experiment, photos):
    whole = (photos / "5.png").read_bytes()
    (photos / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DatasetError, match=r"5\.png"):  # Its header tells before anything is coded.
        run(load_experiment(experiment(codecs=[{"name": "shift", "points": [4]}])), tmp_path / "run")
    (photos / "5.png").write_bytes(whole[: len(whole) // 2])  # Only its pixels tell.
    result = run(load_experiment(experiment(codecs=[{"name": "shift", "points": [4]}])), tmp_path / "run")
    assert any("5.png" in failure.reason for failure in result.outcome.failures)
    assert {cell.split(" / ")[2] for cell in result.missing} == {"block 1"}


def test_shards_of_several_jobs_make_one_run(tmp_path, experiment, calls):
    path = experiment()
    for part in (1, 2, 3):
        result = run(load_experiment(path), tmp_path / "run", RunOptions(shard=(part, 3)))
        assert result.report is None and not result.outcome.failures
    counts = calls()
    assert counts["compress shift"] == 30 and counts["model"] == 40
    result = run(load_experiment(path), tmp_path / "run")
    assert not result.missing and calls() == {}
