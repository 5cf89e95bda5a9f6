"""The options of a sweep and of a training, typed, and kept in their folder for a resumption."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from raymlc.data.store import DEFAULT_CACHE, BrokenImages
from raymlc.errors import UserError
from raymlc.search.choice import PrunerName, SamplerName
from raymlc.search.place import check_kept, without_password

# What a resumption keeps, and what trials must share to be compared.
OF_THE_DATA = ("data", "heads", "classes", "metric", "val_fraction")
_Options = TypeVar("_Options", bound="RunOptions")


@dataclass(frozen=True)
class DataOptions:
    """What is learnt from."""

    data: Path | None = None
    """Folder with train.csv, val.csv (and test.csv), or one CSV file to split: a column image_path,
    relative to it, and a column for each head. Without it, a built-in data set is drawn."""
    heads: tuple[str, ...] = ()
    """The columns to predict. Default: all but image_path."""
    classes: Path | None = None
    """CSV with the columns of the heads, whose labels are classes even where no training row has
    them. Default: the classes are those of the training rows."""
    val_fraction: float = 0.2
    """Share of the training rows set aside for validation where there is no val.csv."""
    broken_images: BrokenImages = "stop"
    """What to do about an image that cannot be read: stop, or skip its row."""
    allow_outside: bool = False
    """Let the table name images outside of its folder. Without it only what lies there, or what a
    link there leads to, is opened."""
    cache: Path = DEFAULT_CACHE
    """Where each node keeps its decoded images."""


@dataclass(frozen=True)
class NetworkOptions:
    """What is trained, and what is best."""

    fixed: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="FIELD=VALUE ...")] = ()
    """Fields of the trial, such as backbone=efficientnet_b2 image_size=260 epochs=20; of a field
    with a value a head, head_weights/color=2."""
    weights: Path | None = None
    """Pretrained weights: a file of the backbone's, or the folder of a checkpoint, whose heads are
    kept where name and classes are the same."""
    metric: str = "val/accuracy"
    """What the best is chosen by: val/accuracy, val/balanced_accuracy, val/macro_f1, val/loss or
    another of validation's, over all heads or of one, such as val/accuracy/color. Several, with
    commas between, are traded off: a sweep ends with their Pareto front, and a trial keeps the
    epoch with the best mean of them."""


@dataclass(frozen=True)
class FolderOptions:
    """Where the run is kept, and what it says."""

    name: str | None = None
    """Name of the run, which is its folder in --output. Default: the present time."""
    output: Path = Path("runs")
    """Where runs are kept; on a cluster, storage that every node sees."""
    resume: bool = False
    """Go on with the run --name, with its own options where none is given anew."""
    quiet: bool = False
    """Say nothing but the result and errors."""
    verbose: bool = False
    """Show what Ray itself says."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a trial runs on."""

    workers: int = 1
    """Processes that train one trial together; they share its batch_size, and lr stays as it is."""
    trainer: Literal["process", "torch"] = "process"
    """Where a trial of one worker runs: in a process of the sweep's own, or in a Ray TorchTrainer's
    as trials of more workers do. Both stay warm from trial to trial."""
    cpus_per_worker: float | None = None
    """Cores of each worker, and its threads. Default: 1, or up to 4 beside a GPU; all of them for a
    single training in its own process."""
    gpus_per_worker: float | None = None
    """GPUs of each worker. Default: 1 where there are any."""
    address: str | None = None
    """Ray cluster to join ("auto" inside of one). Default: a Ray of its own on this machine."""


@dataclass(frozen=True)
class SearchOptions:
    """How trials are found."""

    space: Path | None = None
    """Python file with space(trial) -> TrialConfig. Default: lr, drop_rate, drop_path_rate, gc. A
    resumed sweep may get another one: its trials stay, and those that the new space could have
    given inform the search."""
    sampler: SamplerName | None = None
    """How trials are proposed. rungs is raymlc's own Bayesian optimisation, which learns from
    trials of every age, finished or not. tpe, cmaes, gp, nsga2, qmc, random are Optuna's; of trials
    that were stopped early tpe and cmaes learn, gp and nsga2 do not, and to tpe one that waits at a
    rung is a bad one. Default: rungs; of several metrics tpe."""
    pruner: PrunerName | None = None
    """When a trial is stopped early. promote: after 1/64, 1/16 and 1/4 of its own epochs it waits
    unless it is among the best quarter of those that came so far, and goes on when it is later.
    rungs: the same, but it ends there. asha: Optuna's halving, which keeps the better half after a
    fifth of the epochs and at each doubling; Optuna's hyperband, median, wilcoxon. one-epoch: each
    waits after its first epoch, and in the end the best tenth goes on, a baseline that is hard to
    beat. Of several metrics asha and rungs go by non-dominated rank. Default: promote; of several
    metrics asha."""
    enqueue: tuple[Path, ...] = ()
    """Trials to try before all others: JSON files, folders of checkpoints, or Python files that
    define one TrialConfig."""
    warm_start: Path | None = None
    """Folder of another sweep. Its best trial that this space can give is tried first; if data and
    metric are the same, all its finished trials that this space can give inform the search."""
    study: str | None = None
    """Where the study is kept: the URL of a database that Optuna takes, postgresql:// or mysql://,
    or a journal file. A password is better given in the environment, as the whole URL in
    RAYMLC_STUDY; it is written nowhere. Default: study.journal in the sweep's folder."""
    seed: int = 0
    """Of the proposals; a trial's own is its field seed."""


@dataclass(frozen=True)
class AmountOptions:
    """How many trials there are, and how long."""

    trials: str = "24"
    """How many trials the sweep shall have in all, failed ones included; of a resumed sweep, +N for
    N more than it has."""
    concurrency: int | None = None
    """Trials at a time. Default: as many as fit."""
    trials_per_gpu: int | Literal["auto"] = 1
    """Trials that share a GPU. auto: the first trials have one each; then 2, 4 and 8 share it, as
    long as they fit into nine tenths of its memory, by what trials were seen to take, and each step
    raises the images that it trains a second by a tenth; where memory did not do, one step less."""
    time_budget: str | None = None
    """Longest time of this run, such as 90m or 1h30m: then trials stop after their epoch, and
    --resume goes on with them."""
    epoch_budget: int | None = None
    """Most epochs of all trials together: then trials stop after their epoch."""
    finalists: int = 0
    """Trials to train again when the search has ended: the best ones, each --repeats times to full
    length under new seeds. The checkpoint to use comes from there, and an honest number."""
    repeats: int = 5
    """Trainings of each finalist, under seeds that all finalists share."""


@dataclass(frozen=True)
class TrialOptions:
    """The one trial, and its checkpoints."""

    trial: Path | None = None
    """The trial: a JSON file, the folder of a checkpoint such as runs/NAME/trials/0007/best, or a
    Python file that defines one TrialConfig. Default: the defaults of every field."""
    keep: int = 1
    """How many of the best epochs' checkpoints to keep."""
    keep_heads: bool = False
    """Keep for each head the checkpoint that was best for it, too."""


@dataclass(frozen=True)
class RunOptions(DataOptions, NetworkOptions, FolderOptions, WorkerOptions):
    """What sweeps and single trainings are asked alike: data, folder, workers."""

    def save(self, path: Path) -> None:
        """Write the options as JSON."""
        values = {name: _plain(value) for name, value in dataclasses.asdict(self).items()}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls: type[_Options], path: Path) -> _Options:
        """The options of `save`. Raises UserError for anything else.

        One that an earlier release did not have yet is as it is by default.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            for field in dataclasses.fields(cls):
                if field.name not in values and field.name not in OF_THE_DATA:
                    continue
                value = values[field.name]
                if isinstance(field.default, tuple):
                    values[field.name] = tuple(
                        Path(one) if field.name in _PATHS else one for one in value
                    )
                elif field.name in _PATHS and value is not None:
                    values[field.name] = Path(value)
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} must hold a run's options, but: {error!r}") from error

    def check_kept(self, saved: RunOptions) -> None:
        """Raises UserError if these options would change what a resumed run must keep."""
        for name in OF_THE_DATA:
            values = getattr(self, name), getattr(saved, name)
            new, old = (lasting(value) if isinstance(value, Path) else value for value in values)
            if new != old:
                raise UserError(
                    f"a resumed run keeps its {name}, but that is {old} and not {new}; begin"
                    " another one under another --name"
                )


@dataclass(frozen=True)
class TuneOptions(RunOptions, SearchOptions, AmountOptions):
    """Search hyperparameters of one network with a head for each attribute of your images.

    Without any option it draws a small data set and runs a real sweep on it in a few minutes.

    Examples:
      python -m raymlc.tune --data DIR --trials 32 --set backbone=efficientnet_b2 epochs=20
      python -m raymlc.tune --name NAME --resume --trials +20
    """

    def save(self, path: Path) -> None:
        """Write the options as JSON, but for the password of a database."""
        study = without_password(self.study) if self.study else None
        RunOptions.save(dataclasses.replace(self, study=study), path)

    def check_kept(self, saved: RunOptions) -> None:
        """Raises UserError if these options would change what a resumed sweep must keep."""
        super().check_kept(saved)
        if isinstance(saved, TuneOptions):
            check_kept(self.study, saved.study)


@dataclass(frozen=True)
class TrainOptions(RunOptions, TrialOptions):
    """Train one network with a head for each attribute of your images.

    Without any option it draws a small data set and trains on it in a minute.

    Examples:
      python -m raymlc.train --data DIR --set backbone=efficientnet_b0 epochs=10
      python -m raymlc.train --data DIR --trial runs/NAME/trials/0007/best --set epochs=40
    """


_PATHS = (
    "data", "classes", "space", "trial", "weights", "output", "cache", "warm_start", "enqueue",
)  # fmt: skip


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(lasting(value)) if isinstance(value, Path) else value


def lasting(path: Path) -> Path:
    """The path as it holds from any working folder; one below ~ stays each node's own."""
    return path if path.parts[:1] == ("~",) else path.absolute()
