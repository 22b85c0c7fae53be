"""`icmbench bdrate`: BD-rates of curves in a CSV file, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icmbench.harness.commands.console import print_error
from icmbench.harness.commands.show import show_bdrate
from icmbench.harness.config.files import refuse_to_replace
from icmbench.harness.derive.bound import check_beside
from icmbench.harness.derive.tables import gather_published
from icmbench.harness.store.whole_files import writing
from icmbench.results.bd import Envelope, Method
from icmbench.results.published import with_reported
from icmbench.results.report import write_report
from icmbench.results.score_checks import doubts
from icmbench.results.scores import normalise, read_scores
from icmbench.results.tables import bdrate_frame
from icmbench.results.writers import write_csv


def print_bdrate(
    curves: Path,
    anchor: str,
    method: Method,
    envelope: Envelope,
    lower_is_better: Sequence[str] = (),
    published: Sequence[str] | None = None,
    out: Path | None = None,
) -> None:
    """Print the BD table of rate-quality curves, and write it with a report if a folder is named.

    Args:
        curves: a CSV file: a run's scores.csv, or a table with the columns codec, bpp and one column per metric.
        anchor: the codec that BD-rates refer to.
        method: interpolation, as in `icmbench.results.bd`.
        envelope: treatment of curves that are not monotonic, as in `icmbench.results.bd`.
        lower_is_better: metrics of which smaller values are better.
        published: files of curves that papers report, to be added; an empty sequence adds those that come with icmbench.
        out: folder for bdrate.csv and report/.

    Raises:
        ScoresError: a file cannot be read as curves, or the anchor is not in it.
        UserError: the folder cannot be written, or a file of curves would be replaced.
    """
    if out is not None:
        refuse_to_replace([curves, *map(Path, published or ())], out, ["bdrate.csv", "report"])
    check_beside(curves)
    scores = read_scores(curves, lower_is_better)
    for doubt in doubts(scores):
        print_error(f"{curves}: {doubt}")
    if published is not None:
        # Two files may report one curve; normalise refuses rows that are given twice.
        scores = normalise(with_reported(scores, gather_published(published)))
    bdrate = bdrate_frame(scores, anchor, method, envelope)
    show_bdrate(bdrate)
    if out is None:
        return
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_csv(bdrate, out / "bdrate.csv")
        print(f"report: {write_report(out, scores, bdrate, {'title': curves.stem})}")
