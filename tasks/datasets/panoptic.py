"""Panoptic annotations in COCO's format: one JSON file and a folder of PNG files of segment ids."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from icmbench.tasks.base import DatasetError, Target
from icmbench.tasks.datasets.images import NATIVE, Preprocessing
from icmbench.tasks.maps import read_segments


class PanopticAnnotations:
    """`{"images": [...], "annotations": [{"file_name", "segments_info": [...]}], "categories": [...]}` and its PNG folder.

    categories: their names, in the file's order. is_thing: whether each is a thing, bool (categories,).
    """

    def __init__(self, annotations: Path, segments: Path, preprocessing: Preprocessing = NATIVE) -> None:
        self.segments = segments
        self._preprocessing = preprocessing
        try:
            content = json.loads(annotations.read_text(encoding="utf-8"))
            self.categories: list[str] = [category["name"] for category in content["categories"]]
            self.is_thing = np.array([bool(category["isthing"]) for category in content["categories"]])
            self._index = {category["id"]: index for index, category in enumerate(content["categories"])}
            names = {image["id"]: image["file_name"] for image in content["images"]}
            self._entries = {names[entry["image_id"]]: entry for entry in content["annotations"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{annotations}: no panoptic annotations in COCO's format ({type(error).__name__}: {error}); "
                "it is a JSON file with images, annotations with segments_info, and categories with isthing"
            ) from error

    def __contains__(self, file_name: object) -> bool:
        return file_name in self._entries

    def targets(self, file_names: Sequence[str]) -> list[Target]:
        """For each image: `segments` reads the (height, width) map of ids, 0 unlabelled; `segment_ids` int64, `classes` int64
        indices into `categories` and `iscrowd` bool describe the ids, aligned."""
        return [self._target(self._entries[name]) for name in file_names]

    def _target(self, entry: dict[str, object]) -> Target:
        infos: list[dict[str, int]] = entry["segments_info"]  # type: ignore[assignment]
        return {
            "segments": functools.partial(read_segments, self.segments / str(entry["file_name"]), self._preprocessing),
            "segment_ids": np.array([info["id"] for info in infos], dtype=np.int64),
            "classes": np.array([self._index[info["category_id"]] for info in infos], dtype=np.int64),
            "iscrowd": np.array([bool(info.get("iscrowd", 0)) for info in infos], dtype=bool),
        }
