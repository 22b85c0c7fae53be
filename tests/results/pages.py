"""Makes reports of the scores of conftest.py, to be read as text or opened in a browser."""

from pathlib import Path

import numpy as np

from icmbench.results.pictures import image_entry, reconstruction_entry
from icmbench.results.report import write_report
from icmbench.results.scores import Scores
from icmbench.results.tables import bdrate_frame

HOSTILE = "<img src=x onerror=\"document.title='broken'\">'&{{ 7*7 }}</script>"


def report_of(scores: Scores, folder: Path, anchor: str | None = "jpeg", pictures=None, **meta) -> str:
    """Write a report and return the text of its page."""
    page = write_report(folder, scores, bdrate_frame(scores, anchor), {"title": "a run", **meta}, pictures=pictures)
    return page.read_text(encoding="utf-8")


def plain_image(colour: tuple[int, int, int], height: int = 60, width: int = 90) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def make_pictures(name: str = HOSTILE) -> dict:
    """Two images of one task and one of another; the reconstructions are green, the originals red."""
    entries = []
    for image, task, damage in ((name, "yolox", 30.0), ("b.png", "yolox", 10.0), ("b.png", name, 5.0)):
        facts = {"codec": name, "point": "quality=5", "bits": 1200, "bpp": 0.2222, "score": 40.0}
        reconstructions = [
            reconstruction_entry(
                facts | {"point": f"quality={q}", "damage": damage / q},
                (["person", "person", name], ["person", "cat"]),
                plain_image((0, 200, 0)),
                plain_image((0, 200, 200)),
            )
            for q in (5, 1)
        ]
        subject = {"image": image, "dataset": "coco", "task": task, "metric": "AP", "unit": "%"}
        originals = plain_image((200, 0, 0)), plain_image((200, 0, 200))
        entries.append(image_entry(subject, 70.0, *originals, reconstructions))
    return {"entries": entries, "left_out": [f"{name} q=9: not kept"]}
