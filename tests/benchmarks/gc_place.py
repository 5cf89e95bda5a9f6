"""Where gradient centralization (GC) helps AdamP on photos: nowhere, on gradients, or on updates.

Command:   python tests/benchmarks/gc_place.py --data DIR --weights FILE [--seeds N] [--output FILE]

GC (arXiv:2004.01461) takes its mean off each row of a weight, a row being one output unit. The
paper does so to the raw gradient; for adaptive optimizers its authors later advised to do it to the
final update. For each seed one trial is trained with each arm, on one thread:
    off       raymlc's AdamP (arXiv:2006.08217)
    gradient  the same, fed with centralized gradients
    update    raymlc's AdamP with gc

Before that, raymlc's AdamP with gc and without is held against `PlainAdamP`, which follows the
formulas one parameter at a time.

Runs of one seed have the same initial heads, batches, crops and dropout. Accuracies are those of
the deployed weights after the last epoch; "projected" is the share of weights of two or more
dimensions that AdamP projects. Each run is a line of JSON in --output; a run that is there already,
with the same settings, is not done again.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raymlc.data.store import ImageSplit, open_split
from raymlc.data.table import read_table
from raymlc.labels import Labels
from raymlc.optim.adamp import AdamP
from raymlc.training.evaluate import evaluate
from raymlc.training.loop import fit
from raymlc.training.state import Training
from raymlc.trial import TrialConfig

ARMS = ("off", "gradient", "update")
PAIRS = (("gradient", "off"), ("update", "off"), ("gradient", "update"))
TOLERANCE = 1e-6  # of the check, in float64 and for steps of 1e-2
COUNT_EVERY = 10  # steps, from one count of the projected weights to the next


class PlainAdamP(torch.optim.Optimizer):
    """AdamP as raymlc's defaults have it, one parameter after the other, with GC of the update.

    Let u be Adam's step, w the weight, and ~ "less the mean of each row". Where a view of the
    weight passes AdamP's test, on the raw gradient, u~ - (u~.w~ / |w~|^2) w~ takes the place of
    u - (u.w / |w|^2) w: it has no mean, and since it has none, its product with w is the one with
    w~, which is 0. Elsewhere u~ takes the place of u. Weight decay acts on w~: a row keeps its
    mean for ever. Rows of one element are left alone.

    least_ndim: of the weights that are centralized; infinite for none.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.01,
        least_ndim: float = math.inf,
    ) -> None:
        self.least_ndim = least_ndim
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"delta": delta, "wd_ratio": wd_ratio})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(param), "square": torch.zeros_like(param)}
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        rms = state["square"].sqrt() / math.sqrt(1 - beta2 ** state["step"])
        update = state["mean"].lerp(grad, 1 - beta1) / (rms + group["eps"])

        weight, ratio = param, 1.0
        if is_centralized(param, self.least_ndim):
            update, weight = centred(update), centred(param)
        view = projected_view(grad, param, group["delta"], group["eps"])
        if view:
            ratio = group["wd_ratio"]
            update_RE, weight_RE = update.reshape(view), weight.reshape(view)
            norm_R1 = weight_RE.norm(dim=1, keepdim=True) + group["eps"]
            share_R1 = (update_RE * weight_RE).sum(1, keepdim=True) / norm_R1**2
            update = (update_RE - share_R1 * weight_RE).reshape(param.shape)
        decay = group["weight_decay"] * ratio
        param.sub_(group["lr"] * (decay * weight + update / (1 - beta1 ** state["step"])))


def is_centralized(weight: Tensor, least_ndim: float) -> bool:
    """Whether GC is for it: of enough dimensions, and its rows longer than one element."""
    return weight.ndim >= least_ndim and weight.numel() > len(weight)


def centred(weight: Tensor) -> Tensor:
    """The weight less the mean of each row."""
    return weight - weight.mean(tuple(range(1, weight.ndim)), keepdim=True)


def projected_view(grad: Tensor, weight: Tensor, delta: float, eps: float) -> tuple[int, ...]:
    """The shape (rows, -1) in which AdamP projects the weight's update; () where it does not."""
    for view in ((len(weight), -1), (1, -1)) if weight.ndim > 1 else ():
        grad_RE, weight_RE = grad.reshape(view), weight.reshape(view)
        cosines_R = nn.functional.cosine_similarity(grad_RE, weight_RE, dim=1, eps=eps).abs()
        if cosines_R.max() < delta / math.sqrt(weight_RE.shape[1]):
            return view
    return ()


class ProjectionCount:
    """Counts, at some of an optimizer's steps, the weights whose update AdamP projects."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps = self.weights = self.projected = 0
        optimizer.register_step_pre_hook(self._count)

    @property
    def share(self) -> float:
        """Of the weights of two or more dimensions, over the steps counted."""
        return self.projected / self.weights

    @torch.no_grad()
    def _count(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self.steps += 1
        if self.steps % COUNT_EVERY != 1:
            return
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.ndim > 1 and param.grad is not None:
                    self.weights += 1
                    view = projected_view(param.grad, param, group["delta"], group["eps"])
                    self.projected += bool(view)


def check_adamp() -> None:
    """Raises AssertionError unless raymlc's AdamP takes the steps of PlainAdamP."""
    off: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
    gc = off | {"gc": True}
    conv_only = gc | {"gc_conv_only": True}
    for settings, least_ndim in ((off, math.inf), (gc, 2), (conv_only, 4)):
        ours = _after_steps(partial(AdamP, **settings))
        plain = _after_steps(partial(PlainAdamP, **off, least_ndim=least_ndim))
        gap = max(float((one - two).abs().max()) for one, two in zip(ours, plain, strict=True))
        assert gap < TOLERANCE, f"AdamP with {settings} is off by {gap}"
        print(f"AdamP with {settings} is the plain one to {gap:.0e}")


def _after_steps(
    optimizer_of: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> list[Tensor]:
    network = _small_network()
    optimizer = optimizer_of(list(network.parameters()))
    for seed in range(5):
        _backward(network, seed)
        optimizer.step()
    return [param.detach() for param in network.parameters()]


def _small_network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return network.double()


def _backward(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images_BCHW = torch.randn(16, 3, 9, 9, generator=generator, dtype=torch.float64)
    targets_B = torch.randint(0, 5, (16,), generator=generator)
    network.zero_grad()
    torch.autograd.backward(nn.functional.cross_entropy(network(images_BCHW), targets_B))


def train(
    config: TrialConfig, arm: str, labels: Labels, train_split: ImageSplit, val: ImageSplit
) -> dict[str, float]:
    """Train one trial with one arm; the metrics of its deployed weights after the last epoch."""
    started = time.perf_counter()
    config = config.replace({"gc": arm == "update"})
    training = Training(config, labels, torch.device("cpu"))
    if arm == "gradient":
        least_ndim = 4 if config.gc_conv_only else 2
        training.optimizer.register_step_pre_hook(
            lambda optimizer, *_: centralize_gradients(optimizer, least_ndim)
        )
    count = ProjectionCount(training.optimizer)
    metrics: dict[str, float] = {}
    # Scoring after every epoch would be a third of the time.
    for epoch in fit(training, train_split, first_rows(val, config.batch_size)):
        metrics = {"train/loss": epoch["train/loss"]}
    model, scale, device = training.deployed, training.normalization, training.device
    counts = evaluate(model, labels, val, scale, device, batch_size=config.batch_size)
    metrics |= counts.metrics("val")
    seconds = time.perf_counter() - started
    return metrics | {"projected": count.share, "seconds": round(seconds, 1)}


def centralize_gradients(optimizer: torch.optim.Optimizer, least_ndim: float) -> None:
    """Take the mean of each row off the gradients."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None and is_centralized(param, least_ndim):
                param.grad = centred(param.grad)


def first_rows(split: ImageSplit, rows: int) -> ImageSplit:
    """The split's first rows: so many, or all if it has fewer."""
    rows = min(rows, len(split))
    return dataclasses.replace(
        split, places_N=split.places_N[:rows], targets=split.targets.take(range(rows))
    )


def report(runs: dict[tuple[int, str], dict[str, float]], names: Sequence[str]) -> None:
    """Print mean and spread by arm, then the differences of arms by seed.

    names: the metrics to report. A seed counts for a difference once both of its arms are there.
    """
    arms = [arm for arm in ARMS if any(key[1] == arm for key in runs)]
    for name in names:
        scale = 1.0 if "loss" in name else 100.0
        print(f"\n{name}, {'nats' if scale == 1 else '%'}")
        for arm in arms:
            values = [scale * run[name] for key, run in sorted(runs.items()) if key[1] == arm]
            print(
                f"  {arm:17} mean {statistics.mean(values):7.3f}  sd {deviation(values):.3f}"
                f"  [{min(values):.3f}–{max(values):.3f}]  n {len(values)}"
            )
        for one, two in PAIRS:
            seeds = sorted(seed for seed, arm in runs if arm == one and (seed, two) in runs)
            gaps = [scale * (runs[seed, one][name] - runs[seed, two][name]) for seed in seeds]
            if gaps:
                error = deviation(gaps) / math.sqrt(len(gaps))
                above, below = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
                print(
                    f"  {f'{one} - {two}':17} mean {statistics.mean(gaps):+7.3f}"
                    f"  standard error {error:.3f}  n {len(gaps)}, above 0 in {above}, below in"
                    f" {below}"
                )


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample; NaN for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.csv and val.csv")
    parser.add_argument("--weights", default="", help="backbone weights; default: timm's")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=5000, help="training rows, the first ones")
    parser.add_argument("--val-rows", type=int, default=2000, help="scored rows, the first ones")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--conv-only", action="store_true", help="spare 2-D weights from GC")
    parser.add_argument("--output", type=Path, help="file of results, added to and resumed from")
    args = parser.parse_args()

    torch.set_num_threads(1)
    check_adamp()
    config = TrialConfig(
        backbone=args.backbone,
        weights=args.weights,
        image_size=args.image_size,
        epochs=args.epochs,
        lr=args.lr,
        weight_decay=args.weight_decay,
        gc_conv_only=args.conv_only,
    )
    table = read_table(args.data)
    train_split = first_rows(open_split(table.splits["train"], args.image_size), args.rows)
    val = first_rows(open_split(table.splits["val"], args.image_size), args.val_rows)
    names = [f"val/accuracy/{head}" for head in table.labels.names]
    names = ["val/accuracy", *names, "val/loss", "projected"]

    settings = config.to_dict() | {"rows": len(train_split), "val_rows": len(val)}
    settings["weights"] = Path(args.weights).name  # the same file, wherever it lies
    del settings["seed"], settings["gc"]
    stored: list[dict[str, Any]] = []
    if args.output and args.output.exists():
        stored = [json.loads(line) for line in args.output.read_text().splitlines()]
    runs = {
        (run["seed"], run["arm"]): run["metrics"] for run in stored if run["settings"] == settings
    }
    print(f"torch {torch.__version__}, one thread, {settings}", flush=True)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for seed in seeds:
        for arm in args.arms:
            if (seed, arm) not in runs:
                trial = config.replace({"seed": seed})
                runs[seed, arm] = train(trial, arm, table.labels, train_split, val)
                if args.output:
                    run = {"seed": seed, "arm": arm, "metrics": runs[seed, arm]}
                    with args.output.open("a") as file:
                        file.write(json.dumps(run | {"settings": settings}) + "\n")
            values = "  ".join(f"{name} {runs[seed, arm][name]:.4f}" for name in names)
            print(f"seed {seed}  {arm:8}  {values}  {runs[seed, arm]['seconds']} s", flush=True)
    report({key: run for key, run in runs.items() if key[0] in seeds}, names)


if __name__ == "__main__":
    main()
