"""Folders with a manifest of small pictures, as `icmbench export` writes them."""

import numpy as np

from icmbench.tasks.fingerprints import pixel_sha256
from icmbench.tasks.models.predictions_manifest import ExportedImage, Manifest

IDS = ["000000000139.jpg", "sub/7.jpg", "x.png"]


def pictures(seed=0, ids=IDS):
    random = np.random.default_rng(seed)
    return {image_id: random.integers(0, 256, (6, 8 + k, 3), np.uint8) for k, image_id in enumerate(ids)}


def write_manifest(folder, images):
    """Write the manifest of pictures, uint8 arrays by image id, as `icmbench export` does."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = tuple(
        ExportedImage(i, f"{i.rpartition('.')[0]}.png", pixel_sha256(image), "", *image.shape[:2], 9) for i, image in images.items()
    )
    (folder / "manifest.json").write_bytes(Manifest({"codec": "jpeg"}, entries).to_bytes())
    return folder
