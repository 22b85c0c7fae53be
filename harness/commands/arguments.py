"""The arguments of every command, with what `--help` says of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from icmbench.harness.commands.console import print_error

# Adds a command: its name and its help.
AddCommand = Callable[[str, str], argparse.ArgumentParser]


class _Parser(argparse.ArgumentParser):
    """A parser whose messages, as all others, repeat neither credentials nor control characters.

    Each command has one of its own, so that what is wrong with its arguments is said beside its own usage.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments, and refuse those that this command does not have, with the most similar one that it has."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            import difflib

            flags = [flag for action in self._actions for flag in action.option_strings]
            similar = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1, cutoff=0.5)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            self.error(f"unknown argument {unknown[0]!r}{hint}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print_error(message)
        raise SystemExit(2)


class _ShowVersion(argparse.Action):
    """Prints the version of the installed package, which is looked up only here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"icmbench {version('icmbench')}")
        parser.exit()


def make_parser(functions: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """The parser of the command line. What it returns has the function of the command as `command`.

    Args:
        functions: what carries out each command, by its name.
    """
    parser = _Parser(prog="icmbench", description="Score any image codec by what machines can still do with it.")
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show program's version number and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(command=functions[name])
        return command

    _add_run_and_plan(add)
    _add_tables(add)
    command = add("list", "what can be named in an experiment file")
    command.add_argument("kind", nargs="?", choices=["codecs", "tasks", "datasets", "models", "recipes"])
    _add_encode_and_decode(add)
    _add_train(add)
    _add_pack(add)
    _add_export(add)
    _add_store(add)
    _add_merge(add)
    _add_convert(add)
    command = add("doctor", "what of all this is usable on this machine, and why not")
    command.add_argument("experiment", nargs="?", type=Path, metavar="EXPERIMENT.yaml", help="say what its environments have")
    _add_guest(add)
    command = add("demo", "ten codecs, three tasks, on photographs, models and small weights from packages; under 5 minutes")
    command.add_argument("--out", default="runs/demo", metavar="RUN")
    _add_run_options(command, workers=2)
    return parser


def _add_guest(add: AddCommand) -> None:
    guest = add("guest", "adapter files for codecs that run in Python environments of their own")
    verbs = guest.add_subparsers(required=True, metavar="VERB", dest="verb")
    about = "try an adapter: odd sizes, decoding in a fresh process, batches, damaged streams; exit code 1 if something is wrong"
    check = verbs.add_parser("check", help=about, description=about)
    check.add_argument("adapter", type=Path, metavar="ADAPTER.py", help="the file, or the name of one that comes with icmbench")
    check.add_argument("--environment", metavar="NAME", help="a key of `environments`, or the path of a Python interpreter")
    check.add_argument("--experiment", type=Path, metavar="EXPERIMENT.yaml", help="the file that has it (default: one here)")
    about = "a folder before its module search path, such as a checkout; may be repeated"
    check.add_argument("--path", action="append", default=[], metavar="FOLDER", help=about)
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the adapter; may be repeated")
    check.add_argument("--point", metavar="POINT", help="the rate point (default: the adapter's first)")
    check.add_argument(
        "--picture", action="append", type=Path, default=[], metavar="FILE", help="try this picture too; may be repeated"
    )
    new = verbs.add_parser("new", help="write a commented skeleton of an adapter, NAME.py")
    new.add_argument("name", metavar="NAME")


def _add_run_and_plan(add: AddCommand) -> None:
    run = add("run", "compute what is missing of an experiment, then its tables and report")
    _add_experiment(run)
    _add_run_options(run, workers=1)
    _add_only(run, "compute only a part, and print its scores; the tables of the whole stay as they are")
    run.add_argument("--bootstrap", type=int, metavar="N", help="replicates behind the 95%% intervals (default 200; papers: 1000)")
    status = add("status", "how far the commands have come that work in a run folder now, and what each worker does")
    status.add_argument("run", metavar="RUN", help="run folder, or an object store's URL")
    _add_only(status, "count only a part")
    plan = add("plan", "which cells are missing, how long they take, and what the standard sets would")
    _add_experiment(plan)
    _add_only(plan, "plan only a part")
    plan.add_argument("--probe", type=int, metavar="N", help="first compute N images of each dataset, which are kept, to measure")
    plan.add_argument("--workers", type=int, default=1, metavar="N", help="say time and memory of so many workers (default 1)")


def _add_only(command: argparse.ArgumentParser, about: str) -> None:
    kinds = "codec=LABEL, task=LABEL, dataset=NAME or point=POINT"
    command.add_argument("--only", action="append", default=[], metavar="KIND=NAME", help=f"{about}: {kinds}; may be repeated")


def _add_experiment(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    command.add_argument("--out", metavar="RUN", help="run folder, or an object store's URL (default: runs/<name>)")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N images of each dataset; marks every table")
    about = "another value for a key of the experiment file, such as codecs.jpeg.points=[10,20]; may be repeated"
    command.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help=about)


def _add_run_options(command: argparse.ArgumentParser, workers: int) -> None:
    add = command.add_argument
    about = f"processes that share the cores; each codes and holds all models (default {workers}; 0: none but this one)"
    add("--workers", type=int, metavar="N", help=about)
    command.set_defaults(default_workers=workers)
    add("--coders", type=int, metavar="N", help="instead: N processes encode and decode (default from the cores)")
    add(
        "--models", type=int, metavar="M", help="... for M processes that hold the models (default: one for each GPU, at least one)"
    )
    add("--deal-tasks", action="store_true", help="... each of which holds a share of them, where memory is too short for all")
    add("--executor", choices=["local", "ray"], default="local", help="where workers run (ray: RAY_ADDRESS, or local)")
    add("--gpus", type=float, default=0.0, metavar="G", help="GPUs of each worker of a Ray cluster (default 0)")
    add("--devices", metavar="N,N", help="deal these GPUs of this machine to the workers, one to each in turn")
    add("--keep", choices=["reconstructions"], help="keep every reconstruction as a lossless picture")
    add("--shard", metavar="I/N", help="only the I-th of N parts, for N jobs; then run once without it for the tables")
    add("--images", type=int, default=12, metavar="N", help="images in the report, most damaged first (default 12)")
    add("--progress", type=float, default=30.0, metavar="SECONDS", help="a line on standard error so often (default 30; 0: none)")


def _add_tables(add: AddCommand) -> None:
    report = add("report", "write a run's BD table, curves and report anew from its scores.csv")
    report.add_argument("run", type=Path, metavar="RUN")
    report.add_argument("--anchor", help="another anchor than the experiment's")
    _add_interpolation(report, method=None, envelope=None)
    _add_only(report, "write report and table of a part into parts/ of the run folder; those of the whole stay as they are")
    report.add_argument("--bundle", action="store_true", help="also bundle/: tables, CSVs, figures as PNG, SVG and PDF, provenance")
    _add_published(report, "draw curves that papers report, dashed, in no table")
    compare = add("compare", "what moved between two runs, and which codec, weight, library, image or setting moved it")
    compare.add_argument("runs", type=Path, nargs=2, metavar="RUN")
    compare.add_argument(
        "--tolerance", type=float, default=1e-9, metavar="T", help="relative difference that counts as equal (1e-9)"
    )
    bdrate = add("bdrate", "BD-rate table of a CSV: scores.csv, or columns codec, bpp and one a metric")
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
    for name, about in (("encode", "an image to a stream"), ("decode", "a stream to an image")):
        command = add(name, about)
        command.add_argument("--codec", metavar="NAME", required=name == "encode")
        default = "the codec's first" if name == "encode" else "the stream's"
        command.add_argument("--point", help=f"rate point, as in an experiment file (default: {default})")
        _add_settings(command)
        command.add_argument("input", type=Path, metavar="IN")
        command.add_argument("output", type=Path, metavar="OUT")


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a codec option; may be repeated")


def _add_train(add: AddCommand) -> None:
    train = add("train", "train a codec or a backbone by a recipe; goes on where it stopped")
    train.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="a file, or a name out of `icmbench list recipes`")
    train.add_argument("--out", type=Path, metavar="RUN", help="run folder (default: runs/<name>)")
    about = "a line on standard error so often (default 30; 0: none)"
    train.add_argument("--progress", type=float, default=30.0, metavar="SECONDS", help=about)
    train.add_argument("--write", type=Path, metavar="FILE", help="train nothing, but write the named recipe into a file to edit")


def _add_pack(add: AddCommand) -> None:
    pack = add("pack", "streams of one codec of a run in one file, for runs that then need not encode")
    verbs = pack.add_subparsers(required=True, metavar="VERB", dest="verb")
    export = verbs.add_parser("export", help="write a run's streams of one codec; name the file as the codec's `pack` elsewhere")
    export.add_argument("run", metavar="RUN")
    export.add_argument("--codec", required=True, metavar="LABEL")
    export.add_argument("--out", required=True, type=Path, metavar="PACK")
    verify = verbs.add_parser("verify", help="check every hash, and decode a sample where the codec can be used here")
    verify.add_argument("pack", type=Path, metavar="PACK")
    _add_settings(verify)


def _add_export(add: AddCommand) -> None:
    export = add("export", "the pictures that a run scored as PNG files, for programs that predict on them elsewhere")
    export.add_argument("run", metavar="RUN")
    about = "a codec's label, alone or with a point as in 'jpeg quality=20', or uncompressed; may be repeated (default: all)"
    export.add_argument("--codec", action="append", default=[], metavar="'LABEL[ POINT]'", help=about)
    export.add_argument("--dataset", action="append", default=[], metavar="NAME", help="may be repeated (default: all)")
    export.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="a new folder, or an earlier export of this run")


def _add_convert(add: AddCommand) -> None:
    convert = add("convert", "write a checkpoint's tensors alone, as .safetensors or .pth")
    convert.add_argument(
        "--trust", action="store_true", help="run what code its pickle holds: only for files whose origin you trust"
    )
    convert.add_argument("input", type=Path, metavar="CHECKPOINT")
    convert.add_argument("output", type=Path, metavar="OUT")


def _add_merge(add: AddCommand) -> None:
    merge = add("merge", "codecs and tasks of runs over the same images as one run; tables and report are derived anew")
    merge.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or their URLs; the first one's settings count")
    merge.add_argument("--out", required=True, metavar="RUN", help="the merged run folder, or an object store's URL")
    merge.add_argument("--common", action="store_true", help="cut different image sets to what all runs have; marks every table")
    merge.add_argument("--folder", type=Path, help="where relative paths of the experiments start, to find labels")
    merge.add_argument("--workers", type=int, default=1, metavar="N", help="processes that draw slow intervals (default 1)")
    merge.add_argument("--images", type=int, default=12, metavar="N", help="images in the report, most damaged first (default 12)")


def _add_store(add: AddCommand) -> None:
    place = "a run folder, or a store's path or URL"
    store = add("store", "what a store holds, whether it is whole, what of it no run needs, and copies of a part")
    verbs = store.add_subparsers(required=True, metavar="VERB", dest="verb")

    def add_verb(name: str, about: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=about, description=about)
        verb.add_argument("store", metavar="STORE", help=place)
        return verb

    du = add_verb("du", "bytes and rows by codec and task")
    ls = add_verb("ls", "one line for each codec point and task: rows, files, bytes, latest row, and who refers to it")
    ls.add_argument("--long", action="store_true", help="print whole fingerprints")
    for verb in (du, ls):
        verb.add_argument("--json", action="store_true", help="print JSON")
    verify = add_verb("verify", "read every file and check every hash; exit code 1 if one is damaged")
    verify.add_argument("--repair", action="store_true", help="delete damaged files that are computed again")
    clean = add_verb("clean", "show, and with --yes remove, what no run needs and is older than a day")
    clean.add_argument("--run", action="append", default=[], metavar="RUN", help="forget a run that is gone; may be repeated")
    clean.add_argument("--yes", action="store_true", help="remove it")
    copy = add_verb("copy", "copy a store or a part of it; what the destination holds stands")
    copy.add_argument("destination", metavar="DESTINATION", help=f"{place}; it is made if it is absent")
    copy.add_argument("--codec", nargs="+", action="extend", default=[], metavar="CODEC", help="only streams of these codecs")
    copy.add_argument("--task", nargs="+", action="extend", default=[], metavar="TASK", help="only predictions of these tasks")
    copy.add_argument("--fingerprint", nargs="+", action="extend", default=[], metavar="DIGEST", help="only these; see `ls`")
    copy.add_argument("--pictures", action="store_true", help="kept pictures of the copied streams too")
