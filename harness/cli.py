"""The command line. Each command imports what it needs when it runs, so that `icmbench list` answers at once."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from icmbench.harness.commands.console import describe_error, flush_or_silence, open_missing_streams, print_error
from icmbench.harness.config.errors import UserError

if TYPE_CHECKING:
    from icmbench.harness.commands.run import RunOptions, RunResult

TRACEBACK_VARIABLE = "ICMBENCH_TRACEBACK"  # If set, defects are shown with Python's traceback.

# Adds a command: its name, the function that carries it out, and its help.
AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


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
    # Clusters end a job with SIGTERM; handled like Ctrl-C, it stops the worker processes too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options = _make_parser().parse_args(arguments)
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
    except KeyboardInterrupt:
        print_error("stopped; the same command goes on from here")
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


class _Parser(argparse.ArgumentParser):
    """A parser whose messages, as all others, repeat neither credentials nor control characters."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print_error(message)
        raise SystemExit(2)


# The arguments of each command.


def _make_parser() -> argparse.ArgumentParser:
    from icmbench.harness.commands.merge import add_merge_command
    from icmbench.harness.commands.store import add_store_command

    parser = _Parser(prog="icmbench", description="Score any image codec by what machines can still do with it.")
    parser.add_argument("--version", action="version", version=f"icmbench {version('icmbench')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(command=function)
        return command

    _add_run_and_plan(add)
    _add_tables(add)
    command = add("list", _list, "what can be named in an experiment file")
    command.add_argument("kind", nargs="?", choices=["codecs", "tasks", "datasets", "models", "recipes"])
    _add_encode_and_decode(add)
    _add_train(add)
    _add_pack(add)
    add_store_command(add)
    add_merge_command(add)
    _add_convert(add)
    add("doctor", _doctor, "what of all this is usable on this machine, and why not")
    command = add("demo", _demo, "ten codecs, three tasks, on photographs, models and small weights from packages; under 5 minutes")
    command.add_argument("--out", default="runs/demo", metavar="RUN")
    _add_run_options(command, workers=2)
    return parser


def _add_run_and_plan(add: AddCommand) -> None:
    run = add("run", _run, "compute what is missing of an experiment, then its tables and report")
    _add_experiment(run)
    _add_run_options(run, workers=1)
    run.add_argument("--bootstrap", type=int, metavar="N", help="replicates behind the 95%% intervals (default 200; papers: 1000)")
    plan = add("plan", _plan, "which cells are missing, how long they take, and what the standard sets would")
    _add_experiment(plan)


def _add_experiment(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    command.add_argument("--out", metavar="RUN", help="run folder, or an object store's URL (default: runs/<name>)")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N images of each dataset; marks every table")


def _add_run_options(command: argparse.ArgumentParser, workers: int) -> None:
    add = command.add_argument
    add("--workers", type=int, default=workers, metavar="N", help=f"processes that share the cores (default {workers})")
    add("--executor", choices=["local", "ray"], default="local", help="where workers run (ray: RAY_ADDRESS, or local)")
    add("--gpus", type=float, default=0.0, metavar="G", help="GPUs of each worker of a Ray cluster (default 0)")
    add("--keep", choices=["reconstructions"], help="keep every reconstruction as a lossless picture")
    add("--shard", metavar="I/N", help="only the I-th of N parts, for N jobs; then run once without it for the tables")
    add("--images", type=int, default=12, metavar="N", help="images in the report, most damaged first (default 12)")


def _add_tables(add: AddCommand) -> None:
    report = add("report", _report, "write a run's BD table, curves and report anew from its scores.csv")
    report.add_argument("run", type=Path, metavar="RUN")
    report.add_argument("--anchor", help="another anchor than the experiment's")
    _add_interpolation(report, method=None, envelope=None)
    report.add_argument("--bundle", action="store_true", help="also bundle/: tables, CSVs, figures as PNG, SVG and PDF, provenance")
    _add_published(report, "draw curves that papers report, dashed, in no table")
    compare = add("compare", _compare, "what moved between two runs, and which codec, weight, library, image or setting moved it")
    compare.add_argument("runs", type=Path, nargs=2, metavar="RUN")
    compare.add_argument(
        "--tolerance", type=float, default=1e-9, metavar="T", help="relative difference that counts as equal (1e-9)"
    )
    bdrate = add("bdrate", _bdrate, "BD-rate table of a CSV: scores.csv, or columns codec, bpp and one a metric")
    bdrate.add_argument("curves", type=Path, metavar="CURVES.csv")
    bdrate.add_argument("--anchor", required=True)
    _add_interpolation(bdrate, method="pchip", envelope="pareto")
    bdrate.add_argument("--lower-is-better", nargs="*", default=[], metavar="METRIC", help="metrics of which less is better")
    _add_published(bdrate, "let curves that papers report take part")
    bdrate.add_argument("--out", type=Path, metavar="FOLDER", help="write bdrate.csv and report/ with all tables and curves there")


def _add_interpolation(command: argparse.ArgumentParser, method: str | None, envelope: str | None) -> None:
    about = "of BD-rates (pchip, pareto, or the experiment's)"
    command.add_argument("--method", choices=["pchip", "cubic", "akima"], default=method, help=about)
    command.add_argument("--envelope", choices=["error", "pareto", "isotonic"], default=envelope, help=about)


def _add_published(command: argparse.ArgumentParser, about: str) -> None:
    command.add_argument("--published", nargs="*", metavar="FILE", help=f"{about}: of CSV or JSON files, or those in icmbench")


def _add_encode_and_decode(add: AddCommand) -> None:
    for name, function, about in (("encode", _encode, "an image to a stream"), ("decode", _decode, "a stream to an image")):
        command = add(name, function, about)
        command.add_argument("--codec", metavar="NAME", required=name == "encode")
        default = "the codec's first" if name == "encode" else "the stream's"
        command.add_argument("--point", help=f"rate point, as in an experiment file (default: {default})")
        _add_settings(command)
        command.add_argument("input", type=Path, metavar="IN")
        command.add_argument("output", type=Path, metavar="OUT")


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a codec option; may be repeated")


def _add_train(add: AddCommand) -> None:
    train = add("train", _train, "train a codec or a backbone by a recipe; goes on where it stopped")
    train.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="a file, or a name out of `icmbench list recipes`")
    train.add_argument("--out", type=Path, metavar="RUN", help="run folder (default: runs/<name>)")
    train.add_argument("--write", type=Path, metavar="FILE", help="train nothing, but write the named recipe into a file to edit")


def _add_pack(add: AddCommand) -> None:
    pack = add("pack", _pack, "streams of one codec of a run in one file, for runs that then need not encode")
    verbs = pack.add_subparsers(required=True, metavar="VERB", dest="verb")
    export = verbs.add_parser("export", help="write a run's streams of one codec; name the file as the codec's `pack` elsewhere")
    export.add_argument("run", metavar="RUN")
    export.add_argument("--codec", required=True, metavar="LABEL")
    export.add_argument("--out", required=True, type=Path, metavar="PACK")
    verify = verbs.add_parser("verify", help="check every hash, and decode a sample where the codec can be used here")
    verify.add_argument("pack", type=Path, metavar="PACK")
    _add_settings(verify)


def _add_convert(add: AddCommand) -> None:
    convert = add("convert", _convert, "write a checkpoint's tensors alone, as .safetensors or .pth")
    convert.add_argument(
        "--trust", action="store_true", help="run what code its pickle holds: only for files whose origin you trust"
    )
    convert.add_argument("input", type=Path, metavar="CHECKPOINT")
    convert.add_argument("output", type=Path, metavar="OUT")


# The functions that carry out the commands.


def _load_experiment(options: argparse.Namespace) -> tuple[Any, str]:
    """The experiment and the run folder that `run` or `plan` was called with."""
    from icmbench.harness.config.experiment import load_experiment
    from icmbench.harness.store.folder import safe_name

    experiment = load_experiment(options.experiment)
    if options.limit is not None:
        if options.limit < 1:
            raise UserError("--limit: at least 1")
        experiment = experiment.model_copy(update={"limit": options.limit})
    return experiment, options.out or f"runs/{safe_name(experiment.name)}"


def _run(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.run import run

    experiment, out = _load_experiment(options)
    if (options.bootstrap or 0) < 0:
        raise UserError("--bootstrap: a number of replicates, or 0 for no intervals")
    if options.bootstrap is not None:
        experiment = experiment.model_copy(update={"bootstrap": options.bootstrap})
    return _show_result(run(experiment, out, _make_run_options(options), source=options.experiment))


def _demo(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.run import run
    from icmbench.harness.config.experiment import load_experiment

    source = Path(__file__).with_name("demo.yaml")
    return _show_result(run(load_experiment(source), options.out, _make_run_options(options), source=source))


def _make_run_options(options: argparse.Namespace) -> RunOptions:
    from icmbench.harness.commands.run import RunOptions

    if options.workers < 1:
        raise UserError("--workers: at least 1")
    shard = None
    if options.shard is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", options.shard)
        shard = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= shard[0] <= shard[1]:
            raise UserError(f"--shard {options.shard}: write I/N with I from 1 to N")
    return RunOptions(options.workers, options.executor, options.gpus, bool(options.keep), shard, max(0, options.images))


def _show_result(result: RunResult) -> int:
    """Print a run's table on standard output and its failures on standard error; return the exit code."""
    from icmbench.harness.commands.show import show_bdrate, show_scores

    if result.table_spec is not None:
        if len(result.bdrate):
            show_bdrate(result.table_spec.only_primary(result.bdrate))
        else:
            show_scores(result.table_spec.only_primary(result.scores))
        print(f"report: {result.report}")
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
    from icmbench.harness.commands.show import show_plan, show_standard_sets
    from icmbench.harness.store.folder import Folder
    from icmbench.harness.work.bench import Bench

    experiment, out = _load_experiment(options)
    bench = Bench(experiment, Folder(out))
    show_plan(plan(bench))
    show_standard_sets(estimate_standard_sets(bench))
    return 0


def _report(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.show import show_bdrate
    from icmbench.harness.derive.tables import bundle, read_report_inputs, rewrite_report

    report_inputs = read_report_inputs(options.run, options.anchor, options.published, options.method, options.envelope)
    bdrate, report = rewrite_report(options.run, report_inputs)
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
    print(f"weights: {train(recipe, options.out or Path('runs') / safe_name(recipe.name))}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.doctor import print_diagnosis

    print_diagnosis(Path.cwd())
    return 0


def _pack(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.coding import make_codec
    from icmbench.harness.store.pack import Pack, decode_sample
    from icmbench.harness.store.pack_export import export

    if options.verb == "export":
        manifest = export(options.run, options.codec, options.out)
        print(f"{options.out}: {sum(len(point.streams) for point in manifest.points)} streams of {len(manifest.points)} points")
        return 0
    pack = Pack(options.pack)
    print(f"{options.pack}: {pack.check()} streams of {pack.manifest.codec!r} as recorded, pack SHA-256 {pack.sha256}")
    for line in decode_sample(pack, lambda point, extra: make_codec(pack.manifest.codec, options.set, point, extra)):
        print(line)
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


if __name__ == "__main__":
    sys.exit(main())
