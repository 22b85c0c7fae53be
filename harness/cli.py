"""The command line. Each command imports what it needs when it runs, so that `icmbench list` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icmbench.harness.commands.arguments import make_parser
from icmbench.harness.commands.console import describe_error, flush_or_silence, open_missing_streams, print_error
from icmbench.harness.config.errors import UserError

if TYPE_CHECKING:
    from icmbench.harness.commands.run import RunResult

TRACEBACK_VARIABLE = "ICMBENCH_TRACEBACK"  # If set, defects are shown with Python's traceback.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the arguments after the program's name; those of the process by default.

    Returns:
        The exit code. 0: everything was computed. 1: cells are missing. 2: the input is wrong, or a defect was met; one sentence on
        standard error says how. 130: the user stopped the command.
    """
    open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # For names with characters that the terminal's encoding lacks.
    with _sigterm_like_interrupt():
        return _run_command(arguments)


@contextlib.contextmanager
def _sigterm_like_interrupt() -> Iterator[None]:
    """Handle SIGTERM, with which clusters end a job, like Ctrl-C, so that it stops the worker processes too.

    The handler before is put back at the end, for programs that call `main`. Outside the main thread, which alone may handle
    signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if before is not None:  # None: the handler was not installed by Python, which cannot put it back.
            signal.signal(signal.SIGTERM, before)


def _run_command(arguments: Sequence[str] | None) -> int:
    """Parse the arguments and run their command; returns the exit code as `main` does."""
    try:
        options = make_parser(COMMANDS).parse_args(arguments)
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except SystemExit:  # The parser's, after it has printed its help or what is wrong with the arguments.
        flush_or_silence()
        raise
    except BrokenPipeError:  # The reader of a pipe has ended, as in `icmbench list | head`.
        flush_or_silence()
        return 0
    except UserError as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt as stop:  # Training says from which step.
        print_error(str(stop) or "stopped; the same command goes on from here")
        return 130
    except Exception as error:
        # Icmbench's own errors, such as DatasetError and CodecError, describe wrong input; all others are defects.
        if type(error).__module__.startswith("icmbench."):
            print_error(str(error))
        elif isinstance(error, OSError) and error.filename is not None:
            print_error(f"{error.filename}: {error.strerror}: check that file or folder")
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF):
            flush_or_silence()
            print_error(f"standard output cannot be written ({error.strerror}): the text is lost, files are kept")
        elif os.environ.get(TRACEBACK_VARIABLE):
            raise
        else:
            print_error(f"{describe_error(error)}: a defect of icmbench; set {TRACEBACK_VARIABLE}=1 to see where, and report it")
        return 2


# The functions that carry out the commands.


def _load_experiment(options: argparse.Namespace) -> tuple[Any, str]:
    """The experiment and the run folder that `run` or `plan` was called with."""
    from icmbench.harness.config.experiment import load_experiment
    from icmbench.harness.store.folder import safe_name

    experiment = load_experiment(options.experiment, options.set)
    if options.limit is not None:
        if options.limit < 1:
            raise UserError("--limit: at least 1")
        experiment = experiment.model_copy(update={"limit": options.limit})
    return experiment, options.out or f"runs/{safe_name(experiment.name)}"


def _run(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.run import run
    from icmbench.harness.commands.run_arguments import make_run_options

    experiment, out = _load_experiment(options)
    if (options.bootstrap or 0) < 0:
        raise UserError("--bootstrap: a number of replicates, or 0 for no intervals")
    if options.bootstrap is not None:
        experiment = experiment.model_copy(update={"bootstrap": options.bootstrap})
    return _show_result(run(experiment, out, make_run_options(options), options.experiment, options.set))


def _demo(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.run import run
    from icmbench.harness.commands.run_arguments import make_run_options
    from icmbench.harness.config.experiment import load_experiment

    source = Path(__file__).with_name("demo.yaml")
    return _show_result(run(load_experiment(source), options.out, make_run_options(options), source=source))


def _show_result(result: RunResult) -> int:
    """Print a run's table on standard output and its failures on standard error; return the exit code."""
    from icmbench.harness.commands.show import doubts_of_originals, show_bdrate, show_scores

    if result.table_spec is not None:
        if len(result.bdrate):
            show_bdrate(result.table_spec.only_primary(result.bdrate))
        else:
            show_scores(result.table_spec.only_primary(result.scores))
        if result.report is None:
            print("a part: the tables of the whole experiment stay as they are; the same command without --only makes them")
        else:
            print(f"report: {result.report}")
        counts = f"{result.outcome.codec_images} images decoded, {result.outcome.model_images} predicted on"
        print(f"computed in this run: {counts}; everything else was stored")
        for doubt in doubts_of_originals(result.scores, result.table_spec.primary):
            print_error(doubt)
    cells_by_reason: dict[str, list[str]] = {}
    for failure in result.outcome.failures:
        cells_by_reason.setdefault(failure.reason, []).append(failure.cell)
    for reason, cells in cells_by_reason.items():
        print_error(f"{cells[0]}{f' and {len(cells) - 1} more' if len(cells) > 1 else ''}: {reason}")
    if result.missing:
        print_error(f"{len(result.missing)} cells are missing:", *result.missing)
    for cell in result.outcome.replaced:
        print_error(f"{cell}: its pixels were not kept, so all its tasks were computed anew on other ones")
    return 1 if result.missing or (result.outcome.failures and not result.tolerated) else 0


def _plan(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.plan import estimate_standard_sets, plan
    from icmbench.harness.commands.probe import describe_costs, probe
    from icmbench.harness.commands.show import show_plan, show_standard_sets
    from icmbench.harness.config.selection import Selection
    from icmbench.harness.store.folder import Folder
    from icmbench.harness.work.bench import Bench

    if options.workers < 1:
        raise UserError("--workers: at least 1")
    experiment, out = _load_experiment(options)
    part, folder = Selection.parse(options.only).part_of(experiment), Folder(out)
    measured = None if options.probe is None else probe(experiment, part, folder, options.probe)
    bench = Bench(part, folder)
    frame = plan(bench)
    show_plan(frame)
    show_standard_sets(estimate_standard_sets(bench))
    memory = measured.memory if measured else 0
    unmeasured = int(frame["seconds"].isna().sum())
    for line in describe_costs(frame["seconds"].sum(), unmeasured, frame["bytes"].sum(), options.workers, memory, folder):
        print(line)
    for failure in measured.failures if measured else ():
        print_error(failure)
    return 1 if measured and measured.failures else 0


def _status(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.status import print_status
    from icmbench.harness.config.selection import Selection

    print_status(options.run, Selection.parse(options.only))
    return 0


def _report(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.show import show_bdrate
    from icmbench.harness.config.files import refuse_to_replace
    from icmbench.harness.config.selection import Selection
    from icmbench.harness.derive.tables import bundle, read_report_inputs, rewrite_report, write_part

    products = ["bdrate.csv", "report", *(["bundle"] if options.bundle else [])]
    refuse_to_replace([Path(file) for file in options.published or ()], options.run, products)
    report_inputs = read_report_inputs(options.run, options.anchor, options.published, options.method, options.envelope)
    only = Selection.parse(options.only)
    if only and options.bundle:
        raise UserError("--bundle holds the tables of a whole run: leave out --only")
    bdrate, report = write_part(options.run, report_inputs, only) if only else rewrite_report(options.run, report_inputs)
    show_bdrate(report_inputs.table_spec.only_primary(bdrate))
    print(f"report: {report}")
    if options.bundle:
        print(f"bundle: {bundle(options.run, report_inputs, bdrate)}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.compare import print_comparison

    print_comparison(options.runs, options.tolerance)
    return 0


def _bdrate(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.bdrate import print_bdrate

    bd_options = (options.anchor, options.method, options.envelope)
    print_bdrate(options.curves, *bd_options, options.lower_is_better, options.published, options.out)
    return 0


def _list(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.listing import print_list

    print_list(options.kind)
    return 0


def _train(options: argparse.Namespace) -> int:
    from icmbench.harness.config.recipe import load_recipe, write_recipe

    if options.write is not None:
        write_recipe(str(options.recipe), options.write)
        print(f"{options.write}: set its paths, then icmbench train {options.write}")
        return 0
    from icmbench.harness.commands.training import train
    from icmbench.harness.store.folder import safe_name

    recipe = load_recipe(options.recipe)
    print(f"weights: {train(recipe, options.out or Path('runs') / safe_name(recipe.name), options.progress)}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.doctor import print_diagnosis, print_environments

    if options.experiment is not None:
        return 0 if print_environments(options.experiment) else 1
    print_diagnosis(Path.cwd())
    return 0


def _guest(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.guest import check_adapter, write_skeleton

    if options.verb == "new":
        path = write_skeleton(options.name)
        print(f"{path}: fill it in, then icmbench guest check {path}")
        return 0
    arguments = (options.environment, options.experiment, options.path, options.set, options.point, options.picture)
    return 0 if check_adapter(options.adapter, *arguments) else 1


def _pack(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.coding import make_codec
    from icmbench.harness.config.files import refuse_to_replace
    from icmbench.harness.store.pack import Pack, decode_sample
    from icmbench.harness.store.pack_export import export

    if options.verb == "export":
        run_files = [file for file in sorted(Path(options.run).rglob("*")) if file.suffix in (".json", ".yaml", ".csv", ".parquet")]
        refuse_to_replace(run_files, options.out.parent, [options.out.name])
        manifest = export(options.run, options.codec, options.out)
        print(f"{options.out}: {sum(len(point.streams) for point in manifest.points)} streams of {len(manifest.points)} points")
        return 0
    pack = Pack(options.pack)
    print(f"{options.pack}: {pack.check()} streams of {pack.manifest.codec!r} as recorded, pack SHA-256 {pack.sha256}")
    for line in decode_sample(pack, lambda point, extra: make_codec(pack.manifest.codec, options.set, point, extra)):
        print(line)
    return 0


def _export(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.export import export

    for line in export(options.run, options.codec, options.dataset, options.to):
        print(line, flush=True)
    return 0


def _encode(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.coding import encode, make_codec

    size, bpp = encode(options.input, lambda: make_codec(options.codec, options.set, options.point), options.output)
    print(f"{size} bytes, {bpp:.4f} bpp")
    return 0


def _decode(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.coding import decode

    decode(options.input, options.codec, options.set, options.point, options.output)
    return 0


def _convert(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.coding import convert

    print(f"{options.output}: {convert(options.input, options.output, options.trust)} tensors")
    return 0


def _store(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.store import run_verb

    return run_verb(options)


def _merge(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.merge import print_merge

    return print_merge(options)


COMMANDS = {
    "run": _run,
    "plan": _plan,
    "status": _status,
    "report": _report,
    "compare": _compare,
    "bdrate": _bdrate,
    "list": _list,
    "encode": _encode,
    "decode": _decode,
    "train": _train,
    "pack": _pack,
    "export": _export,
    "store": _store,
    "merge": _merge,
    "convert": _convert,
    "doctor": _doctor,
    "guest": _guest,
    "demo": _demo,
}


if __name__ == "__main__":
    sys.exit(main())
