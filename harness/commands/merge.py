"""`icmbench merge`: one run of the codecs and tasks of several, which were made on different machines over the same images."""

from __future__ import annotations

import argparse

from icmbench.harness.commands.console import print_error
from icmbench.harness.config.errors import UserError


def print_merge(options: argparse.Namespace) -> int:
    """Carry out the command; return its exit code."""
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
