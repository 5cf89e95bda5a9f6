"""What stock Ray and Optuna write into a study, and what raymlc does, side by side."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import BaseTrial, TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from raymlc.cluster.packing import Packing
from raymlc.cluster.searcher import StudyScheduler, StudySearcher
from raymlc.cluster.train import METRICS
from raymlc.search.space import Space
from raymlc.trial import TrialConfig
from raymlc.watch.recorder import trial_folder

EPOCHS, TRIALS = 4, 12


def accuracy(lr: float, epoch: int) -> float:
    """A learning curve that depends on lr alone."""
    return (1 - abs(lr - 0.5)) * epoch / EPOCHS


class Toy(tune.Trainable):  # type: ignore[misc]
    """Walks along a learning curve, and keeps a score as a trial keeps a checkpoint."""

    def setup(self, config: dict[str, Any]) -> None:
        self.epoch = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        lr = self.config.get("lr") or self.config["config"]["lr"]
        metrics = {"epoch": float(self.epoch), "val/accuracy": accuracy(lr, self.epoch)}
        if "folder" in self.config:
            best = trial_folder(Path(self.config["folder"]), self.config["number"]) / "best"
            best.mkdir(parents=True, exist_ok=True)
            (best / "metrics.json").write_text(json.dumps(metrics))
        told = metrics | {"lr": lr, "images_per_second": 1.0}
        # Stock search wants its metric beside Tune's own entries, raymlc keeps its apart.
        return told | {METRICS: list(told.items()), "done": self.epoch == EPOCHS}


def space(trial: BaseTrial) -> TrialConfig:
    return TrialConfig(lr=trial.suggest_float("lr", 0.01, 1.0), epochs=EPOCHS)


def run(folder: Path, searcher: Any, scheduler: Any, param_space: dict[str, Any]) -> None:
    tune.Tuner(
        tune.with_resources(Toy, {"CPU": 1}),
        param_space=param_space,
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=scheduler, num_samples=TRIALS, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder / "ray"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # stock OptunaSearch uses what Optuna deprecates
@pytest.mark.usefixtures("ray")
def test_stock_search_calls_a_stopped_trial_complete_and_raymlc_calls_it_pruned(
    make_sweep: Any, tmp_path: Path
) -> None:
    stock = OptunaSearch(
        {"lr": optuna.distributions.FloatDistribution(0.01, 1.0)},
        metric="val/accuracy",
        mode="max",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    asha = ASHAScheduler(
        time_attr="epoch",
        metric="val/accuracy",
        mode="max",
        max_t=EPOCHS,
        grace_period=1,
        reduction_factor=2,
    )
    run(tmp_path / "stock", stock, asha, {})
    theirs = stock._ot_study.trials

    recorder, job, book = make_sweep(Space(Path("toy.py"), space, {}), TRIALS)
    book.study.pruner = optuna.pruners.SuccessiveHalvingPruner(1, reduction_factor=2)
    ours_searcher = StudySearcher(recorder, Packing({1: 2}))
    ours_scheduler = StudyScheduler(recorder, ours_searcher)
    run(tmp_path / "ours", ours_searcher, ours_scheduler, {"folder": str(job.folder)})
    recorder.close()
    ours = book.study.trials

    assert len(theirs) == len(ours) == TRIALS
    # Stock: a trial stopped at its first epoch is COMPLETE, and nothing says at which epoch.
    assert {trial.state for trial in theirs} == {TrialState.COMPLETE}
    stopped = [t for t in theirs if t.value != pytest.approx(accuracy(t.params["lr"], EPOCHS))]
    assert any(not trial.intermediate_values for trial in stopped)
    # Here: PRUNED with every value up to the one it was stopped at.
    pruned = [trial for trial in ours if trial.state == TrialState.PRUNED]
    complete = [trial for trial in ours if trial.state == TrialState.COMPLETE]
    assert pruned
    assert complete
    assert len(pruned) + len(complete) == TRIALS
    for trial in pruned:
        last = trial.last_step
        assert last is not None
        assert last < EPOCHS
        assert trial.intermediate_values == {
            epoch: pytest.approx(accuracy(trial.params["lr"], epoch))
            for epoch in range(1, last + 1)
        }
    for trial in complete:
        assert list(trial.intermediate_values) == list(range(1, EPOCHS + 1))
