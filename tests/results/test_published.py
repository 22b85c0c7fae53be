"""Curves and tables that papers report: their content, and that they never pass for measured ones."""

import json

import numpy as np
import pandas as pd
import pytest

from icmbench.results.curves import REPORTED_LINE, codec_styles, curves_svg, draw_curves
from icmbench.results.published import REPORTED, reported_curves, reported_tables, with_reported
from icmbench.results.report import write_report
from icmbench.results.scores import ScoresError, codec_names, curve_keys, normalise
from icmbench.results.tables import bdrate_frame


@pytest.fixture
def reported(tmp_path):
    path = tmp_path / "paper.csv"
    path.write_text("codec,dataset,bpp,AP,psnr\nHiFi,COCO,0.1,12,25\nHiFi,COCO,0.2,20,27\nHiFi,COCO,0.4,26,29\n")
    return reported_curves(path)


def test_the_package_comes_with_curves_and_tables():
    curves = reported_curves()
    assert set(curves["codec"]) == {"StableCodec" + REPORTED} and set(curves["dataset"]) == {"Kodak", "CLIC2020", "DIV2K"}
    row = curves[(curves["dataset"] == "Kodak") & (curves["metric"] == "lpips")].iloc[0]
    assert (row["bpp"], row["value"], row["higher_is_better"]) == (0.00579, 0.30967, False)
    tables = dict(reported_tables())
    slim = next(frame for title, frame in tables.items() if title.startswith("SLIM, Table 1"))
    assert slim.set_index("Codec").loc["SLIM"].tolist() == ["-94.56", "-91.73"]
    assert all(REPORTED in title for title in tables) and len(tables) >= 14


def test_reported_curves_join_the_keys_they_match(scores, reported):
    joined = with_reported(scores, reported)
    added = joined[joined["codec"] == "HiFi" + REPORTED]
    assert {*map(tuple, added[["dataset", "task", "metric", "reference"]].drop_duplicates().to_numpy())} == {
        ("coco", "yolox", "AP", "labels"),
        ("coco", "fidelity", "psnr", "source"),
    }  # Neither other datasets nor agreement are joined.
    assert len(with_reported(scores, None)) == len(scores)


def test_reported_curves_are_dashed_hollow_and_marked(scores, reported):
    key = next(key for key in curve_keys(scores) if key.task == "yolox" and key.metric == "AP")
    figure = draw_curves(scores, key, codec_styles(codec_names(scores)), reported)
    line = next(line for line in figure.axes[0].lines if np.array_equal(line.get_ydata(), [12, 20, 26]))
    assert line.get_markerfacecolor() == "none" and line.is_dashed()
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "HiFi (reported)"
    looks = codec_styles(codec_names(with_reported(scores, reported)))
    assert looks["HiFi (reported)"].line == REPORTED_LINE and looks["jpeg"] == codec_styles(codec_names(scores))["jpeg"]
    assert "HiFi (reported), 1: AP 12" in curves_svg(with_reported(scores, reported), key, looks)


def test_reported_curves_take_part_in_bd_rates_only_on_request(scores, reported, tmp_path):
    few = scores[scores["task"] == "yolox"]
    bdrate = bdrate_frame(few, "jpeg")
    page = write_report(tmp_path, few, bdrate, reported=reported).read_text(encoding="utf-8")
    assert "as reported by the papers, not measured here" in page and "<span>HiFi (reported)</span>" in page
    assert "HiFi" not in (tmp_path / "report" / "bdrate.md").read_text() + (tmp_path / "report" / "scores.md").read_text()
    with_papers = bdrate_frame(with_reported(few, reported), "jpeg")
    assert np.isfinite(with_papers.set_index("codec").loc["HiFi (reported)", "bd_rate_percent"]).any()


def test_a_curve_that_two_files_report_is_refused_by_normalise(scores, reported):
    joined = with_reported(scores, pd.concat([reported, reported]))
    with pytest.raises(ScoresError, match="two rows of 'AP'"):
        normalise(joined)


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
