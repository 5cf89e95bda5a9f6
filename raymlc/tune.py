"""python -m raymlc.tune: search the hyperparameters of a multi-label image classifier."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
import tyro
from filelock import FileLock, Timeout
from rich.console import Console

from raymlc.cluster.environment import prepare_environment
from raymlc.data.demo import draw_demo
from raymlc.data.table import Table, choose_heads, read_header, read_table
from raymlc.errors import UserError
from raymlc.labels import MISSING
from raymlc.metric import check_metric
from raymlc.model.backbones import check_backbone_name
from raymlc.search.options import TuneOptions
from raymlc.search.space import Space, built_in, check_space, load_space
from raymlc.trial import TrialConfig, parse_assignment

OPTIONS_FILE, SPACE_FILE = "sweep.json", "space.py"  # in a sweep's folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when done, 1 if no trial succeeded, 2 for wrong input, 130 after Ctrl-C."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        folder = _claim_folder(options)
        try:
            with FileLock(folder / ".lock", timeout=0):
                return _tune(options, folder, _console())
        except Timeout:
            raise UserError(
                f"one process at a time runs a sweep, but another runs {folder}; wait for it, or"
                " choose another --name"
            ) from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # once trials run, it is caught where they are
        print("interrupted before the first trial", file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str]) -> TuneOptions:
    options = _parse_over(TuneOptions(), arguments)
    if not options.resume:
        return options
    if options.name is None:
        raise UserError("--resume goes on with a sweep by its --name, but none is given")
    path = options.output / options.name / OPTIONS_FILE
    if not path.is_file():
        raise UserError(
            f"--resume needs a sweep that began, but {path.parent} holds none; leave --resume out"
        )
    saved = dataclasses.replace(
        TuneOptions.load(path), output=options.output, name=options.name, resume=False
    )
    options = _parse_over(saved, arguments)
    options.check_kept(saved)
    return options


def _parse_over(default: TuneOptions, arguments: Sequence[str]) -> TuneOptions:
    return tyro.cli(
        TuneOptions,
        prog="python -m raymlc.tune",
        args=list(arguments),
        default=default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _claim_folder(options: TuneOptions) -> Path:
    """The sweep's folder, made if need be. Raises UserError for a name that is taken."""
    name = options.name or time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = options.output.absolute() / name
    if not options.resume and (folder / OPTIONS_FILE).exists():
        raise UserError(
            f"a sweep {name!r} is in {options.output} already; go on with it by --resume, or choose"
            " another --name"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise UserError(f"--output must be a folder to write in, but {folder}: {error}") from error
    return folder


def _tune(options: TuneOptions, folder: Path, console: Console) -> int:
    space, configs = _check_words(options, folder)
    table = read_table(options.data or _demo(options, console), options.heads, options.val_fraction)
    _check_metric_has_labels(options.metric, table)

    prepare_environment(own_ray=options.address is None)
    # torch, timm and Ray take seconds to import: only once the words are known to be right.
    from raymlc.cluster.launch import check_trials, launch

    check_trials(options, configs, table, console)
    if not options.resume:
        (folder / SPACE_FILE).write_bytes(space.path.read_bytes())
    options.save(folder / OPTIONS_FILE)
    return launch(options, folder, space, max(c.epochs for c in configs), table, console)


def _console() -> Console:
    # Into a file or a pipe the table of trials needs more than the 80 columns of a terminal.
    return Console() if sys.stdout.isatty() else Console(width=140)


def _check_words(options: TuneOptions, folder: Path) -> tuple[Space, list[TrialConfig]]:
    """The space, and trials drawn from it. Raises UserError for whatever can be known by now."""
    for name in ("trials", "workers", "concurrency"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, but is {value}")
    for name in ("cpus_per_worker", "gpus_per_worker"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise UserError(f"--{name.replace('_', '-')} must be at least 0, but is {value}")
    if options.data:
        header = read_header(options.data)
        check_metric(options.metric, choose_heads(header, options.heads, options.data.name))
    fixed = dict(parse_assignment(text) for text in options.fixed)
    if options.weights:
        if not options.weights.is_file():
            raise UserError(f"--weights must name a file, but {options.weights} is not one")
        fixed["weights"] = str(options.weights.absolute())
    chosen = options.space or built_in("default" if options.data else "demo")
    space = load_space(folder / SPACE_FILE if options.resume else chosen, fixed)
    configs = check_space(space)
    for backbone in {config.backbone for config in configs}:
        check_backbone_name(backbone)
    return space, configs


def _demo(options: TuneOptions, console: Console) -> Path:
    """The built-in data set, drawn unless it was before."""
    folder = options.cache.expanduser() / "demo"
    if not folder.exists():
        console.print(f"drawing the built-in data set in {folder}", highlight=False)
    draw_demo(folder)
    check_metric(options.metric, choose_heads(read_header(folder), options.heads, "train.csv"))
    return folder


def _check_metric_has_labels(metric: str, table: Table) -> None:
    """Raises UserError if nothing in the validation split has the label that the metric is of."""
    targets = table.splits["val"].targets
    known = {
        head: bool((targets.values_NT[:, columns.start] != MISSING).any())
        for head, columns in targets.columns.items()
    }
    head = metric.partition("/")[2].partition("/")[2]
    if not (known[head] if head else any(known.values())):
        raise UserError(f"{metric} needs labels to validate on, but no validation row has any")


if __name__ == "__main__":
    sys.exit(main())
