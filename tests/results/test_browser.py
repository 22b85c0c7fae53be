"""The report in Chromium, opened from disk without a network: sorting, hiding, hovering, the slider, a phone."""

import base64
import io
import json
import shutil
from collections.abc import Iterator

import pytest
from PIL import Image

from .pages import HOSTILE, make_pictures, report_of

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser test needs the package selenium")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("the browser test needs chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def page(browser, few, tmp_path, request) -> Iterator:
    """A browser on the report of hostile names; a test that uses it fails on any error in the page or request beyond its file.

    The window has the size in `request.param`, if a test names one.
    """
    width, height = getattr(request, "param", (1280, 900))
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    )
    report_of(few.replace({"codec": {"webp": HOSTILE}}), tmp_path, pictures=make_pictures())
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get((tmp_path / "report" / "index.html").as_uri())
    yield browser
    assert not browser.get_log("browser")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    assert sent and all(url.endswith("index.html") or url.startswith("data:") for url in sent)


def find(page, selector):
    return page.find_elements("css selector", selector)


def click(page, element):
    """Click an element in the middle of the window: the legend, which stays at the upper edge, would cover it there."""
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def find_visible(page, selector):
    return [element for element in find(page, selector) if element.is_displayed()]


def test_sorts_and_filters(page):
    assert page.title == "a run"
    table = find(page, "#labels ~ .small table")[0]

    def column():
        return [float(cell.text) for cell in table.find_elements("css selector", "tbody tr td:nth-child(2)")]

    head = table.find_elements("css selector", "th")[1]
    head.find_element("tag name", "button").click()
    first = column()
    head.find_element("tag name", "button").click()
    assert first == sorted(first) and column() == first[::-1] and head.get_attribute("aria-sort") == "descending"
    rows = "#labels ~ .tall tbody tr"
    primary = len(find_visible(page, rows))
    find(page, ".main-only")[0].click()
    assert len(find_visible(page, rows)) == 2 * primary == 14  # Four codecs and three BD-rates, each with two metrics.
    find(page, "#filter")[0].send_keys("avif ap50 quality=25")
    assert len(find_visible(page, ".filtered tbody tr")) == 1


def test_hides_codecs_and_describes_points(page):
    dot = find(page, "figure")[0].find_elements("css selector", '.dot[data-codec="1"]')[2]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", dot)
    from selenium.webdriver import ActionChains

    ActionChains(page).move_to_element_with_offset(dot, 3, 0).perform()
    tip = find(page, "#tip")[0].text
    assert tip.startswith(HOSTILE) and tip.endswith("at 0.33 bpp")
    button = find(page, ".legend button")[1]
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert not find_visible(page, 'figure .codec[data-codec="1"]') and find_visible(page, 'figure .codec[data-codec="0"]')
    button.click()
    assert find_visible(page, 'figure .codec[data-codec="1"]')


def pair_colours(page, share):
    """The colours left and right of the middle of the two pictures, with the slider at a share in percent."""
    page.execute_script("const r = document.querySelector('#pictures-section input[type=range]'); r.value = arguments[0];"
                        "r.dispatchEvent(new Event('input'))", share)  # fmt: skip
    pair = find(page, ".pair")[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", pair)
    page.execute_async_script("Promise.all([...document.querySelectorAll('.pair img')].map((i) => i.decode())).then(arguments[0])")
    picture = Image.open(io.BytesIO(base64.b64decode(pair.screenshot_as_base64))).convert("RGB")
    width, height = picture.size
    return [tuple(value > 100 for value in picture.getpixel((int(width * x), height // 4))) for x in (0.25, 0.75)]


RED, GREEN, MAGENTA, CYAN = (True, False, False), (False, True, False), (True, False, True), (False, True, True)


def test_the_slider_uncovers_the_original(page):
    assert pair_colours(page, 50) == [MAGENTA, CYAN]  # Predictions are drawn: original left, reconstruction right.
    assert pair_colours(page, 90) == [MAGENTA, MAGENTA] and pair_colours(page, 5) == [CYAN, CYAN]
    click(page, find(page, "#drawn")[0])
    assert pair_colours(page, 50) == [RED, GREEN]
    from selenium.webdriver import ActionChains

    pair = find(page, ".pair")[0]
    ActionChains(page).move_to_element_with_offset(pair, pair.size["width"] // 2 - 5, 0).click().perform()
    assert float(find(page, "#pictures-section input[type=range]")[0].get_attribute("value")) > 95


def test_images_say_what_was_lost_at_how_many_bits(page):
    strip = find(page, ".strip button")
    assert [button.text.split("\n")[-1] for button in strip] == ["-18 AP", "-6 AP"]
    tabs = find(page, ".tabs button")
    assert tabs[0].text == f"{HOSTILE} quality=1: -30" and tabs[0].get_attribute("aria-pressed") == "true"
    words = find(page, ".loss")[0].text
    assert words.startswith(f"{HOSTILE}, 90 x 60: AP of this image 70 % on the original, 40 % after {HOSTILE} quality=1")
    assert "at 1,200 bits (0.2222 bpp)." in words and words.endswith(f"Lost: person, {HOSTILE}. New: cat.")
    strip[1].click()
    assert find(page, ".loss")[0].text.startswith("b.png, 90 x 60")
    choice = find(page, "#picture-tasks option")
    assert [option.text for option in choice] == ["yolox", HOSTILE]
    choice[1].click()
    assert len(find(page, ".strip button")) == 1
    assert any(HOSTILE in line.text and "not kept" in line.text for line in find(page, "#pictures-section .muted"))
    assert page.title == "a run" and not find(page, "img[src=x]")


@pytest.mark.parametrize("page", [(390, 844)], indirect=True)
def test_fits_a_phone(page):
    assert page.execute_script("return document.documentElement.scrollWidth") == 390
    for figure in find(page, "figure svg"):
        assert 300 < figure.rect["width"] <= 390
    assert 300 < find(page, ".pair")[0].rect["width"] <= 390


def test_a_large_report_opens_at_once(browser, few, tmp_path):
    """The page has sixty images with two reconstructions each, and decodes only the images in view."""
    pictures = make_pictures("a")
    pictures["entries"] = pictures["entries"] * 20
    report_of(few, tmp_path, pictures=pictures)
    browser.get((tmp_path / "report" / "index.html").as_uri())
    seconds = browser.execute_script("return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000")
    assert seconds < 10 and len(find(browser, ".strip button")) == 40
