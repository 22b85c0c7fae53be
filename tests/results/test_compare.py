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
        self.codec, self.realisation = "jpeg", ""

    def write(self):
        """Write the folder and return its path."""
        self.folder.mkdir()
        pd.DataFrame({"dataset": "photos", "id": NAMES, "source": self.sources}).to_parquet(self.folder / "images.parquet")
        rows, streams = [], []
        for point, value in self.values.items():
            common = {"dataset": "photos", "task": "top", "metric": "top1", "unit": "%", "value": value}
            if point == "uncompressed":
                rows.append({**common, "codec": "uncompressed", "point": "-"})
                continue
            # The harness names a seed after the point.
            seed = "".join(f".{mark}" for mark in self.realisation.split() if mark.startswith("seed="))
            facts = {"codec": self.codec, "point": point + seed, "dataset": "photos", "height": 10, "width": 10}
            columns = {"id": NAMES, "bytes": self.bytes[point], "sha256": self.pixels[point]}
            streams.append(pd.DataFrame({**facts, **columns}))
            bpp = sum(self.bytes[point]) * 8 / 400
            rows.append({**common, "codec": self.codec, "point": point, "bpp": bpp, "realisation": self.realisation})
        pd.concat(streams).to_parquet(self.folder / "streams.parquet")
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


def test_names_that_no_file_could_have(runs):
    """Streams are found by the names of codec and point as they are, with their seed."""
    for run in runs:
        run.codec, run.realisation = "jpeg 4:2:0 / mine", "seed=1 0123abcd"
        for values in (run.values, run.bytes, run.pixels):
            values["x: [1, 'é']"] = values.pop("quality=10")
    runs[1].values["x: [1, 'é']"], runs[1].bytes["x: [1, 'é']"] = 59.0, [100, 100, 90, 100]
    comparison = compare_runs(runs)
    assert "The streams differ in size in 1 of 4 images" in comparison.sentences[1]
    assert comparison.images["point"].tolist() == ["quality=30.seed=1", "x: [1, 'é'].seed=1"]


def test_pixels_that_one_run_did_not_record_do_not_differ(runs):
    """An image may be unread in one run, and the list of images absent."""
    runs[0].sources = ["s0", None, "s2", "s3"]
    runs[1].sources = ["s0", "s1", "other", "s3"]
    comparison = compare_runs(runs)
    assert comparison.images["sources"].tolist() == [1, 1]
    (runs[1].folder / "images.parquet").unlink()
    assert compare(*(run.folder for run in runs)).images["sources"].tolist() == [0, 0]


def test_images_of_one_run(runs):
    """The second run coded other images: two of them are in the first as well."""
    folders = [run.write() for run in runs]
    for name in ("images.parquet", "streams.parquet"):
        frame = pd.read_parquet(folders[1] / name)
        frame[~frame["id"].isin(NAMES[:2])].replace({"id": {NAMES[3]: "new.png"}}).to_parquet(folders[1] / name)
    assert compare(*folders).images[["images", "sources", "only_a", "only_b"]].to_numpy().tolist() == [[1, 0, 3, 1]] * 2


@pytest.mark.parametrize("name", ["images.parquet", "streams.parquet"])
def test_damaged_references_are_named(runs, name):
    """Columns that are absent, hold something else, or say of one image two things."""
    folders = [run.write() for run in runs]
    whole = pd.read_parquet(folders[1] / name)
    damaged = [
        whole.drop(columns="dataset"),
        whole.assign(id=[[k] for k in range(len(whole))]),
        pd.concat([whole, whole.tail(1)]),
        *([whole.assign(bytes="many")] if "bytes" in whole else [whole.assign(source=[{"a": k} for k in range(len(whole))])]),
    ]
    for frame in damaged:
        frame.to_parquet(folders[1] / name)
        with pytest.raises(ScoresError, match=rf"b/{name} is damaged \(.+\): delete it and run the same experiment again"):
            compare(*folders)
    (folders[1] / name).unlink()
    assert len(compare(*folders).images) == (2 if name == "images.parquet" else 0)


def test_missing_files_are_named(runs, tmp_path):
    folders = [run.write() for run in runs]
    (folders[1] / "environment.json").unlink()
    assert compare(*folders).sentences[-1].endswith("has no readable environment.json: its facts are unknown.")
    with pytest.raises(ScoresError, match=r"no scores\.csv; give the --out folder"):
        compare(folders[0], tmp_path)
