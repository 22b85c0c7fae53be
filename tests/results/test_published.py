"""Reported curves and tables: what they hold, and that they never pass for measured ones."""

import json

import numpy as np
import pytest

from icmbench.results.curves import REPORTED_LINE, draw, inline_svg, styles
from icmbench.results.published import REPORTED, reported_curves, reported_tables, with_reported
from icmbench.results.report import write_report
from icmbench.results.scores import ScoresError, codecs, keys, normalise
from icmbench.results.tables import bdrate_frame


@pytest.fixture
def frame(scores):
    return normalise(scores)


@pytest.fixture
def reported(tmp_path):
    path = tmp_path / "paper.csv"
    path.write_text("codec,dataset,bpp,AP,psnr\nHiFi,COCO,0.1,12,25\nHiFi,COCO,0.2,20,27\nHiFi,COCO,0.4,26,29\n")
    return reported_curves(path)


def test_what_comes_with_the_package():
    curves = reported_curves()
    assert set(curves["codec"]) == {"StableCodec" + REPORTED} and set(curves["dataset"]) == {"Kodak", "CLIC2020", "DIV2K"}
    row = curves[(curves["dataset"] == "Kodak") & (curves["metric"] == "lpips")].iloc[0]
    assert (row["bpp"], row["value"], row["higher_is_better"]) == (0.00579, 0.30967, False)
    tables = dict(reported_tables())
    slim = next(frame for title, frame in tables.items() if title.startswith("SLIM, Table 1"))
    assert slim.set_index("Codec").loc["SLIM"].tolist() == ["-94.56", "-91.73"]
    assert all(REPORTED in title for title in tables) and len(tables) >= 14


def test_reported_curves_join_the_keys_they_match(frame, reported):
    joined = with_reported(frame, reported)
    mine = joined[joined["codec"] == "HiFi" + REPORTED]
    assert {*map(tuple, mine[["dataset", "task", "metric", "reference"]].drop_duplicates().to_numpy())} == {
        ("coco", "yolox", "AP", "labels"),
        ("coco", "fidelity", "psnr", "source"),
    }  # neither other datasets nor agreement
    assert len(with_reported(frame, None)) == len(frame)


def test_reported_curves_are_dashed_hollow_and_marked(frame, reported):
    key = next(key for key in keys(frame) if key.task == "yolox" and key.metric == "AP")
    figure = draw(frame, key, styles(codecs(frame)), reported)
    line = next(line for line in figure.axes[0].lines if np.array_equal(line.get_ydata(), [12, 20, 26]))
    assert line.get_markerfacecolor() == "none" and line.is_dashed()
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "HiFi (reported)"
    looks = styles(codecs(with_reported(frame, reported)))
    assert looks["HiFi (reported)"].line == REPORTED_LINE and looks["jpeg"] == styles(codecs(frame))["jpeg"]
    assert "HiFi (reported), 1: AP 12" in inline_svg(with_reported(frame, reported), key, looks)


def test_they_stand_in_bd_only_when_asked_for(frame, reported, tmp_path):
    few = frame[frame["task"] == "yolox"]
    bdrate = bdrate_frame(few, "jpeg")
    page = write_report(tmp_path, few, bdrate, reported=reported).read_text(encoding="utf-8")
    assert "as reported by the papers, not measured here" in page and "<span>HiFi (reported)</span>" in page
    assert "HiFi" not in (tmp_path / "report" / "bdrate.md").read_text() + (tmp_path / "report" / "scores.md").read_text()
    asked = bdrate_frame(with_reported(few, reported), "jpeg")
    assert np.isfinite(asked.set_index("codec").loc["HiFi (reported)", "bd_rate_percent"]).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "neither curves nor tables"),
        ("{", "cannot be read as a JSON file"),
        (json.dumps({"curves": [{"codec": "a", "source": "b", "bpp": [1, 2], "metrics": {"AP": [1, 2, 3]}}]}), "as many numbers"),
        (json.dumps({"curves": [{"codec": "a"}]}), "a curve needs codec, source, bpp and metrics"),
    ],
)
def test_malformed_files(text, message, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ScoresError, match=message):
        reported_curves(path)


def test_malformed_tables(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"tables": [{"source": "a", "title": "b", "columns": ["x", "y"], "rows": [[1]]}]}))
    with pytest.raises(ScoresError, match="table 1 needs source, title, columns and rows that fit"):
        reported_tables(path)
