"""What deciding costs: milliseconds to ask, report, prune and tell, and memory, of a study.

Command:   python -m tests.benchmarks.search.cost [--trials 10 100 1000 3000]

Studies are in memory and hold trials of 50 epochs over 8 parameters, of which most were stopped at
a rung, or halted by a pruner that promotes. Then some more trials are asked, reported for their
epochs and told. To ask such a pruner whom it promotes counts to an ask. On one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from raymlc.search.choice import PrunerName, SamplerName, make_pruner, make_sampler
from raymlc.search.pruner import Promoting
from raymlc.search.rungs import CONFIG

EPOCHS, REPEATS = 50, 15
SPACE: dict[str, BaseDistribution] = {
    **{f"x{number}": FloatDistribution(0.0, 1.0) for number in range(7)},
    "kind": CategoricalDistribution(["a", "b", "c"]),
}
PAIRS: tuple[tuple[SamplerName, PrunerName], ...] = (
    ("rungs", "rungs"),
    ("rungs", "promote"),
    ("tpe", "asha"),
)


def filled(sampler: SamplerName, pruner: PrunerName, count: int) -> optuna.Study:
    """A study of so many trials."""
    rng = np.random.default_rng(0)
    study = optuna.create_study(
        sampler=make_sampler(sampler, 0, EPOCHS), pruner=make_pruner(pruner, EPOCHS)
    )
    stopped = TrialState.RUNNING if isinstance(study.pruner, Promoting) else TrialState.PRUNED
    trials = []
    for _ in range(count):
        epochs = int(rng.choice([2, 6, 17, EPOCHS], p=[0.6, 0.25, 0.1, 0.05]))
        params = {f"x{number}": float(rng.random()) for number in range(7)}
        curve = sum(params.values()) + 1 / np.arange(1, epochs + 1) + rng.normal(0, 0.1, epochs)
        state = TrialState.COMPLETE if epochs == EPOCHS else stopped
        trials.append(
            create_trial(
                state=state,
                value=None if state == TrialState.RUNNING else float(curve[-1]),
                params={**params, "kind": str(rng.choice(["a", "b", "c"]))},
                distributions=SPACE,
                user_attrs={CONFIG: {"epochs": EPOCHS}},
                intermediate_values={e: float(v) for e, v in enumerate(curve, start=1)},
            )
        )
    study.add_trials(trials)
    return study


def measure(study: optuna.Study) -> tuple[list[float], list[float], list[float]]:
    """CPU milliseconds of each ask, of each epoch's report and pruning, and of each tell."""
    asks, epochs, tells = [], [], []
    pruner = study.pruner
    halted = {trial.number for trial in study.trials if not trial.state.is_finished()}
    for _ in range(REPEATS):
        began = time.process_time()
        if isinstance(pruner, Promoting):
            pruner.promote(study, halted, all_asked=False)
        trial = study.ask(SPACE)
        asked = time.process_time()
        trial.set_user_attr(CONFIG, {"epochs": EPOCHS})
        for epoch in range(1, EPOCHS + 1):
            before = time.process_time()
            trial.report(3.0 + 1 / epoch, epoch)
            trial.should_prune()
            epochs.append(1000 * (time.process_time() - before))
        before = time.process_time()
        study.tell(trial, 3.0)
        tells.append(1000 * (time.process_time() - before))
        asks.append(1000 * (asked - began))
    return asks, epochs, tells


def main() -> None:
    """Print a line for each pair of sampler and pruner, and number of trials."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000, 3000])
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{'sampler, pruner':18s} trials  ask ms median, max  epoch ms mean, max  tell ms   MB")
    for sampler, pruner in PAIRS:
        for count in options.trials:
            study = filled(sampler, pruner, count)
            asks, epochs, tells = measure(study)
            tracemalloc.start()
            study = filled(sampler, pruner, count)
            study.ask(SPACE)
            megabytes = tracemalloc.get_traced_memory()[0] / 1e6
            tracemalloc.stop()
            print(
                f"{sampler + ', ' + pruner:18s} {count:6d}"
                f"  {statistics.median(asks):8.1f} {max(asks):8.1f}"
                f"  {statistics.mean(epochs):9.2f} {max(epochs):8.1f}"
                f"  {statistics.median(tells):7.2f}  {megabytes:5.1f}"
            )


if __name__ == "__main__":
    main()
