"""images.parquet in a run folder: which images the run is about, for packs, merges and comparisons."""

from __future__ import annotations

import pyarrow as pa

from icmbench.harness.store.pack_export import IMAGES
from icmbench.harness.store.parquet_files import write_table
from icmbench.harness.work.bench import Bench


def write_images(bench: Bench) -> None:
    """Write every image with its dataset and the hash of its pixels, which is null if it was not read."""
    bench.source_pixels.refresh()
    columns: dict[str, list[str | None]] = {"dataset": [], "id": [], "source": []}
    for name, dataset in bench.datasets.items():
        sha256 = bench.source_pixels.recorded(name, dataset.ids).sha256
        for image_id in dataset.ids:
            for column, value in zip(columns.values(), (name, image_id, sha256.get(image_id)), strict=True):
                column.append(value)
    write_table(bench.folder, IMAGES, pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}))
