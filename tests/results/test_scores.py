"""Reading scores frames and curves made elsewhere."""

import math

import pandas as pd
import pytest

from icmbench.results.scores import (
    SCORE_COLUMNS,
    CurveKey,
    ScoresError,
    ceiling_value,
    codec_names,
    curve_keys,
    curve_points,
    group_by_reference,
    normalise,
    primary_keys,
    read_scores,
)


def key_of(frame: pd.DataFrame, task: str, metric: str, dataset: str = "coco") -> CurveKey:
    return next(key for key in curve_keys(frame) if (key.dataset, key.task, key.metric) == (dataset, task, metric))


def test_a_frame_survives_its_csv(plain_scores, tmp_path):
    path = tmp_path / "scores.csv"
    plain_scores.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_scores(path), normalise(plain_scores))
    pd.testing.assert_frame_equal(normalise(normalise(plain_scores)), normalise(plain_scores))
    assert [*normalise(plain_scores).columns] == SCORE_COLUMNS


@pytest.mark.parametrize("realisation", ["12345678", "00123456", "1234567e", "12345e67", "1e400", "nan", "inf", "True", ""])
def test_realisations_are_text_whatever_they_look_like(plain_scores, tmp_path, realisation):
    path = tmp_path / "scores.csv"
    few = plain_scores[plain_scores["realisation"] == ""].head(5)
    few.assign(realisation=realisation).to_csv(path, index=False)
    assert read_scores(path)["realisation"].tolist() == [realisation] * 5


def test_names_that_look_missing_stay_names(plain_scores, tmp_path):
    path = tmp_path / "scores.csv"
    plain_scores.replace({"codec": {"jpeg": "NA", "webp": "null"}}).to_csv(path, index=False)
    assert codec_names(read_scores(path))[:2] == ["NA", "null"]


def test_realisations_are_averaged_and_their_extremes_kept(scores):
    rows = key_of(scores, "yolox", "AP").rows(scores)
    points = curve_points(rows, "diffusion")
    first = rows[(rows["codec"] == "diffusion") & (rows["point"] == points["point"][0])]["value"]
    assert len(first) == 3 and points["value"][0] == pytest.approx(first.mean())
    assert (points["low"][0], points["high"][0]) == (first.min(), first.max())
    assert points["realisations"].tolist() == [3, 3, 3] and points["bpp"].is_monotonic_increasing
    single = curve_points(rows, "jpeg")
    assert single["low"].isna().all() and single["expected"].tolist() == [79] * 4


def test_a_point_with_a_nan_realisation_is_nan(scores):
    scores.loc[(scores["codec"] == "diffusion") & (scores["realisation"] == "seed=1"), "value"] = math.nan
    assert curve_points(key_of(scores, "yolox", "AP").rows(scores), "diffusion")["value"].isna().all()


def test_ceiling_is_the_finite_uncompressed_score(scores):
    assert ceiling_value(key_of(scores, "yolox", "AP").rows(scores)) == 30.96
    assert ceiling_value(key_of(scores, "fidelity", "psnr").rows(scores)) is None
    scores.loc[scores["codec"] == "uncompressed", "value"] = math.inf
    assert ceiling_value(key_of(scores, "yolox", "AP").rows(scores)) is None


def test_primary_metrics(scores):
    assert [key.metric for key in primary_keys(scores)] == ["AP", "top1", "AP", "psnr", "psnr"]
    chosen = primary_keys(scores, {"fidelity": "lpips", "yolox": "AP50", "elsewhere": "x"})
    assert [key.metric for key in chosen] == ["AP50", "top1", "AP", "lpips", "lpips"]
    with pytest.raises(ScoresError, match="task 'fidelity' has no metric 'ssim'; it has psnr, ms_ssim, lpips"):
        primary_keys(scores, {"fidelity": "ssim"})


def test_agreement_has_a_group_of_its_own_and_comes_last(scores):
    groups = dict(group_by_reference(curve_keys(scores)))
    assert [*groups] == ["labels", "source", "original"]
    assert [key.task for key in groups["original"]] == ["ssd"]


WIDE = "codec,bpp,AP,lpips\njpeg,0.2,20,0.4\njpeg,0.4,25,0.3\nmine,0.1,20,\nmine,0.2,25,0.3\nuncompressed,,31,\n"


def test_one_column_per_metric(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text("\ufeff" + WIDE, encoding="utf-8")
    frame = read_scores(path)
    assert frame["metric"].value_counts().to_dict() == {"AP": 5, "lpips": 3}
    assert frame.groupby("metric")["higher_is_better"].all().to_dict() == {"AP": True, "lpips": False}
    points = curve_points(frame[frame["metric"] == "AP"], "mine")
    assert points[["bpp", "value"]].to_numpy().tolist() == [[0.1, 20], [0.2, 25]]
    assert ceiling_value(frame[frame["metric"] == "AP"]) == 31


def test_one_row_per_metric_with_rate_and_declared_direction(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text("codec, rate, metric, value\njpeg, 100, energy, 4\njpeg, 200, energy, 3\n")
    assert not read_scores(path, lower_is_better=["energy"])["higher_is_better"].any()
    assert read_scores(path)["higher_is_better"].all()
    path.write_text("codec,rate,metric,value,higher_is_better\njpeg,100,lpips,4,True\n")
    assert read_scores(path)["higher_is_better"].all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bpp,AP\n1,2\n", "no column 'codec'"),
        ("codec,bpp\njpeg,1\n", "no metric; give columns metric and value"),
        ("codec,bpp,value\njpeg,1,2\n", "no column 'metric'"),
        ("codec,AP\njpeg,1\n", "no column 'bpp'"),
        ("codec,bpp,AP,remark\njpeg,1,2,good\n", "column 'remark' holds 'good', which is no number"),
        ("codec,bpp,metric,value\njpeg,0.1x,AP,2\n", "column 'bpp' holds '0.1x'"),
        ("codec,point,bpp,metric,value\nj,q,1,AP,2\nj,q,1,AP,2\n", "codec 'j' has two rows of 'AP' at point 'q'"),
        ("codec,bpp,metric,value,unit\nj,1,AP,2,%\nj,2,AP,2,dB\n", "metric 'AP' of task '' has rows that differ in unit"),
        ("", "cannot be read as a CSV file"),
    ],
)
def test_malformed_files_are_named_with_the_reason(tmp_path, text, message):
    path = tmp_path / "curves.csv"
    path.write_text(text)
    with pytest.raises(ScoresError) as error:
        read_scores(path)
    assert message in str(error.value) and "curves.csv" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ScoresError, match=r"nowhere\.csv"):
        read_scores(tmp_path / "nowhere.csv")


def test_flags_in_any_spelling(plain_scores):
    spelled = [True, False, "True", "false", "", None, 0, 1, 50, float("nan")]
    frame = plain_scores.head(len(spelled)).assign(limited=spelled)
    assert normalise(frame)["limited"].tolist() == [True, False, True, False, False, False, False, True, True, False]
