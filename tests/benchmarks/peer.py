"""A sweep as the public guides of Ray, Optuna and timm add up to one, with several heads.

Ray Tune over a driver function with a TorchTrainer of one worker, OptunaSearch, Ray's ASHA; in the
worker timm's loader on the image files, timm's AdamP, EMA and cosine. Nothing of raymlc is in it
but the reading of the table. What it trains is what a raymlc trial trains by default: the same
network, size, batch, crops and flips, smoothing, decay and warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
import ray.train
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from raymlc.data.table import Split, read_table
from raymlc.labels import MISSING

REPORTS = "reports.jsonl"  # in a sweep's folder: a line an epoch, with its time
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Photos(Dataset[tuple[Any, Tensor]]):
    """The pictures of a split and the class of each head, as timm's loader asks for them."""

    def __init__(self, split: Split, targets_NH: NDArray[np.int64]) -> None:
        self._paths = split.images
        self._targets_NH = torch.from_numpy(targets_NH)
        self.transform: Any = None  # which create_loader sets

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int) -> tuple[Any, Tensor]:
        with Image.open(self._paths[place]) as image:
            return self.transform(image.convert("RGB")), self._targets_NH[place]


class Heads(nn.Module):
    """A backbone with a dropout and a linear layer for each head."""

    def __init__(self, config: dict[str, Any], classes: list[int]) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            config["backbone"],
            num_classes=0,
            drop_path_rate=config["drop_path_rate"],
            checkpoint_path=config["weights"],
        )
        width = self.backbone.num_features
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in classes)
        self.dropout = nn.Dropout(config["drop_rate"])

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        features_BD = self.dropout(self.backbone(images_BCHW))
        return [head(features_BD) for head in self.heads]


class Training:
    """What the plain recipe trains: networks, loaders, and the step.

    config: data, backbone, weights, image_size, batch_size, epochs, lr, drop_rate, drop_path_rate,
    loader_workers, and the loader's auto_augment and re_prob where there is such.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        torch.manual_seed(0)
        table = read_table(Path(config["data"]))
        self.batches = _loader(table.splits["train"], config, train=True)
        self._val = _loader(table.splits["val"], config, train=False)
        classes = [len(head.classes) for head in table.labels.heads]
        self._network = Heads(config, classes).to(memory_format=torch.channels_last)
        self._optimizer = create_optimizer_v2(
            self._network, "adamp", config["lr"], weight_decay=1e-2
        )
        self._ema = ModelEmaV3(self._network, decay=0.998, use_warmup=True)
        steps = len(self.batches)
        self._schedule = CosineLRScheduler(
            self._optimizer, steps * config["epochs"], lr_min=config["lr"] * 0.01,
            warmup_t=steps // 2, t_in_epochs=False,
        )  # fmt: skip
        self._steps = 0

    def epoch(self) -> None:
        """Train on all rows once."""
        self._network.train()
        for images_BCHW, targets_BH in self.batches:
            images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
            losses = [
                cross_entropy(logits_BK, target_B, ignore_index=MISSING, label_smoothing=0.1)
                for logits_BK, target_B in zip(
                    self._network(images_BCHW), targets_BH.T, strict=True
                )
            ]
            self._optimizer.zero_grad()
            torch.autograd.backward(torch.stack(losses).mean())
            self._optimizer.step()
            self._steps += 1
            self._schedule.step_update(self._steps)
            self._ema.update(self._network, step=self._steps)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Mean accuracy of the heads on the validation rows, of the weights' average."""
        network = self._ema.module.eval()
        right = known = torch.zeros(())
        for images_BCHW, targets_BH in self._val:
            images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
            guesses_BH = torch.stack([logits.argmax(1) for logits in network(images_BCHW)], dim=1)
            right = right + (guesses_BH == targets_BH).sum(0)
            known = known + (targets_BH != MISSING).sum(0)
        return float((right / known).mean())


def _loader(split: Split, config: dict[str, Any], train: bool) -> Any:
    starts = [columns.start for columns in split.targets.columns.values()]
    return create_loader(
        Photos(split, split.targets.values_NT[:, starts]),
        input_size=config["image_size"],
        batch_size=config["batch_size"] if train else 128,
        is_training=train,
        scale=(0.6, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=0.0,
        auto_augment=config.get("auto_augment"),
        re_prob=config.get("re_prob", 0.0) if train else 0.0,
        re_mode="pixel",
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        crop_pct=1.0,
        crop_mode="squash",
        num_workers=config["loader_workers"],
        persistent_workers=config["loader_workers"] > 0,
        device=torch.device("cpu"),
    )


def _worker(config: dict[str, Any]) -> None:
    training = Training(config)
    for epoch in range(1, config["epochs"] + 1):
        training.epoch()
        accuracy = training.accuracy()
        line = {"time": time.time(), "trial": config["trial"], "epoch": epoch, "accuracy": accuracy}
        with (Path(config["folder"]) / REPORTS).open("a") as file:
            file.write(json.dumps(line) + "\n")
        ray.train.report({"accuracy": accuracy, "epoch": epoch})


def _driver(config: dict[str, Any], shared: dict[str, Any]) -> None:
    trial = tune.get_context().get_trial_id()
    TorchTrainer(
        _worker,
        train_loop_config={**shared, **config, "trial": trial},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=trial,
            storage_path=f"{shared['folder']}/train",
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grace", type=int, default=1, help="epochs that every trial has")
    parser.add_argument("--trial", type=json.loads, required=True, help="what all trials share")
    options = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # A stopped trial's placement group keeps its core for ever (Ray issue 54305): there are more
    # cores on paper than are used, or the sweep would hang.
    ray.init("local", num_cpus=4 * options.trials, include_dashboard=False)
    float_ = optuna.distributions.FloatDistribution
    space = {
        "lr": float_(3e-4, 1e-2, log=True),
        "drop_rate": float_(0.0, 0.5),
        "drop_path_rate": float_(0.0, 0.3),
    }
    sampler = optuna.samplers.TPESampler(seed=options.seed)
    search = OptunaSearch(space, metric="accuracy", mode="max", sampler=sampler)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_driver, shared={**options.trial, "folder": str(options.folder)}),
            {"CPU": 0.01},
        ),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(search, options.concurrency),
            scheduler=ASHAScheduler(
                time_attr="epoch", metric="accuracy", mode="max",
                max_t=options.trial["epochs"], grace_period=options.grace, reduction_factor=2,
            ),
            num_samples=options.trials,
        ),
        run_config=tune.RunConfig(storage_path=str(options.folder / "tune"), verbose=0),
    )  # fmt: skip
    tuner.fit()


if __name__ == "__main__":
    main()
