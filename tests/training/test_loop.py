"""Training: what it yields, how it goes on, and that every field of a trial acts on it."""

import copy
import io
import itertools
import math
from collections.abc import Callable, Generator, Iterator
from operator import methodcaller
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import raymlc.training.loop as loop
from raymlc.cluster.worker import Job, TrialRunner
from raymlc.data.batches import Batch, training_batches
from raymlc.data.demo import draw_demo
from raymlc.data.store import ImageSplit
from raymlc.data.table import read_table
from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.model.ema import EMA
from raymlc.model.network import build_network
from raymlc.training import state as state_module
from raymlc.training.evaluate import Workers, evaluate
from raymlc.training.loop import Diverged, fit
from raymlc.training.metrics import reported_metrics
from raymlc.training.state import Training
from raymlc.trial import FIELDS, TrialConfig
from tests.no_waiting import no_waiting

CPU = torch.device("cpu")
SplitMaker = Callable[..., ImageSplit]

# Nothing random, and no value of Adam's that turns rounding errors into steps.
PLAIN = {
    "backbone": "test_convnext",
    "optimizer": "sgd",
    "lr": 0.02,
    "drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "crop_min_area": 1.0,
    "hflip_prob": 0.0,
    "erasing_prob": 0.0,
    "smoothing": 0.0,
}


def trained(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> tuple[Training, list[dict[str, float]]]:
    training = Training(config, labels, CPU)
    return training, list(fit(training, train, val))


def flat(model: nn.Module) -> Tensor:
    """All parameters and buffers, as one row."""
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def without_speed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in metrics.items() if name != "images_per_second"}
        for metrics in history
    ]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("epochs", [1, 3])
def test_fit_yields_the_promised_metrics_once_an_epoch(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    epochs: int,
    ema_decay: float,
) -> None:
    config = config.replace({"epochs": epochs, "ema_decay": ema_decay, "warmup_epochs": 0.5})
    training, history = trained(config, labels, train, val)
    assert [metrics["epoch"] for metrics in history] == [1.0, 2.0, 3.0][:epochs]
    expected = (
        {"epoch", "lr", "images", "images_per_second", "train/loss"}
        | {f"train/loss/{head}" for head in labels.names}
        | {*reported_metrics(labels)}
    )
    if ema_decay:
        expected |= {name.replace("val/", "val_raw/") for name in reported_metrics(labels)}
    for metrics in history:
        assert set(metrics) == expected
        assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
        assert metrics["images_per_second"] > 0
    assert training.epoch == epochs
    assert list(fit(training, train, val)) == []


def test_the_lr_told_is_that_of_the_epochs_last_step(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    config = config.replace({"epochs": 3, "warmup_epochs": 1.0, "head_lr_scale": 5.0})
    _, history = trained(config, labels, train, val)
    cosines = [config.min_lr_ratio + 0.99 * (1 + math.cos(math.pi * t / 3)) / 2 for t in (1, 2, 3)]
    expected = [config.lr * cosine for cosine in cosines]
    assert [metrics["lr"] for metrics in history] == pytest.approx(expected)
    assert history[-1]["lr"] == pytest.approx(config.lr * config.min_lr_ratio)


def test_the_metrics_are_those_of_the_weights_that_the_caller_holds(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    training = Training(config, labels, CPU)
    for metrics in fit(training, train, val):
        for prefix, model in {"val": training.deployed, "val_raw": training.network}.items():
            again = evaluate(
                copy.deepcopy(model),
                labels,
                val,
                training.normalization,
                CPU,
                batch_size=config.batch_size,
            ).metrics(prefix)
            assert {name: metrics[name] for name in again} == again
        assert metrics["val/loss"] != metrics["val_raw/loss"]
        assert training.epoch == metrics["epoch"]


def test_the_training_loss_is_the_mean_over_steps(
    config: TrialConfig, labels: Labels, make_split: SplitMaker
) -> None:
    """At an lr that moves nothing, it is the loss of the same rows in evaluation."""
    train = make_split(48, seed=3, missing=0.0)
    config = config.replace({**PLAIN, "lr": 1e-12, "epochs": 1, "ema_decay": 0.0})
    _, (metrics,) = trained(config, labels, train, train)
    assert metrics["train/loss"] == pytest.approx(metrics["val/loss"], rel=1e-5)


def test_training_learns_what_can_be_seen(
    config: TrialConfig, labels: Labels, make_split: SplitMaker
) -> None:
    config = config.replace({"epochs": 8, "lr": 5e-3})
    train, val = make_split(96, seed=1, missing=0.1), make_split(60, seed=2, missing=0.1)
    _, history = trained(config, labels, train, val)
    assert history[-1]["val/accuracy/color"] > 0.9  # chance: 1/3
    assert history[-1]["val/accuracy/side"] > 0.8  # chance: 1/2
    assert history[-1]["val/loss"] < 0.7 * history[0]["val/loss"]
    assert history[-1]["train/loss"] < 0.8 * history[0]["train/loss"]


@pytest.mark.parametrize("optimizer", ["adamp", "adamw"])
def test_one_seed_gives_one_training_to_the_bit(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit, optimizer: str
) -> None:
    config = config.replace({"optimizer": optimizer, "randaug_ops": 1})
    first, history = trained(config, labels, train, val)
    torch.manual_seed(12345)  # what was drawn before must not matter
    np.random.seed(12345)
    again, same = trained(config, labels, train, val)
    assert torch.equal(flat(again.network), flat(first.network))
    assert torch.equal(flat(again.deployed), flat(first.deployed))
    assert without_speed(same) == without_speed(history)
    other, _ = trained(config.replace({"seed": 1}), labels, train, val)
    assert not torch.equal(flat(other.network), flat(first.network))


def test_every_epoch_of_every_worker_draws_other_random_numbers(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[float] = []

    def drawing_batches(*args: Any) -> Iterator[Batch]:
        drawn.append(float(torch.rand(())))
        return training_batches(*args)

    monkeypatch.setattr(loop, "training_batches", drawing_batches)
    for seed in (0, 1):
        for rank in (0, 1):
            training = Training(config.replace({"seed": seed}), labels, CPU)
            list(fit(training, train, val, Workers(rank, 2)))
    assert len(drawn) == len(set(drawn)) == 2 * 2 * config.epochs


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamp", "gc": True},
        {"optimizer": "sgd", "gc": True},
        {"optimizer": "lookahead_adamw"},
        {"task_weighting": "uncertainty"},
        {"task_weighting": "gradnorm"},
        {"schedule": "plateau", "patience_epochs": 0},
        {"freeze_epochs": 3, "micro_batch_size": 5},
        {"mixup_alpha": 0.5, "cutmix_alpha": 0.5, "mix_off_epochs": 1, "randaug_ops": 2},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_four_epochs_are_two_and_then_two_in_another_process_to_the_bit(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    changes: dict[str, Any],
) -> None:
    config = config.replace({"lr": 5e-3, "epochs": 4, **changes})
    whole, history = trained(config, labels, train, val)

    training = Training(config, labels, CPU)
    epochs = fit(training, train, val)
    first = [next(epochs), next(epochs)]
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    file.seek(0)
    torch.rand(17)  # another process has drawn other random numbers
    resumed = Training(config, labels, CPU, fetch=False)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    second = list(fit(resumed, train, val))

    assert without_speed(first + second) == without_speed(history)
    assert torch.equal(flat(resumed.network), flat(whole.network))
    assert torch.equal(flat(resumed.deployed), flat(whole.deployed))
    states = whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    for key, moments in states[0].items():
        for name, value in moments.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key][name]))


# Whatever adds work to a step. The step counters of torch's own AdamW lie on the CPU, and are read
# there. That the making of a batch waits for nothing is shown in test_batches and test_augment.
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "gc": True},
        {"gc": True, "gc_conv_only": True},
        {"optimizer": "lookahead_sgd"},
        {"clip_grad": 1.0},
        {"clip_grad": 1.0, "clip_mode": "value"},
        {"clip_grad": 1.0, "clip_mode": "agc"},
        {"mixup_alpha": 1.0, "cutmix_alpha": 1.0},
        {"task_weighting": "uncertainty"},
        {"task_weighting": "gradnorm"},
        {"head_weights": {"color": 2.0}},
        {"loss": "focal", "class_weighting": "effective"},
        {"loss": "asymmetric", "class_weighting": "inverse"},
        {"ema_decay": 0.0},
        {"ema_decay": 0.9999},
        {"freeze_epochs": 1},
        {"micro_batch_size": 3, "task_weighting": "gradnorm"},
        {"precision": "bf16"},
        {"randaug_ops": 2, "erasing_prob": 0.9, "erasing_count": 3},
        {"autoaugment": True, "color_jitter": 0.4},
        {"augmix": True},
        {"augment": False},
    ],
    ids=str,
)
def test_nothing_in_a_step_waits_for_the_device(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = 0
    opened: list[Generator[Batch]] = []

    def watched(*args: Any) -> Generator[Batch]:
        nonlocal steps
        for batch in training_batches(*args):
            with no_waiting():
                yield batch
            steps += 1

    def watched_batches(*args: Any) -> Generator[Batch]:
        opened.append(watched(*args))
        return opened[-1]

    monkeypatch.setattr(loop, "training_batches", watched_batches)
    config = config.replace({"epochs": 1, **changes})
    try:
        trained(config, labels, train, val)
    finally:
        for batches in opened:
            batches.close()  # a step that failed left it waiting, and the refusal in force
    assert steps == 2


@pytest.mark.parametrize(
    "wait",
    [float, bool, int, Tensor.nonzero, *map(methodcaller, ("item", "tolist", "numpy"))],
)
def test_what_would_wait_for_the_device_is_noticed(wait: Callable[[Tensor], object]) -> None:
    """Else the test above could not fail."""
    tensor = torch.ones(())
    with pytest.raises(AssertionError, match="waits for the device"), no_waiting():
        wait(tensor)


def test_a_loss_that_is_not_finite_is_raised_with_the_epoch_and_the_head(
    config: TrialConfig, labels: Labels, make_split: SplitMaker, val: ImageSplit
) -> None:
    training = Training(config, labels, CPU)
    one_step = make_split(16, seed=4)  # later steps would spoil the other heads too
    epochs = fit(training, one_step, val)
    next(epochs)
    side = labels.names.index("side")
    nn.init.constant_(training.network.heads[side][1].weight, math.nan)  # type: ignore[index]
    with pytest.raises(Diverged) as error:
        next(epochs)
    text = str(error.value)
    assert "the loss of side was not finite in epoch 2" in text
    assert "smaller lr" in text
    assert "color" not in text
    assert "\n" not in text


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_an_lr_beyond_all_reason_diverges_and_says_so(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit, ema_decay: float
) -> None:
    config = config.replace({**PLAIN, "lr": 1e30, "epochs": 4, "ema_decay": ema_decay})
    with pytest.raises(Diverged, match=r"in epoch [1-4]"):
        trained(config, labels, train, val)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_convnext"])
def test_channels_last_and_first_train_to_the_same_weights(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit, backbone: str
) -> None:
    config = config.replace({**PLAIN, "backbone": backbone, "drop_rate": 0.2})
    last, _ = trained(config.replace({"channels_last": True}), labels, train, val)
    first, _ = trained(config.replace({"channels_last": False}), labels, train, val)
    for model, other in ((last.network, first.network), (last.deployed, first.deployed)):
        torch.testing.assert_close(flat(model), flat(other), rtol=1e-3, atol=1e-4)


def test_bf16_trains_float32_weights_to_almost_the_same_loss(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    config = config.replace({**PLAIN, "epochs": 3})
    full, expected = trained(config.replace({"precision": "fp32"}), labels, train, val)
    reduced, history = trained(config.replace({"precision": "bf16"}), labels, train, val)
    assert {parameter.dtype for parameter in reduced.network.parameters()} == {torch.float32}
    assert not torch.equal(flat(reduced.network), flat(full.network))
    for metrics, other in zip(history, expected, strict=True):
        assert metrics["train/loss"] == pytest.approx(other["train/loss"], rel=0.02)
        assert metrics["val/loss"] == pytest.approx(other["val/loss"], rel=0.02)


def test_auto_is_float32_on_a_cpu(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    auto, _ = trained(config.replace({"precision": "auto"}), labels, train, val)
    full, _ = trained(config.replace({"precision": "fp32"}), labels, train, val)
    assert torch.equal(flat(auto.network), flat(full.network))


def test_clip_grad_bounds_the_step_and_keeps_its_direction(
    config: TrialConfig, labels: Labels, make_split: SplitMaker, val: ImageSplit
) -> None:
    """The steps of plain gradient descent at lr 1 are the gradients themselves."""
    one_step = make_split(16, seed=4)
    config = config.replace(
        {
            **PLAIN,
            "optimizer": "momentum",
            "momentum": 0.0,
            "weight_decay": 0.0,
            "lr": 1.0,
            "schedule": "constant",
            "warmup_epochs": 0.0,
            "epochs": 1,
        }
    )
    steps = {}
    for clip_grad in (0.0, 0.01, 1e6):
        start = Training(config, labels, CPU).network
        training, _ = trained(config.replace({"clip_grad": clip_grad}), labels, one_step, val)
        steps[clip_grad] = flat(training.network) - flat(start)
    norm = float(steps[0.0].norm())
    assert norm > 0.1
    assert float(steps[0.01].norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(steps[0.01] / 0.01, steps[0.0] / norm, rtol=1e-2, atol=1e-4)
    assert torch.equal(steps[1e6], steps[0.0])


@pytest.mark.parametrize(
    ("batch_size", "size", "law"),
    [(45, 1, "at most the number of training rows"), (15, 2, "divide")],
)
def test_a_batch_size_that_fits_neither_rows_nor_workers_is_refused(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    batch_size: int,
    size: int,
    law: str,
) -> None:
    training = Training(config.replace({"batch_size": batch_size}), labels, CPU)
    with pytest.raises(UserError, match=law) as error:
        next(fit(training, train, val, Workers(size=size)))
    assert "\n" not in str(error.value)


def _work(
    rank: int,
    folder: Path,
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    stop_after: int | None,
) -> None:
    """One of two processes that train together; in the middle they may be put away and go on."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    workers = Workers(rank, 2, torch.distributed.all_reduce, DistributedDataParallel)  # type: ignore[arg-type]
    training = Training(config, labels, CPU)
    epochs = fit(training, train, val, workers)
    history = list(itertools.islice(epochs, stop_after))
    if stop_after is not None:
        state = training.state_dict()
        torch.save(state, folder / f"{rank}.state")
        training = Training(config, labels, CPU, fetch=False)
        training.load_state_dict(torch.load(folder / f"{rank}.state", weights_only=True))
        history += fit(training, train, val, workers)
    torch.save(
        {
            "network": flat(training.network),
            "deployed": flat(training.deployed),
            "history": without_speed(history),
        },
        folder / f"{rank}.pt",
    )
    torch.distributed.destroy_process_group()


@pytest.fixture
def by_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """by_two(config, labels, train, val): what each of two processes ends with."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where they find this module

    def by_two(
        config: TrialConfig,
        labels: Labels,
        train: ImageSplit,
        val: ImageSplit,
        stop_after: int | None = None,
    ) -> list[dict[str, Any]]:
        (tmp_path / "meeting").unlink(missing_ok=True)
        arguments = (tmp_path, config, labels, train, val, stop_after)
        torch.multiprocessing.spawn(_work, arguments, nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
        return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]

    return by_two


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"clip_grad": 1.0},
        {"task_weighting": "uncertainty", "clip_grad": 0.05, "clip_mode": "agc"},
        {"task_weighting": "gradnorm", "micro_batch_size": 3, "freeze_epochs": 1},
    ],
    ids=["plain", "uncertainty", "gradnorm"],
)
def test_two_processes_end_with_the_weights_of_one_on_the_joined_batches(
    config: TrialConfig,
    labels: Labels,
    make_split: SplitMaker,
    by_two: Callable[..., list[dict[str, Any]]],
    changes: dict[str, Any],
) -> None:
    train, val = make_split(28, seed=6, missing=0.5), make_split(7, seed=7)
    config = config.replace({**PLAIN, "batch_size": 8, "epochs": 3, **changes})
    results = by_two(config, labels, train, val)
    alone, history = trained(config, labels, train, val)
    for name, model in {"network": alone.network, "deployed": alone.deployed}.items():
        assert torch.equal(results[0][name], results[1][name])
        torch.testing.assert_close(results[0][name], flat(model), rtol=1e-4, atol=1e-6)
    start = Training(config, labels, CPU).network
    assert (flat(alone.network) - flat(start)).abs().max() > 0.01
    assert results[0]["history"] == results[1]["history"]
    for together, metrics in zip(results[0]["history"], without_speed(history), strict=True):
        assert together == pytest.approx(metrics, rel=1e-4)


@pytest.mark.slow
def test_two_processes_score_and_store_the_same_batch_statistics(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    by_two: Callable[..., list[dict[str, Any]]],
) -> None:
    first, second = by_two(config, labels, train, val)
    assert torch.equal(first["network"], second["network"])
    assert torch.equal(first["deployed"], second["deployed"])
    assert first["history"] == second["history"]


@pytest.mark.slow
def test_two_processes_give_the_same_bits_again_also_when_they_go_on_after_an_epoch(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    by_two: Callable[..., list[dict[str, Any]]],
) -> None:
    config = config.replace(
        {"epochs": 3, "mixup_alpha": 0.5, "randaug_ops": 2, "optimizer": "adamp"}
    )
    whole = by_two(config, labels, train, val)
    again = by_two(config, labels, train, val, stop_after=2)
    for first, second in zip(whole, again, strict=True):
        assert torch.equal(first["network"], second["network"])
        assert torch.equal(first["deployed"], second["deployed"])
        assert first["history"] == second["history"]


# Law: each field of a trial changes something that can be observed. For each, what else must be
# set, and a value other than the base's.
BASE = TrialConfig(
    backbone="test_vit", pretrained=False, image_size=32, batch_size=8, epochs=2, precision="fp32"
)
CNN = {"backbone": "test_efficientnet"}
MIXING = {"mixup_alpha": 1.0}
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "backbone": ({}, "test_convnext"),
    "pretrained": ({}, True),
    "weights": ({}, "the file of the fixture"),
    "image_size": ({}, 48),
    "normalization": ({}, "clip"),
    "drop_rate": ({}, 0.5),
    "drop_path_rate": ({}, 0.5),
    "bn_momentum": (CNN, 0.5),
    "bn_eps": (CNN, 0.1),
    "sync_bn": (CNN, True),
    "freeze_epochs": ({}, 1),
    "optimizer": ({}, "adamw"),
    "lr": ({}, 1e-3),
    "head_lr_scale": ({}, 2.0),
    "weight_decay": ({}, 1.0),
    "beta1": ({}, 0.5),
    "beta2": ({}, 0.9),
    "momentum": ({"optimizer": "sgd"}, 0.5),
    "eps": ({}, 1e-3),
    "gc": ({}, True),
    "gc_conv_only": ({"gc": True}, True),
    "clip_grad": ({"optimizer": "sgd"}, 0.01),
    "clip_mode": ({"optimizer": "sgd", "clip_grad": 0.01}, "agc"),
    "schedule": ({}, "constant"),
    "warmup_epochs": ({}, 1.5),
    "warmup_lr_ratio": ({"warmup_epochs": 1.5}, 0.5),
    "min_lr_ratio": ({}, 0.5),
    "cooldown_epochs": ({}, 1.0),
    "decay_epochs": ({"schedule": "step"}, 0.5),
    "decay_rate": ({"schedule": "step", "decay_epochs": 1.0}, 0.1),
    # With weights that hardly move, the validation loss is on a plateau from the first epoch on.
    "patience_epochs": ({"schedule": "plateau", "epochs": 4, "lr": 1e-9}, 0),
    "epochs": ({}, 3),
    "batch_size": ({}, 10),
    "micro_batch_size": ({}, 3),
    "ema_decay": ({}, 0.2),
    "ema_on_cpu": ({}, True),
    "loss": ({}, "focal"),
    "head_losses": ({}, {"color": "asymmetric"}),
    "focal_gamma": ({"loss": "focal"}, 0.5),
    "asl_gamma_pos": ({"loss": "asymmetric"}, 1.0),
    "asl_gamma_neg": ({"loss": "asymmetric"}, 1.0),
    "asl_clip": ({"loss": "asymmetric"}, 0.3),
    "smoothing": ({}, 0.3),
    "class_weighting": ({}, "inverse"),
    "class_weight_beta": ({"class_weighting": "effective"}, 0.5),
    "task_weighting": ({}, "uncertainty"),
    "head_weights": ({}, {"color": 3.0}),
    "gradnorm_alpha": ({"task_weighting": "gradnorm"}, 0.0),
    "augment": ({}, False),
    "randaug_ops": ({}, 1),
    "randaug_magnitude": ({"randaug_ops": 2}, 1.0),
    "randaug_std": ({"randaug_ops": 2}, 3.0),
    "randaug_color": ({"randaug_ops": 2}, False),
    "autoaugment": ({}, True),
    "augmix": ({}, True),
    "color_jitter": ({}, 0.5),
    "crop_min_area": ({}, 1.0),
    "crop_max_ratio": ({}, 2.0),
    "hflip_prob": ({}, 0.0),
    "vflip_prob": ({}, 0.5),
    "interpolation": ({}, "bicubic"),
    "erasing_prob": ({}, 0.9),
    "erasing_mode": ({"erasing_prob": 0.9}, "zero"),
    "erasing_count": ({"erasing_prob": 0.9}, 4),
    "mixup_alpha": ({}, 1.0),
    "cutmix_alpha": ({}, 1.0),
    "mix_prob": (MIXING, 0.2),
    "mix_off_epochs": (MIXING, 1),
    "eval_crop": ({}, 0.7),
    "precision": ({}, "bf16"),
    "channels_last": ({}, False),
    "compile": ({}, True),
    "seed": ({}, 1),
}


@pytest.fixture(scope="module")
def observe(
    labels: Labels, make_split: SplitMaker, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, TrialConfig], Any]:
    """observe(field, config): what that field should act on, of a trial that is really run."""
    train, val = make_split(20, seed=8), make_split(6, seed=9)
    table = read_table(draw_demo_in(tmp_path_factory.mktemp("drawn")))
    folder = tmp_path_factory.mktemp("jobs")
    seen: dict[TrialConfig, Any] = {}

    def outcome(config: TrialConfig) -> Any:
        if config not in seen:
            training, history = trained(config, labels, train, val)
            told = [(metrics["lr"], metrics["val/loss"]) for metrics in history]
            seen[config] = (told, flat(training.deployed).tolist())
        return seen[config]

    def observe(field: str, config: TrialConfig) -> Any:
        if field == "pretrained":
            return asks_the_hub(config, labels)
        if field == "compile":
            return compiles(config, labels, train, val)
        if field == "sync_bn":
            return {type(module) for module in Training(config, labels, CPU).network.modules()}
        if field == "ema_on_cpu":
            return place_of_the_average(config, labels)
        if field == "channels_last":
            network = Training(config, labels, CPU).network
            weights = [part for part in network.parameters() if part.dim() == 4]
            return [part.is_contiguous(memory_format=torch.channels_last) for part in weights]
        if field == "image_size":
            job = Job(table, folder, folder / str(config.image_size), "stop", "val/accuracy")
            next(TrialRunner(job).epochs(folder / "trial", config, CPU))
            return {np.load(path).shape[1:] for path in job.cache.glob("*.npy")}
        return outcome(config)

    return observe


def draw_demo_in(folder: Path) -> Path:
    draw_demo(folder, rows=30)
    return folder


def compiles(config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit) -> bool:
    given: list[nn.Module] = []

    def note(model: nn.Module) -> nn.Module:
        given.append(model)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", note)
        trained(config, labels, train, val)
    return bool(given)


def place_of_the_average(config: TrialConfig, labels: Labels) -> Any:
    """Where the moving average is asked to be kept, which on the CPU alone makes no difference."""
    places: list[Any] = []

    class Noting(EMA):
        def __init__(self, model: nn.Module, decay: float, device: Any = None) -> None:
            places.append(device)
            super().__init__(model, decay, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_module, "EMA", Noting)
        Training(config, labels, CPU)
    return places


def asks_the_hub(config: TrialConfig, labels: Labels) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/nowhere")
        try:
            build_network(config, labels)
        except UserError as error:
            return "model hub" in str(error)
        return False


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of the base's backbone, for its image size."""
    torch.manual_seed(99)
    backbone = timm.create_model("test_vit", img_size=32)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.02)
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file(backbone.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_of_a_trial_changes_something_observable(
    field: str, observe: Callable[[str, TrialConfig], Any], weights_file: str
) -> None:
    given, value = CHANGES[field]
    base = BASE.replace(given)
    changed = base.replace({field: weights_file if field == "weights" else value})
    assert changed != base
    assert observe(field, changed) != observe(field, base)


def test_a_trial_that_does_not_change_is_observed_to_be_the_same(
    labels: Labels, make_split: SplitMaker
) -> None:
    """Else the test above could not fail."""
    train, val = make_split(20, seed=8), make_split(6, seed=9)
    first, again = (trained(BASE, labels, train, val)[0] for _ in range(2))
    assert torch.equal(flat(first.deployed), flat(again.deployed))


def test_there_is_an_observation_for_every_field_and_no_other() -> None:
    assert set(CHANGES) == set(FIELDS)
