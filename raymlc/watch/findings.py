"""What a sweep has found, in numbers and in sentences: the best, what mattered, what was saved."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from raymlc.metric import higher_is_better, objectives, score_of
from raymlc.search.read import OPEN, Told
from raymlc.search.study import METRICS
from raymlc.search.verdict import Outcome
from raymlc.watch.confusion import Confusion
from raymlc.watch.standing import duration

LEAST = 10  # complete trials; of fewer no importance is told
TOP = 0.25  # share of the complete trials that count as good; PED-ANOVA wants some in it
STATES = {
    "COMPLETE": "complete",
    "PRUNED": "stopped early",
    "FAIL": "failed",
    "PAUSED": "waiting at a rung",
    OPEN: "not ended",
}  # in people's words


@dataclass(frozen=True)
class Sweep:
    """All that a report tells of. Nothing of it is read again.

    trials: how many there shall be. train: the words of a command that trains on the same data.
    told: as `read_trials` gives them. heads: of the stored checkpoints. majority: for each head the
    accuracy of always saying training's most common answer; empty where unknown, and why.
    confusion: of the best trial's checkpoint. written: Unix time of the report.
    """

    folder: Path
    metric: str
    sampler: str
    pruner: str
    trials: int
    workers: int
    gpus_per_worker: float | None
    train: tuple[str, ...]
    told: Sequence[Told]
    heads: tuple[str, ...]
    importances: Sequence[Importance]
    outcome: Outcome
    majority: Mapping[str, float]
    no_majority: str
    confusion: Mapping[str, Confusion]
    written: float

    @property
    def name(self) -> str:
        """The sweep's own."""
        return self.folder.resolve().name

    @property
    def best(self) -> Told | None:
        """The trial with the best score; None where none has one."""
        first = self.told[0] if self.told else None
        return None if first is None or math.isnan(first.score) else first

    @property
    def searched(self) -> list[str]:
        """The names of what was searched, in the order in which it was asked for."""
        return list(dict.fromkeys(name for one in self.told for name in one.params))

    @property
    def open(self) -> int:
        """How many trials have begun and not ended."""
        return sum(one.state in (OPEN, "PAUSED") for one in self.told)

    @property
    def head_metrics(self) -> dict[str, str]:
        """For each head its metric of the first objective's kind."""
        return {head: f"{kind_of(self.metric)}/{head}" for head in self.heads}


@dataclass(frozen=True)
class Importance:
    """How much each parameter mattered for being among the best by a metric.

    trials: complete ones with a finite value of it. shares: of 1, the largest first; empty with
    fewer than LEAST trials, with one parameter, and where all are alike.
    """

    metric: str
    trials: int
    shares: dict[str, float]


@dataclass(frozen=True)
class Cost:
    """What trials took, and what those that were stopped early would have taken beyond.

    seconds: of the trials whose time is known. saved_seconds, saved_images: at the rate of each
    trial's own epochs. whole: epochs of all ended trials had none been stopped.
    """

    epochs: int
    images: float
    seconds: float
    saved_epochs: int
    saved_images: float
    saved_seconds: float
    whole: int


def kind_of(metric: str) -> str:
    """The kind of a metric, or of the first of several, such as val/accuracy."""
    return "/".join(objectives(metric)[0].split("/")[:2])


def heads_of(told: Sequence[Told]) -> tuple[str, ...]:
    """The heads that the stored checkpoints were measured by, in their order."""
    prefix = "val/loss/"
    names = (name for one in told for name in one.metrics if name.startswith(prefix))
    return tuple(dict.fromkeys(name.removeprefix(prefix) for name in names))


def importances(study: optuna.Study, metrics: Sequence[str]) -> list[Importance]:
    """The importance of what was searched, for the metrics of the stored checkpoints.

    By PED-ANOVA (arXiv:2304.10255): which parameters set the best quarter of the complete trials of
    this very sweep apart from the others. Trials that were stopped early are not read, nor are
    those of another sweep, which have no checkpoint in this one.
    """
    return [_importance(study, metric) for metric in metrics]


def _importance(study: optuna.Study, metric: str) -> Importance:
    sign = -1.0 if higher_is_better(metric) else 1.0

    def loss(trial: FrozenTrial) -> float:
        if not trial.params:  # beside the search
            return math.nan
        return sign * score_of(trial.user_attrs.get(METRICS, {}), metric)

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    read = [trial for trial in complete if math.isfinite(loss(trial))]
    names = {name for trial in read for name in trial.params}
    if len(read) < LEAST or len(names) < 2 or len({loss(trial) for trial in read}) < 2:
        return Importance(metric, len(read), {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that low is good, and of branches with a trial or two
        shares = get_param_importances(
            study,
            evaluator=PedAnovaImportanceEvaluator(target_quantile=TOP),
            params=sorted(names),
            target=loss,
        )
    if len(set(shares.values())) == 1:  # more than the best quarter are equally good
        shares = {}
    return Importance(metric, len(read), shares)


def cost_of(told: Sequence[Told]) -> Cost:
    """The cost of some trials."""
    stopped = [one for one in told if one.state == "PRUNED" and one.epochs]
    rest = {one.number: max(0, one.length - one.epochs) / one.epochs for one in stopped}
    saved = sum(max(0, one.length - one.epochs) for one in stopped)
    ended = [one for one in told if one.state in ("PRUNED", "COMPLETE")]
    return Cost(
        epochs=sum(one.epochs for one in told),
        images=_sum(one.images for one in told),
        seconds=_sum(one.seconds for one in told),
        saved_epochs=saved,
        saved_images=_sum(one.images * rest[one.number] for one in stopped),
        saved_seconds=_sum(one.seconds * rest[one.number] for one in stopped),
        whole=sum(one.epochs for one in ended) + saved,
    )


def sentences(sweep: Sweep) -> list[str]:
    """What the sweep was and what it found, for whoever reads nothing else."""
    if not sweep.told:
        return [f"The sweep of {sweep.trials} trials has not begun its first one yet."]
    lines = [_what(sweep), _how_long(sweep), *_best(sweep)]
    cost = cost_of(sweep.told)
    if cost.saved_epochs:
        share = cost.saved_epochs / cost.whole
        lines.append(
            f"Early stopping saved {cost.saved_epochs:,} of {cost.whole:,} epochs ({share:.0%}),"
            f" about {duration(cost.saved_seconds)} of training and"
            f" {cost.saved_images:,.0f} images."
        )
    lines.append(_mattered(sweep))
    return [*lines, *_finals(sweep)]


def _what(sweep: Sweep) -> str:
    searched = sweep.searched
    backbones = {one.config.get("backbone", "") for one in sweep.told}
    of = f" of {backbones.pop()}" if len(backbones) == 1 and "" not in backbones else ""
    names = objectives(sweep.metric)
    way = "highest" if higher_is_better(sweep.metric) else "lowest"
    aim = f"the {way} {names[0]}" if len(names) == 1 else f"the best of {_and(names)} at once"
    stopping = f"{sweep.pruner} stopping early" if sweep.pruner != "none" else "none stopped early"
    counts = {
        words: sum(one.state == state for one in sweep.told) for state, words in STATES.items()
    }
    went = _and([f"{count} {words}" for words, count in counts.items() if count])
    return (
        f"{_and(searched) or 'Nothing'}{of} {'were' if len(searched) > 1 else 'was'} searched for"
        f" {aim}, with {sweep.sampler} proposing and {stopping}:"
        f" {_count(len(sweep.told), 'trial')} of {sweep.trials}, {went}."
    )


def _how_long(sweep: Sweep) -> str:
    began = [one.began for one in sweep.told if not math.isnan(one.began)]
    ended = [one.ended for one in sweep.told if not math.isnan(one.ended)]
    start = min(began, default=sweep.written)
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(start))
    if sweep.open:
        took = (
            f"It began on {day} and had not ended {duration(sweep.written - start)} later, when"
            " this page was written"
        )
    else:
        last = max(ended, default=start)
        took = f"It began on {day}, and its last trial ended {duration(last - start)} later"
    cost = cost_of(sweep.told)
    known = "; those that ended took" if sweep.open else "; all took"
    return (
        f"{took}{known} {duration(cost.seconds)} together and saw {cost.images:,.0f} images in"
        f" {_count(cost.epochs, 'epoch')}."
    )


def _best(sweep: Sweep) -> list[str]:
    best = sweep.best
    if best is None:
        return ["No trial has stored a checkpoint with a score yet."]
    names = objectives(sweep.metric)
    what = names[0] if len(names) == 1 else f"the mean of {_and(names)},"
    line = (
        f"The best is trial {best.number} with {what} {best.score:.4f}, of epoch"
        f" {best.metrics.get('epoch', math.nan):.0f} of {best.length}."
    )
    if not sweep.majority:
        return [line, f"What the most common answer would get is not known: {sweep.no_majority}."]
    pairs = [
        (best.metrics.get(f"val/accuracy/{head}", math.nan), value)
        for head, value in sweep.majority.items()
    ]
    known = [pair for pair in pairs if not any(map(math.isnan, pair))]
    if not known:
        return [line]
    ours, theirs = (sum(values) / len(known) for values in zip(*known, strict=True))
    over = f"over {len(known)} heads" if len(known) > 1 else "of its head"
    return [
        f"{line} Its accuracy {over} is {ours:.4f}; always saying training's most common answer"
        f" would get {theirs:.4f}."
    ]


def _finals(sweep: Sweep) -> list[str]:
    winner, deployed = sweep.outcome.winner, sweep.outcome.deployed
    if winner is None or deployed is None:
        return []
    seeds = (
        "mean of " + _count(len(winner.finals), "seed") if len(winner.finals) > 1 else "one seed"
    )
    return [
        f"Trained again under new seeds, trial {winner.trial} comes to {winner.mean:.4f} ({seeds});"
        f" the checkpoint to use is that of final {deployed.number}, with {deployed.score:.4f}."
    ]


def _mattered(sweep: Sweep) -> str:
    first = sweep.importances[0] if sweep.importances else None
    if first is None or not first.shares:
        return f"{why_none(first)[0].upper()}{why_none(first)[1:]}."
    most = [f"{name} ({share:.0%})" for name, share in list(first.shares.items())[:3]]
    return (
        f"What mattered most for {first.metric}: {', then '.join(most)}, as far as"
        f" {first.trials} complete trials tell."
    )


def why_none(importance: Importance | None) -> str:
    """Why there is no importance to tell, in a clause."""
    count = importance.trials if importance else 0
    if count < LEAST:
        return (
            f"what mattered most cannot be told from {_count(count, 'complete trial')}: it takes"
            f" {LEAST}"
        )
    return "what mattered most cannot be told: one parameter was searched, or all did equally well"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _sum(values: Iterable[float]) -> float:
    return math.fsum(value for value in values if not math.isnan(value))
