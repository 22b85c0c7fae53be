"""The report: what it says, that it stands alone, and that it works in a browser."""

import html.parser
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from icmbench.results.report import write_report
from icmbench.results.scores import ScoresError
from icmbench.results.tables import bdrate_frame

HOSTILE = "<img src=x onerror=\"document.title='broken'\">'&{{ 7*7 }}</script>"


def report_of(scores: pd.DataFrame, folder: Path, anchor: str | None = "jpeg", **meta) -> str:
    return write_report(folder, scores, bdrate_frame(scores, anchor), {"title": "a run", **meta}).read_text(encoding="utf-8")


@pytest.fixture
def few(scores) -> pd.DataFrame:
    """One task on labels and one on agreement, for speed."""
    return scores[scores["task"].isin(["yolox", "ssd"])].copy()


class Parser(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & {*self.open[-1:]}:
            self.text += data


def test_one_file_that_needs_nothing_else(scores, tmp_path):
    page = report_of(scores, tmp_path)
    assert "http:" not in page and "https:" not in page and "@import" not in page
    parser = Parser(page)
    links = [attributes["href"] for tag, attributes in parser.tags if tag == "a"]
    for link in links:
        assert link.startswith("#") or (tmp_path / "report" / link).is_file()
    assert not [tag for tag, attributes in parser.tags if tag in ("link", "iframe", "img") or (tag == "script" and attributes)]
    ids = [attributes["id"] for _, attributes in parser.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)) and {link[1:] for link in links if link.startswith("#")} <= set(ids)
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"index.html", "bdrate.md", "bdrate.tex", "scores.md", "scores.tex", "coco-yolox-yolox-onnx-AP.png"} <= files
    assert sum(name.endswith(".svg") for name in files) == sum(name.endswith(".png") for name in files) == 10  # curve and time


def test_the_same_scores_give_the_same_bytes(few, tmp_path):
    assert report_of(few, tmp_path / "a") == report_of(few.copy(), tmp_path / "b")
    for path in (tmp_path / "a" / "report").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "report" / path.name).read_bytes()


def test_agreement_has_a_section_of_its_own(scores, tmp_path):
    page = report_of(scores, tmp_path)
    sections = dict(re.findall(r'<section aria-labelledby="(\w+)">(.*?)</section>', page, re.DOTALL))
    assert [*sections][:3] == ["labels", "source", "original"]
    assert "This is agreement, not accuracy" in sections["original"] and "ssd" in sections["original"]
    assert "ssd" not in sections["labels"] and "yolox" not in sections["original"]


def test_limited_and_failed_are_seen(scores, tmp_path):
    assert "not reportable" not in Parser(report_of(scores, tmp_path / "whole")).text
    scores.loc[scores["dataset"] == "imagenet", "limited"] = True
    broken = (scores["codec"] == "webp") & (scores["task"] == "yolox")
    scores.loc[broken, ["scored", "failed"]] = [70, 9]
    page = report_of(scores, tmp_path / "cut")
    assert re.search(r'class="banner" role="status">limited: not reportable', page)
    assert re.search(r'<td class="number  bad">9</td>', page)
    text = Parser(page).text
    assert text.count("limited: not reportable") > (scores["dataset"] == "imagenet").sum()
    assert "webp at quality=12: 9 of 79 images failed" in text
    assert "limited: not reportable. BD-rate" in (tmp_path / "cut" / "report" / "bdrate.tex").read_text()


def test_missing_numbers_have_their_reason(few, tmp_path):
    few.loc[(few["codec"] == "avif") & (few["task"] == "yolox"), "value"] -= 100
    text = Parser(report_of(few, tmp_path)).text
    assert "BD-rate undefined: no shared AP interval: jpeg spans" in text and "add a point of avif with AP above" in text
    assert "n/a" in text and "not reached" in text


def test_without_an_anchor_and_without_codecs(few, tmp_path):
    assert "No anchor was named" in report_of(few, tmp_path / "none", anchor=None)
    only = few[few["codec"] == "uncompressed"]
    assert "uncompressed" in report_of(only, tmp_path / "only", anchor=None)
    assert "All scores" in report_of(few.head(0), tmp_path / "empty", anchor=None)


def test_primary_metrics_are_chosen_by_task(scores, tmp_path):
    page = report_of(scores, tmp_path, primary={"fidelity": "lpips"})
    assert "coco, fidelity, lpips" in page and (tmp_path / "report" / "coco-fidelity-lpips.svg").is_file()
    with pytest.raises(ScoresError, match="no metric 'ssim'"):
        report_of(scores, tmp_path, primary={"fidelity": "ssim"})


def test_environment_is_read_from_the_run_folder(few, tmp_path):
    (tmp_path / "environment.json").write_text(json.dumps({"python": "3.11.7", "hardware": {"processor": "<Model> & co"}}))
    page = report_of(few, tmp_path)
    assert "3.11.7" in page and "&lt;Model&gt; &amp; co" in page
    assert "given here" in report_of(few, tmp_path, environment={"machine": "given here"})


def test_hostile_names_are_text(few, tmp_path):
    for column, name in (("codec", "webp"), ("task", "yolox"), ("metric", "AP"), ("point", "quality=20"), ("dataset", "coco")):
        few[column] = few[column].replace({name: HOSTILE})
    page = report_of(few, tmp_path, title=HOSTILE)
    parser = Parser(page)
    assert not [tag for tag, _ in parser.tags if tag == "img"]
    assert sum(tag == "script" for tag, _ in parser.tags) == 1 and "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0]
    assert parser.text.count(HOSTILE) > 10


def test_names_that_meet_get_files_of_their_own(few, tmp_path):
    twin = few[few["dataset"] == "coco"].assign(dataset="COCO/")
    report_of(pd.concat([few, twin]), tmp_path)
    names = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert {"coco-yolox-yolox-onnx-AP.png", "COCO-yolox-yolox-onnx-AP-2.png"} <= names


@pytest.fixture(scope="module")
def browser() -> Iterator:
    driver = pytest.importorskip("playwright.sync_api", reason="the browser test needs the package playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("the browser test needs Chromium on the path")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with driver.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=[*quiet, "--disable-component-update", "--disable-sync"])
        yield started
        started.close()


@pytest.fixture
def page(browser, few, tmp_path, request) -> Iterator:
    """The report of hostile names in a window of the test's size; fails on any error or request beyond the file."""
    report_of(few.replace({"codec": {"webp": HOSTILE}}), tmp_path)
    context = browser.new_context(viewport=getattr(request, "param", {"width": 1280, "height": 900}))
    tab = context.new_page()
    trouble: list[str] = []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("request", lambda sent: trouble.append(sent.url) if not sent.url.endswith("index.html") else None)
    tab.goto((tmp_path / "report" / "index.html").as_uri())
    yield tab
    context.close()
    assert not trouble


def test_browser_sorts_and_filters(page):
    assert page.title() == "a run"
    table = page.locator("#labels ~ .small table").first
    cells = table.locator("tbody tr td:nth-child(2)")
    table.locator("th button").nth(1).click()
    first = [float(text) for text in cells.all_inner_texts()]
    table.locator("th button").nth(1).click()
    assert first == sorted(first) and [float(text) for text in cells.all_inner_texts()] == first[::-1]
    assert table.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    visible = page.locator("#labels ~ .tall tbody tr:visible")
    primary = visible.count()
    page.locator(".main-only").first.uncheck()
    assert visible.count() == 2 * primary == 8
    page.fill("#filter", "avif ap50 quality=25")
    assert page.locator(".filtered tbody tr:visible").count() == 1


def test_browser_hides_codecs_and_tells_points(page):
    figure = page.locator("figure").first
    dot = figure.locator('.dot[data-codec="1"]').nth(2)
    box = dot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
    tip = page.locator("#tip")
    assert tip.inner_text().startswith(HOSTILE) and tip.inner_text().endswith("at 0.33 bpp")
    button = page.locator(".legend button").nth(1)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.locator('figure .codec[data-codec="1"]:visible').count() == 0
    assert page.locator('figure .codec[data-codec="0"]:visible').count() > 0
    button.click()
    assert figure.locator('.codec[data-codec="1"]:visible').count() > 0


@pytest.mark.parametrize("page", [{"width": 390, "height": 844}], indirect=True)
def test_browser_fits_a_phone(page):
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for figure in page.locator("figure svg").all():
        assert 300 < figure.bounding_box()["width"] <= 390
