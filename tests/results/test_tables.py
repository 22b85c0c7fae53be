"""BD tables, their means, and rates at shares of the ceiling, as frames and as files."""

import math

import numpy as np
import pandas as pd
import pytest

from icmbench.results.bd import bd_rate
from icmbench.results.scores import ScoresError, normalise, read_scores
from icmbench.results.tables import BDRATE_COLUMNS, bdrate_frame, mean_frame, rate_frame, signed_text
from icmbench.results.writers import bdrate_tables, escape_markdown, scores_tables, to_latex, to_markdown, write_csv, write_tables

HOSTILE = r'<b>&"a|b`*\[x](y)\end{x}$%_#~^'


def only_row(frame: pd.DataFrame, **values: str) -> pd.Series:
    rows = frame[np.logical_and.reduce([frame[column] == value for column, value in values.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


def test_columns_and_rows(scores):
    frame = bdrate_frame(scores, "jpeg")
    assert [*frame.columns] == BDRATE_COLUMNS
    assert ",".join(BDRATE_COLUMNS[:13]) == (
        "codec,anchor,dataset,task,model,metric,bd_rate_percent,bd_quality,overlap,low,high,note,reference"
    )
    metrics = scores.groupby(["dataset", "task", "metric"]).ngroups
    assert len(frame) == 3 * metrics and {*frame["codec"]} == {"webp", "avif", "diffusion"}
    assert frame["low"].isna().all() and frame["high"].isna().all()
    assert [*bdrate_frame(scores, None).columns] == [*frame.columns] and not len(bdrate_frame(scores, None))


def test_numbers_are_those_of_the_curves(scores):
    frame = bdrate_frame(scores, "jpeg")
    rows = scores[(scores["task"] == "yolox") & (scores["metric"] == "AP")]
    jpeg, webp = (rows.loc[rows["codec"] == codec, ["bpp", "value"]].to_numpy(float) for codec in ("jpeg", "webp"))
    row = only_row(frame, codec="webp", task="yolox", metric="AP")
    expected = bd_rate(jpeg, webp)
    assert (row["bd_rate_percent"], row["bd_quality"], row["overlap"]) == (
        expected.bd_rate_percent,
        expected.bd_quality,
        expected.overlap,
    )
    assert row["bd_rate_percent"] == pytest.approx(-38, abs=1)
    assert (row["cubic"], row["akima"]) == (expected.cross_checks["cubic"], expected.cross_checks["akima"])
    assert row["pchip"] == row["bd_rate_percent"] and row["spread"] == expected.spread
    assert (row["interval_low"], row["interval_high"]) == expected.interval
    assert (row["anchor_points"], row["test_points"]) == (4, 5)
    assert (row["anchor_inside"], row["test_inside"]) == expected.points_inside


def test_less_is_better_where_the_rows_say_so(scores):
    row = only_row(bdrate_frame(scores, "jpeg"), codec="avif", dataset="coco", metric="lpips")
    assert row["bd_rate_percent"] == pytest.approx(-59, abs=1) and row["bd_quality"] < 0


def test_agreement_never_meets_labels(scores):
    twin = scores[scores["task"] == "yolox"].assign(reference="original", value=lambda f: f["value"] * 2)
    frame = bdrate_frame(normalise(pd.concat([scores, twin])), "jpeg")
    both = frame[(frame["task"] == "yolox") & (frame["metric"] == "AP") & (frame["codec"] == "webp")]
    assert both["reference"].tolist() == ["labels", "original"]
    assert both["note"].str.contains("agreement with the predictions on the originals").tolist() == [False, True]
    assert (
        both["bd_rate_percent"].tolist()[0]
        == only_row(bdrate_frame(scores, "jpeg"), codec="webp", task="yolox", metric="AP")["bd_rate_percent"]
    )


def test_notes_say_what_weakens_a_number(scores):
    jpeg5 = (scores["codec"] == "jpeg") & (scores["point"] == "quality=96") & (scores["task"] == "yolox")
    scores.loc[jpeg5, ["value", "failed", "scored"]] = [20.0, 3, 76]
    scores.loc[scores["task"] == "yolox", "limited"] = True
    row = only_row(bdrate_frame(scores, "jpeg"), codec="diffusion", task="yolox", metric="AP")
    for part in (
        "limited: not reportable",
        "dropped jpeg at rate 0.96, value 20",
        "jpeg at quality=96: 3 of 79 images failed",
        "diffusion: mean of 3 realisations",
        "diffusion has 3 points on its envelope",
        "jpeg has 3 points on its envelope",
    ):
        assert part in row["note"]
    assert math.isnan(row["cubic"]) and math.isfinite(row["akima"])
    assert "limited" not in only_row(bdrate_frame(scores, "jpeg"), codec="webp", task="classification", metric="top1")["note"]


def test_refusals_have_no_number_but_the_reason(scores):
    scores.loc[scores["codec"] == "avif", "value"] -= 1000
    scores.loc[(scores["codec"] == "webp") & (scores["point"] == "quality=20"), "value"] = math.nan
    frame = bdrate_frame(scores, "jpeg")
    apart = only_row(frame, codec="avif", task="yolox", metric="AP")
    assert math.isnan(apart["bd_rate_percent"]) and apart["overlap"] == 0 and math.isfinite(apart["bd_quality"])
    assert "BD-rate undefined: no shared AP interval" in apart["note"] and "add a point of avif with AP above" in apart["note"]
    not_a_number = only_row(frame, codec="webp", task="yolox", metric="AP")
    assert all(math.isnan(not_a_number[column]) for column in ("bd_rate_percent", "bd_quality", "overlap"))
    assert not_a_number["note"].startswith("undefined: webp has AP nan at rate 0.2 (measure that point again")
    without = scores[~((scores["codec"] == "jpeg") & (scores["task"] == "yolox"))]
    assert (
        "undefined: jpeg has no points" in only_row(bdrate_frame(without, "jpeg"), codec="avif", task="yolox", metric="AP")["note"]
    )


def test_an_unknown_anchor_names_the_nearest(scores):
    with pytest.raises(ScoresError, match=r"anchor: no codec 'jpg'; did you mean 'jpeg'\?"):
        bdrate_frame(scores, "jpg")
    with pytest.raises(ScoresError, match="no codec 'uncompressed'"):
        bdrate_frame(scores, "uncompressed")


def test_curves_made_elsewhere(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text(
        "codec,bpp,AP\n" + "".join(f"{c},{f * r},{q}\n" for c, f in (("a", 1), ("b", 0.5)) for r, q in ((1, 20), (2, 30)))
    )
    frame = bdrate_frame(read_scores(path), "a")
    assert frame[["codec", "anchor", "metric"]].to_numpy().tolist() == [["b", "a", "AP"]]
    assert frame["bd_rate_percent"].tolist() == [pytest.approx(-50)]


def test_a_scores_csv_gives_the_same_table(scores, tmp_path):
    write_csv(scores, tmp_path / "scores.csv")
    again = bdrate_frame(read_scores(tmp_path / "scores.csv"), "jpeg")
    pd.testing.assert_frame_equal(again, bdrate_frame(scores, "jpeg"), check_dtype=False)


def test_means_over_datasets(scores):
    frame = bdrate_frame(scores, "jpeg")
    means = mean_frame(frame)
    assert {*means["task"]} == {"fidelity"} and len(means) == 9
    psnr = frame[(frame["codec"] == "webp") & (frame["metric"] == "psnr")]["bd_rate_percent"] / 100
    row = only_row(means, codec="webp", metric="psnr")
    assert row["bd_rate_percent"] == pytest.approx(100 * (math.sqrt((1 + psnr).prod()) - 1))
    assert row["datasets"].startswith("coco -38") and ", photos -38" in row["datasets"]
    frame.loc[(frame["codec"] == "avif") & (frame["dataset"] == "photos"), "bd_rate_percent"] = math.nan
    row = only_row(mean_frame(frame), codec="avif", metric="psnr")
    assert math.isnan(row["bd_rate_percent"]) and row["note"] == "undefined on photos" and "photos –" in row["datasets"]


def test_rates_at_shares_of_the_ceiling(scores):
    frame = rate_frame(scores)
    ap = frame[(frame["codec"] == "webp") & (frame["task"] == "yolox") & (frame["metric"] == "AP")]
    assert ap["share"].tolist() == [0.9, 0.95, 0.99] and (ap["ceiling"] == 30.96).all()
    exact = 0.62 * 10 ** (-0.6 + np.log10(9) / 3)  # The rate at which the logistic curve reaches nine tenths.
    assert ap["rate"].iloc[0] == pytest.approx(exact, rel=0.02)
    low = frame[(frame["codec"] == "diffusion") & (frame["task"] == "yolox") & (frame["metric"] == "AP")]
    assert math.isnan(low["rate"].iloc[2]) and low["note"].iloc[2].startswith("not reached: best AP of diffusion is")
    for metric, why in (("psnr", "n/a: no finite uncompressed score"), ("lpips", "n/a: less is better")):
        rows = frame[frame["metric"] == metric]
        assert rows["rate"].isna().all() and {*rows["note"]} == {why}


def test_files_for_people(scores, tmp_path):
    bdrate = bdrate_frame(scores, "jpeg")
    paths = write_tables(scores, bdrate, tmp_path)
    assert [path.name for path in paths] == ["bdrate.md", "bdrate.tex", "scores.md", "scores.tex"]
    before = [path.read_bytes() for path in paths]
    assert before == [path.read_bytes() for path in write_tables(scores, bdrate, tmp_path)]
    markdown, latex, all_scores, _ = (content.decode() for content in before)
    headings = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert headings[0] == "## BD-rate (%) against jpeg. Accuracy against labels"
    assert headings[-1].endswith("Agreement with the predictions on the originals")
    webp = next(line for line in markdown.splitlines() if line.startswith("| webp"))
    assert webp.split("|")[2].strip().startswith("-38")
    assert latex.count(r"\begin{longtable}") == latex.count(r"\end{longtable}") == len(headings)
    assert "limited" not in all_scores and "not reportable" in "".join(
        path.read_text() for path in write_tables(scores.assign(limited=True), bdrate, tmp_path)[2:]
    )


def test_every_table_holds_one_reference(scores):
    bdrate = bdrate_frame(scores, "jpeg")
    for title, table in [*bdrate_tables(scores, bdrate), *scores_tables(scores)]:
        tasks = {*table["Task"]} if "Task" in table else {column.split(", ")[1] for column in table.columns[1:]}
        assert ("ssd" in tasks) == ("Agreement" in title)
        assert len(tasks) == 1 or tasks == {"yolox", "classification"}


def test_hostile_names_stay_text():
    frame = pd.DataFrame({"Codec": [HOSTILE, "two\nlines"], "Note": ["", "50% & more"]})
    markdown = to_markdown(frame).splitlines()
    assert len(markdown) == 4 and "two lines" in markdown[3]
    assert "<b>" not in markdown[2] and r"a\|b\`\*" in markdown[2]
    latex = to_latex(frame, HOSTILE)
    assert r"\end{x}" not in latex and r"\textbackslash{}end\{x\}\$\%\_\#\textasciitilde{}\textasciicircum{}" in latex
    assert r"50\% \& more" in latex
    assert escape_markdown("a\n# b") == "a # b"


def test_signed_text():
    assert [signed_text(value) for value in (-12.34, 4.0, 0.0, -0.01, math.nan, None)] == ["-12.3", "+4.0", "0.0", "0.0", "–", "–"]
