"""`icmbench merge`: one run of the codecs and tasks of several, which were made on different machines over the same images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from icmbench.harness.commands.console import print_error
from icmbench.harness.config.errors import UserError


def add_merge_command(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the command to the command line; see `icmbench.harness.cli`."""
    merge = add("merge", _merge, "codecs and tasks of runs over the same images as one run; tables and report are derived anew")
    merge.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or their URLs; the first one's settings count")
    merge.add_argument("--out", required=True, metavar="RUN", help="the merged run folder, or an object store's URL")
    merge.add_argument("--common", action="store_true", help="cut different image sets to what all runs have; marks every table")
    merge.add_argument("--folder", type=Path, help="where relative paths of the experiments start, to find labels")
    merge.add_argument("--workers", type=int, default=1, metavar="N", help="processes that draw slow intervals (default 1)")
    merge.add_argument("--images", type=int, default=12, metavar="N", help="images in the report, most damaged first (default 12)")


def _merge(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.merging import merge
    from icmbench.harness.commands.show import show_bdrate, show_scores

    if options.workers < 1:
        raise UserError("--workers: at least 1")
    merged = merge(options.runs, options.out, options.common, options.folder, options.workers, max(0, options.images))
    tables = merged.tables
    if len(tables.bdrate):
        show_bdrate(tables.table_spec.only_primary(tables.bdrate))
    else:
        show_scores(tables.table_spec.only_primary(tables.scores))
    print(f"report: {tables.report}")
    for line in merged.notes:
        print_error(line)
    if merged.left_out:
        print_error(f"{len(merged.left_out)} plug-ins are not here as they were in the runs:", *merged.left_out)
    if merged.damaged:
        print_error("left out, because they are damaged:", *merged.damaged)
    if tables.missing:
        print_error(f"{len(tables.missing)} cells are missing:", *tables.missing)
    return 1 if tables.missing or merged.damaged else 0
