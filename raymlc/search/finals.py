"""Finals: the best trials of a search trained anew, several times each, under seeds not chosen.

The best score of many trials is luck in part, and one score tells nothing of how far another seed
would have come. verdict.py judges a finalist by the mean over its repeats.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from raymlc.metric import higher_is_better, score_of
from raymlc.search.rungs import CONFIG
from raymlc.search.study import METRICS, Assignment, Row
from raymlc.trial import TrialConfig

FINALS = "finals"  # the study's attribute that says which there are: [[trial, seed], ...]
_FIRST_SEED = 1000  # of the finals, above the trials' own seeds
_SEEDS = 2**31  # of TrialConfig.seed


class FinalsBook:
    """Hands out finals and writes down what becomes of them, as `StudyBook` does with trials.

    The study is the truth here too: which finals there are stands in it before the first is handed
    out, and a final whose result stands in it is never run again. The results are attributes of
    the study and no trials of it, so that no sampler learns from them.

    study: whose search has ended. finalists: how many trials, those with the best score among those
    that stored a checkpoint and did not fail, however early they were stopped: a final is always of
    full length. repeats: finals of each, with the same seeds for all, so that they can be compared
    in pairs; never a seed of the search, whose luck a finalist was chosen for. More of either than
    before adds what is missing; with fewer, what is left over is not run, and what was finished
    still counts.
    """

    def __init__(self, study: optuna.Study, metric: str, finalists: int, repeats: int) -> None:
        self.study = study
        self.metric = metric
        best = _ranked(study, metric)[:finalists]
        plan: list[list[int]] = study.user_attrs.get(FINALS, [])
        first = plan[0][1] if plan else _FIRST_SEED + _largest_seed(study)
        seeds = [(first + repeat) % _SEEDS for repeat in range(repeats)]
        # One repeat of all before the next, so that finals cut short can be compared already.
        wanted = [[trial, seed] for seed in seeds for trial in best]
        missing = [final for final in wanted if final not in plan]
        self._plan = plan + missing
        if missing:
            study.set_user_attr(FINALS, self._plan)
        done = {final.number for final in read_finals(study, metric)}
        self._waiting = [
            number
            for number, final in enumerate(self._plan)
            if final in wanted and number not in done
        ]
        self.total = len(done) + len(self._waiting)
        self._started: dict[int, float] = {}  # of those that run
        self._epochs: dict[int, int] = {}
        self._nodes: dict[int, str] = {}

    @property
    def finished(self) -> bool:
        """Whether `next` gives nothing more, whatever the running finals report."""
        return not self._waiting

    def next(self) -> Assignment | None:
        """A final without a result, half-run or new, under its own number; None without any."""
        if not self._waiting:
            return None
        number = self._waiting.pop(0)
        trial, seed = self._plan[number]
        searched = self.study.get_trials(deepcopy=False)[trial].user_attrs[CONFIG]
        self._started[number] = time.monotonic()
        self._epochs[number], self._nodes[number] = 0, ""
        return Assignment(number, TrialConfig.from_dict(searched).replace({"seed": seed}))

    def params(self, number: int) -> dict[str, Any]:
        """Which trial of the sweep a final repeats, and its seed."""
        trial, seed = self._plan[number]
        return {"sweep_trial": trial, "seed": seed}

    def report(self, number: int, metrics: dict[str, float], node: str = "") -> bool:
        """Take note of an epoch and its host; always False, since nothing stops a final."""
        self._epochs[number], self._nodes[number] = int(metrics["epoch"]), node
        return False

    def end(
        self, number: int, stored: dict[str, float], failure: str = "", checkpoint: str = ""
    ) -> TrialState:
        """Close a final: FAIL with a reason, or COMPLETE. Neither is run again.

        stored: the metrics of the checkpoint that it stored, which are its score. checkpoint: where
        that lies.
        """
        if not failure and math.isnan(score_of(stored, self.metric)):
            failure = f"{self.metric} was not a number in any epoch"
        trial, seed = self._plan[number]
        result = {
            "trial": trial,
            "seed": seed,
            "metrics": stored,
            "reason": failure,
            "epochs": self._epochs.pop(number),
            "seconds": round(time.monotonic() - self._started.pop(number), 1),
            "node": self._nodes.pop(number),
            "checkpoint": checkpoint if stored else "",
        }
        # All in one write: a final has ended with it, or goes on from its last epoch.
        self.study.set_user_attr(_key(number), result)
        return TrialState.FAIL if failure else TrialState.COMPLETE

    def close(self) -> list[int]:
        """Nothing: no final waits for others."""
        return []

    def row(self, number: int) -> Row:
        """One final, as `rows` has it."""
        return next(row for row in self.rows() if row.number == number)

    def rows(self) -> list[Row]:
        """Every final that has ended or runs, those with the best score first."""
        ended = [
            Row(
                number=final.number,
                state=(TrialState.FAIL if final.reason else TrialState.COMPLETE).name,
                epochs=final.epochs,
                score=final.score,
                metrics=final.metrics,
                params=self.params(final.number),
                reason=final.reason,
                seconds=final.seconds,
            )
            for final in read_finals(self.study, self.metric)
        ]
        running = [
            Row(
                number=number,
                state=TrialState.RUNNING.name,
                epochs=self._epochs[number],
                score=math.nan,
                metrics={},
                params=self.params(number),
                reason="",
                seconds=math.nan,
            )
            for number in self._started
        ]
        sign = -1 if higher_is_better(self.metric) else 1
        unscored = [row for row in ended if math.isnan(row.score)]
        scored = [row for row in ended if not math.isnan(row.score)]
        scored.sort(key=lambda row: (sign * row.score, row.number))
        return scored + unscored + running


@dataclass(frozen=True)
class Final:
    """One final that has ended.

    number: its own, after which its folder is named. trial: of the sweep, which it repeats. score
    and metrics: of the checkpoint that it stored; NaN and empty without one. reason: why it failed;
    a failed final is not judged, whatever it stored. epochs: how many it was seen to train.
    seconds: from its start, or its last resumption, to its end. node: the host it ran on last.
    checkpoint: where it lay when it was stored.
    """

    number: int
    trial: int
    seed: int
    score: float
    metrics: dict[str, float]
    reason: str
    epochs: int
    seconds: float
    node: str
    checkpoint: str


def read_finals(study: optuna.Study, metric: str) -> list[Final]:
    """The finals of a study that have ended, by number."""
    attributes = study.user_attrs
    finals = []
    for number in range(len(attributes.get(FINALS, []))):
        result = attributes.get(_key(number))
        if result is not None:
            finals.append(Final(number=number, score=score_of(result["metrics"], metric), **result))
    return finals


def _ranked(study: optuna.Study, metric: str) -> list[int]:
    """The trials that stored a checkpoint with a score and did not fail, the best first."""
    scores = {
        trial.number: score_of(trial.user_attrs.get(METRICS, {}), metric)
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL
    }
    sign = -1 if higher_is_better(metric) else 1
    scored = [number for number, score in scores.items() if not math.isnan(score)]
    return sorted(scored, key=lambda number: (sign * scores[number], number))


def _largest_seed(study: optuna.Study) -> int:
    trials = study.get_trials(deepcopy=False)
    return max(
        (trial.user_attrs[CONFIG]["seed"] for trial in trials if CONFIG in trial.user_attrs),
        default=0,
    )


def _key(number: int) -> str:
    return f"final/{number:04}"
