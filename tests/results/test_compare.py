"""Two runs side by side: each test makes one difference, and the comparison must name it as the cause."""

import json
from copy import deepcopy

import pandas as pd
import pytest

from icmbench.results.compare import compare
from icmbench.results.scores import ScoresError

ENVIRONMENT = {
    "packages": {"numpy": "2.1", "pillow": "13.0.0"},
    "hardware": {"processor": "x", "gpus": []},
    "codecs": {f"jpeg quality={q}": {"codec": "jpeg", "settings": {"quality": q, "subsampling": "4:2:0"}} for q in (10, 30)},
    "tasks": {"top": {"model": {"weights": "aa"}, "version": 1}},
    "datasets": {"photos": {"images": 4, "preprocessing": "native", "limit": None}},
}
NAMES = [f"{k}.png" for k in range(4)]


class Run:
    """Writes a small run folder like the harness; a test changes the attributes first."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = deepcopy(ENVIRONMENT)
        self.values = {"uncompressed": 80.0, "quality=10": 60.0, "quality=30": 70.0}
        self.sources = [f"s{k}" for k in range(4)]
        self.bytes = {"quality=10": [100] * 4, "quality=30": [300] * 4}
        self.pixels = {"quality=10": [f"p{k}" for k in range(4)], "quality=30": [f"q{k}" for k in range(4)]}
        self.realisation = ""

    def write(self):
        """Write the folder and return its path."""
        sources = self.folder / "sources" / "photos"
        sources.mkdir(parents=True)
        sizes = {"id": NAMES, "height": 10, "width": 10}
        pd.DataFrame({**sizes, "sha256": self.sources}).to_parquet(sources / "00000-a.parquet")
        rows = []
        for point, value in self.values.items():
            common = {"dataset": "photos", "task": "top", "metric": "top1", "unit": "%", "value": value}
            if point == "uncompressed":
                rows.append({**common, "codec": "uncompressed", "point": "-"})
                continue
            streams = self.folder / "streams" / "photos" / "jpeg" / point
            streams.mkdir(parents=True)
            columns = {**sizes, "bytes": self.bytes[point], "sha256": self.pixels[point]}
            pd.DataFrame(columns).to_parquet(streams / "00000-b.parquet")
            bpp = sum(self.bytes[point]) * 8 / 400
            rows.append({**common, "codec": "jpeg", "point": point, "bpp": bpp, "realisation": self.realisation})
        pd.DataFrame(rows).to_csv(self.folder / "scores.csv", index=False)
        (self.folder / "environment.json").write_text(json.dumps(self.environment))
        return self.folder


@pytest.fixture
def runs(tmp_path):
    return Run(tmp_path / "a"), Run(tmp_path / "b")


def compare_runs(runs, **options):
    return compare(*(run.write() for run in runs), **options)


def test_equal_runs(runs):
    comparison = compare_runs(runs)
    assert (
        comparison.sentences == ["All 3 scores and their rates are equal."]
        and not len(comparison.moves)
        and not len(comparison.facts)
    )
    assert comparison.images[["images", "bytes", "reconstructions"]].to_numpy().tolist() == [[4, 0, 0], [4, 0, 0]]


def test_a_codec_setting(runs):
    b = runs[1]
    b.environment["codecs"]["jpeg quality=10"]["settings"]["subsampling"] = "4:4:4"
    b.values["quality=10"], b.bytes["quality=10"], b.pixels["quality=10"] = 61.5, [110, 110, 120, 100], ["x", "y", "z", "p3"]
    comparison = compare_runs(runs)
    assert comparison.moves["column"].tolist() == ["value", "bpp"] and comparison.moves["change"].tolist() == pytest.approx(
        [1.5, 0.8]
    )
    assert comparison.sentences == [
        "1 of 3 shared scores moved: 1 codecs, 1 tasks.",
        "jpeg quality=10 on photos, top: top1 60 to 61.5 (+1.5), rate in bpp 8 to 8.8 (+0.8). The streams differ in size in 3 of 4 "
        "images; what differs there: settings / subsampling 4:2:0 to 4:4:4.",
    ]
    assert comparison.facts.to_numpy().tolist() == [["codecs", "jpeg quality=10 / settings / subsampling", "4:2:0", "4:4:4"]]
    assert "| jpeg | quality=10 |" in str(comparison).replace("  ", " ").replace("  ", " ") and "## Facts that differ" in str(
        comparison
    )


def test_a_library_behind_equal_settings(runs):
    b = runs[1]
    b.environment["packages"]["pillow"] = "14.0.0"
    b.values["quality=30"], b.pixels["quality=30"] = 69.0, ["x", "q1", "q2", "q3"]
    assert compare_runs(runs).sentences[1].endswith(
        "Streams of equal size decode to other pixels in 1 of 4 images; its own facts agree, what differs around it: "
        "pillow 13.0.0 to 14.0.0."
    )  # fmt: skip


def test_weights_of_a_task_model(runs):
    b = runs[1]
    b.environment["tasks"]["top"]["model"]["weights"] = "bb"
    b.environment["packages"]["numpy"] = "2.2"
    b.values = {point: value - 1 for point, value in b.values.items()}
    sentences = compare_runs(runs).sentences
    assert len(sentences) == 4 and all("model / weights aa to bb" in sentence for sentence in sentences[1:])
    assert "uncompressed on photos, top" in sentences[1]
    assert "are equal in all 4 images: the task moved" in sentences[2] and not any("numpy" in sentence for sentence in sentences)


def test_images(runs):
    b = runs[1]
    b.sources = ["s0", "s1", "other", "s3"]
    b.environment["datasets"]["photos"]["preprocessing"] = "resize:8x8"
    b.environment["codecs"]["jpeg quality=10"]["settings"]["quality"] = 11
    b.values["quality=10"], b.bytes["quality=10"] = 59.0, [100, 100, 90, 100]
    sentence = compare_runs(runs).sentences[1]
    assert (
        "The source pixels differ in 1 of 4 images; what differs there: datasets / preprocessing native to resize:8x8." in sentence
    )


def test_nothing_recorded_differs(runs):
    runs[1].values["quality=10"] = 59.0
    assert compare_runs(runs).sentences[1].endswith("the task moved; no recorded fact differs.")


def test_tolerance_and_rows_of_one_run(runs):
    b = runs[1]
    b.values["quality=10"] += 1e-4
    del b.values["quality=30"]
    comparison = compare_runs(runs, tolerance=1e-5)
    lone = comparison.moves[comparison.moves["b"].isna()]
    assert len(comparison.moves) == len(lone) and lone["point"].unique().tolist() == ["quality=30"]
    assert "1 scores are in the first run alone, of jpeg quality=30; no recorded fact differs." in comparison.sentences


@pytest.mark.parametrize("marks", [("seed=1 0123abcd", "seed=1 99ffee00"), ("0123abcd", "x00012345")])
def test_realisations_match_by_seed(runs, marks):
    runs[0].realisation, runs[1].realisation = marks
    assert compare_runs(runs).compared == 3


def test_missing_files_are_named(runs, tmp_path):
    folders = [run.write() for run in runs]
    (folders[1] / "environment.json").unlink()
    assert compare(*folders).sentences[-1].endswith("has no readable environment.json: its facts are unknown.")
    with pytest.raises(ScoresError, match=r"no scores\.csv; give the --out folder"):
        compare(folders[0], tmp_path)
