"""Which searcher finds better configurations in the same time: regret over simulated time.

Command:   python -m tests.benchmarks.search.regret --curves FOLDER --results FILE [--seeds N]
           [--tasks held-out|train|all] [--searchers a,b] [--plot FILE.png]

FOLDER holds `loader.py` and its tables, which are not in the repository. A sweep has 4 workers and
as much time as 40 full runs take on them. Every finished sweep is appended to FILE, a JSON line
each, and is not run again; so a run can be broken off and continued. What is printed: the
normalised regret of the configuration that one would pick (0: the table's best, 1: its median),
after 25, 50 and 100 % of the time; means over tasks of a family, then over families; and 95 %
intervals of that mean by bootstrap over seeds. "shown" is the regret of the best value that any
trial has shown: of the checkpoint in the hand.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raymlc.search.choice import PrunerName, SamplerName, make_pruner, make_sampler
from tests.benchmarks.search.searchers import (
    OneEpochThenTop,
    Random,
    RayAsha,
    StockRay,
    StudySearcher,
)
from tests.benchmarks.search.simulator import (
    Curves,
    Searcher,
    regret_over_time,
    shown_over_time,
    simulate,
)
from tests.benchmarks.search.syne import SyneTune
from tests.benchmarks.search.tables import family, load_curves

Make = Callable[[Curves, int], Searcher]

WORKERS, FULL_RUNS = 4, 40
MOMENTS = np.linspace(0.05, 1.0, 20)  # shares of the time at which regret is read
TICKS = (0.05, 0.1, 0.2, 0.4, 0.8)  # of the plot's regret
COLUMNS = (4, 9, 19)  # of MOMENTS: 25, 50 and 100 %
TASKS = {
    "train": (
        "opda_imagenet/alexnet_imagenet",
        "baker2018/metaqnn_cifar10",
        "taskset/imdb_patch128_LSTM128_bs64",
        "taskset/imdb_patch32_IRNN64_relu_avg_bs128",
    ),
    "held-out": (
        "opda_mnli/deberta_mnli",
        "baker2018/alexnet_imagenet10pct",
        "baker2018/resnet_cifar10",
        "taskset/imdb_patch32_GRU128_bs128",
        "taskset/imdb_patch32_VRNN64_tanh_avg_bs128",
    ),
}


def _pair(sampler: SamplerName, pruner: PrunerName, told_row: bool = True) -> Make:
    """A sampler and a pruner by the names that raymlc's command line has for them."""

    def make(curves: Curves, seed: int) -> Searcher:
        longest = int(curves.length_N.max())
        made = make_sampler(sampler, seed, longest)
        return StudySearcher(curves, made, make_pruner(pruner, longest), told_row)

    return make


SEARCHERS: dict[str, Make] = {
    "random": Random,
    "random-asha": lambda c, seed: Random(c, seed, RayAsha(int(c.length_N.max()))),
    "one-epoch-top": OneEpochThenTop,
    "stock": StockRay,
    "stock-proposal": lambda c, seed: StockRay(c, seed, told_row=False),
    "hyperband": _pair("random", "hyperband"),
    "tpe-asha": _pair("tpe", "asha"),
    "tpe-hyperband": _pair("tpe", "hyperband"),
    "tpe-median": _pair("tpe", "median"),
    "tpe-rungs": _pair("tpe", "rungs"),
    "tpe-promote": _pair("tpe", "promote"),
    "gp-asha": _pair("gp", "asha"),
    "cmaes-asha": _pair("cmaes", "asha"),
    "nsga2-asha": _pair("nsga2", "asha"),
    "qmc-asha": _pair("qmc", "asha"),
    "rungs": _pair("rungs", "rungs"),
    "rungs-proposal": _pair("rungs", "rungs", told_row=False),
    "rungs-promote": _pair("rungs", "promote"),
    "syne-asha": lambda c, seed: SyneTune(c, seed, "ASHA"),
    "syne-cqr": lambda c, seed: SyneTune(c, seed, "ASHACQR"),
    "syne-bore": lambda c, seed: SyneTune(c, seed, "ASHABORE"),
}
SHOWN = (
    *("random", "random-asha", "hyperband", "one-epoch-top", "stock", "tpe-median"),
    *("tpe-hyperband", "tpe-asha", "tpe-promote", "rungs", "rungs-promote"),
)
PACKAGES = {"syne-": "syne_tune", "gp-": "scipy", "qmc-": "scipy", "cmaes-": "cmaes"}


def runnable(searchers: Sequence[str]) -> list[str]:
    """Those whose package is installed; a line is printed for each other one."""
    found = []
    for searcher in searchers:
        needs = [package for start, package in PACKAGES.items() if searcher.startswith(start)]
        if needs and importlib.util.find_spec(needs[0]) is None:
            print(f"without {searcher}: {needs[0]} is not installed")
        else:
            found.append(searcher)
    return found


def sweep(curves: Curves, searcher: str, seed: int) -> dict[str, Any]:
    """Simulate one sweep; a line of the results."""
    until = FULL_RUNS * curves.full_run / WORKERS
    began = time.process_time()
    trace = simulate(curves, SEARCHERS[searcher](curves, seed), WORKERS, until)
    seconds = time.process_time() - began
    times = [float(moment) for moment in MOMENTS * until]
    return {
        "searcher": searcher,
        "task": curves.name,
        "seed": seed,
        "regret": [round(x, 5) for x in regret_over_time(curves, trace, times)],
        "shown": [round(x, 5) for x in shown_over_time(curves, trace, times)],
        "trials": trace.trials,
        "seconds": round(seconds, 2),
    }


def mean_over_families(
    lines: Sequence[dict[str, Any]], key: str, rng: np.random.Generator | None = None
) -> list[float]:
    """Mean regret at each of MOMENTS over families; with `rng`, of seeds drawn with replacement."""
    by_task: dict[str, list[list[float]]] = {}
    for line in lines:
        by_task.setdefault(line["task"], []).append(line[key])
    by_family: dict[str, list[Any]] = {}
    for task, regrets in by_task.items():
        drawn = np.array(regrets)
        if rng is not None:
            drawn = drawn[rng.integers(len(drawn), size=len(drawn))]
        by_family.setdefault(family(task), []).append(drawn.mean(0))
    return [float(x) for x in np.mean([np.mean(v, axis=0) for v in by_family.values()], axis=0)]


def table(lines: Sequence[dict[str, Any]], tasks: Sequence[str], searchers: Sequence[str]) -> str:
    """The results as text: a block of means over families, then one for each task."""
    text = [f"{'mean over families':24s} {'n':>3s}  25 %                50 %                100 %"]
    rng = np.random.default_rng(0)
    for key in ("regret", "shown"):
        for searcher in searchers:
            mine = [x for x in lines if x["searcher"] == searcher and x["task"] in tasks]
            if {x["task"] for x in mine} != set(tasks):
                continue
            mean = mean_over_families(mine, key)
            drawn = np.array([mean_over_families(mine, key, rng) for _ in range(1000)])
            low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
            least = min(sum(x["task"] == task for x in mine) for task in tasks)
            cells = [f"{mean[c]:.3f} [{low[c]:.3f} {high[c]:.3f}]" for c in COLUMNS]
            label = searcher if key == "regret" else f"{searcher} (shown)"
            text.append(f"{label:24s} {least:3d}  " + "  ".join(cells))
    for task in tasks:
        text.append(f"\n{task}")
        for searcher in searchers:
            mine = [x for x in lines if x["searcher"] == searcher and x["task"] == task]
            if mine:
                mean_C = np.mean([x["regret"] for x in mine], axis=0)
                cells = [f"{mean_C[c]:.3f}" for c in COLUMNS]
                cells.append(f"{np.mean([x['trials'] for x in mine]):5.0f} trials")
                cells.append(f"{np.mean([x['seconds'] for x in mine]):6.2f} CPU-s")
                text.append(f"  {searcher:22s} {len(mine):3d}  " + "  ".join(cells))
    return "\n".join(text)


def plot(
    lines: Sequence[dict[str, Any]], tasks: Sequence[str], searchers: Sequence[str], path: Path
) -> None:
    """Mean regret over time of every searcher, into an image; nothing without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed")
        return
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for searcher in searchers:
        mine = [x for x in lines if x["searcher"] == searcher and x["task"] in tasks]
        if mine:
            axes.plot(100 * MOMENTS, mean_over_families(mine, "regret"), label=searcher)
    axes.set(xlabel="% of the time", ylabel="normalised regret", yscale="log")
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Run what is missing, then print all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--tasks", choices=(*TASKS, "all"), default="held-out")
    parser.add_argument("--searchers", default=",".join(SHOWN))
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    tasks = TASKS.get(options.tasks, TASKS["train"] + TASKS["held-out"])
    searchers = runnable(options.searchers.split(","))
    text = options.results.read_text() if options.results.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    done = {(line["searcher"], line["task"], line["seed"]) for line in lines}
    curves = {task: load_curves(options.curves, task) for task in tasks}
    # Seed by seed, so that a run that is broken off has as many of every searcher and task.
    for seed in range(options.seeds):
        for searcher in searchers:
            for task in tasks:
                if (searcher, task, seed) not in done:
                    lines.append(sweep(curves[task], searcher, seed))
                    with options.results.open("a") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines, tasks, searchers))
    if options.plot:
        plot(lines, tasks, searchers, options.plot)


if __name__ == "__main__":
    main()
