"""Reports of the conftest's scores, for what is read from their text and for what a browser shows."""

from pathlib import Path

import numpy as np
import pandas as pd

from icmbench.results import pictures
from icmbench.results.report import write_report
from icmbench.results.tables import bdrate_frame

HOSTILE = "<img src=x onerror=\"document.title='broken'\">'&{{ 7*7 }}</script>"


def report_of(scores: pd.DataFrame, folder: Path, anchor: str | None = "jpeg", shown=None, **meta) -> str:
    """The text of the page."""
    page = write_report(folder, scores, bdrate_frame(scores, anchor), {"title": "a run", **meta}, pictures=shown)
    return page.read_text(encoding="utf-8")


def plain(colour: tuple[int, int, int], height: int = 60, width: int = 90) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def entries(name: str = HOSTILE) -> dict:
    """Two images of one task, one of another; the reconstructions are green, the originals red."""
    found = []
    for image, task, damage in ((name, "yolox", 30.0), ("b.png", "yolox", 10.0), ("b.png", name, 5.0)):
        facts = {"codec": name, "point": "quality=5", "bits": 1200, "bpp": 0.2222, "score": 40.0}
        shown = [
            pictures.shown(
                facts | {"point": f"quality={q}", "damage": damage / q},
                (["person", "person", name], ["person", "cat"]),
                plain((0, 200, 0)),
                plain((0, 200, 200)),
            )
            for q in (5, 1)
        ]
        where = {"image": image, "dataset": "coco", "task": task, "metric": "AP", "unit": "%"}
        found.append(pictures.entry(where, 70.0, plain((200, 0, 0)), plain((200, 0, 200)), shown))
    return {"entries": found, "left_out": [f"{name} q=9: not kept"]}
