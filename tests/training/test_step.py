"""A step: parts of a batch, memory that does not suffice, a frozen backbone, compilation."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.model.network import build_network
from raymlc.training.evaluate import Workers
from raymlc.training.loop import fit
from raymlc.training.state import Training
from raymlc.trial import TrialConfig

CPU = torch.device("cpu")
# Without what differs between a batch and its parts: batch norm, and random numbers per call.
PLAIN = {"backbone": "test_convnext", "drop_rate": 0.0, "drop_path_rate": 0.0}


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def limited(training: Training, most: int) -> list[int]:
    """Lets the network run out of memory with more than `most` images; the sizes it was given."""
    sizes: list[int] = []

    def check(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            sizes.append(len(given[0]))
            if len(given[0]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")

    training.network.backbone.register_forward_pre_hook(check)
    return sizes


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "gradnorm"])
@pytest.mark.parametrize("size", [3, 8, 15])
def test_parts_of_a_batch_take_the_same_step_as_the_whole(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    weighting: str,
    size: int,
) -> None:
    config = config.replace({**PLAIN, "optimizer": "sgd", "task_weighting": weighting})
    whole, parts = (
        Training(config.replace({"micro_batch_size": number}), labels, CPU) for number in (0, size)
    )
    histories = [list(fit(training, train, val)) for training in (whole, parts)]
    torch.testing.assert_close(flat(parts.network), flat(whole.network), rtol=1e-4, atol=1e-6)
    for first, second in zip(*histories, strict=True):
        assert "micro_batch_size" not in first
        assert second["micro_batch_size"] == size
        assert second["train/loss"] == pytest.approx(first["train/loss"], rel=1e-5)


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "gradnorm"])
def test_out_of_memory_the_step_is_taken_in_halves_and_the_log_says_so(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit, weighting: str
) -> None:
    config = config.replace({**PLAIN, "optimizer": "sgd", "task_weighting": weighting})
    plain, short = Training(config, labels, CPU), Training(config, labels, CPU)
    expected = list(fit(plain, train, val))
    sizes = limited(short, most=5)
    history = list(fit(short, train, val))
    assert sizes[:3] == [16, 8, 4]
    assert max(sizes[3:]) == 4
    assert sum(sizes[2:]) == 2 * 2 * 16  # every image of two epochs of two steps, once
    torch.testing.assert_close(flat(short.network), flat(plain.network), rtol=1e-4, atol=1e-6)
    for metrics, before in zip(history, expected, strict=True):
        assert metrics["micro_batch_size"] == 4
        assert metrics["train/loss"] == pytest.approx(before["train/loss"], rel=1e-5)


def test_a_resumed_training_does_not_try_again_what_did_not_fit(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    first = Training(config, labels, CPU)
    limited(first, most=8)
    next(fit(first, train, val))
    second = Training(config, labels, CPU)
    second.load_state_dict(first.state_dict())
    sizes = limited(second, most=8)
    list(fit(second, train, val))
    assert set(sizes) == {8}


def test_two_images_that_do_not_fit_end_the_trial(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    training = Training(config, labels, CPU)
    sizes = limited(training, most=1)
    with pytest.raises(torch.OutOfMemoryError):
        next(fit(training, train, val))
    assert sizes == [16, 8, 4, 2]


def test_no_other_error_is_tried_again(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    training = Training(config, labels, CPU)
    calls: list[int] = []

    def fail(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        calls.append(len(given[0]))
        raise RuntimeError("a fault of the network's")

    training.network.backbone.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a fault of the network's"):
        next(fit(training, train, val))
    assert calls == [16]


@pytest.mark.parametrize("weighting", ["fixed", "gradnorm"])
def test_a_frozen_backbone_stays_to_the_bit_and_then_trains(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit, weighting: str
) -> None:
    config = config.replace({"epochs": 3, "freeze_epochs": 2, "task_weighting": weighting})
    training = Training(config, labels, CPU)

    def parts() -> tuple[list[torch.Tensor], torch.Tensor]:
        backbone = [tensor.clone() for tensor in training.network.backbone.state_dict().values()]
        return backbone, flat(training.network.heads)

    before = parts()
    for metrics in fit(training, train, val):
        after = parts()
        same = [torch.equal(one, other) for one, other in zip(before[0], after[0], strict=True)]
        assert all(same) if metrics["epoch"] <= 2 else not any(same)
        assert not torch.equal(before[1], after[1])
        before = after


def test_a_backbone_that_is_frozen_for_all_epochs_gives_a_probe_of_its_features(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    training = Training(config.replace({"freeze_epochs": 2}), labels, CPU)
    start = flat(training.network.backbone)
    assert len(list(fit(training, train, val))) == 2
    assert torch.equal(flat(training.network.backbone), start)


def test_on_a_plateau_of_the_validation_loss_the_lr_decays(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    still = {"schedule": "plateau", "lr": 1e-9, "warmup_epochs": 0.0, "epochs": 6}
    config = config.replace({**PLAIN, **still, "patience_epochs": 1, "decay_rate": 0.5})
    history = list(fit(Training(config, labels, CPU), train, val))
    rates = [metrics["lr"] / 1e-9 for metrics in history]
    # The first epoch is good, the second and third are not, which is one more than is let pass.
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25])


def test_learnt_weights_are_told_with_every_epoch(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    names = {f"train/weight/{head}" for head in labels.names}
    for weighting in ("uncertainty", "gradnorm"):
        training = Training(config.replace({"task_weighting": weighting}), labels, CPU)
        for metrics in fit(training, train, val):
            assert names <= set(metrics)
            assert all(metrics[name] != 1.0 and math.isfinite(metrics[name]) for name in names)
    (metrics, *_) = fit(Training(config, labels, CPU), train, val)
    assert not names & set(metrics)


def test_sync_bn_on_several_cpu_workers_is_refused_in_one_line(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    training = Training(config.replace({"sync_bn": True}), labels, CPU)
    with pytest.raises(UserError, match="sync_bn needs GPUs") as error:
        next(fit(training, train, val, Workers(size=2)))
    assert "\n" not in str(error.value)


def test_sync_bn_of_one_worker_trains_as_batch_norm_does(
    config: TrialConfig, labels: Labels, train: ImageSplit, val: ImageSplit
) -> None:
    plain, synced = (
        Training(config.replace({"sync_bn": value}), labels, CPU) for value in (False, True)
    )
    for training in (plain, synced):
        list(fit(training, train, val))
    torch.testing.assert_close(flat(synced.network), flat(plain.network))
    assert list(synced.network.state_dict()) == list(plain.network.state_dict())


@pytest.mark.parametrize("weighting", ["fixed", "gradnorm"])
def test_a_compiled_training_is_the_same_training(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    weighting: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced by the compiler, but run as it was, which takes seconds instead of minutes."""
    compile_: Callable[..., Any] = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="aot_eager"))
    # Where a gradient is nearly 0, Adam's first steps go by the sign of a rounding error.
    config = config.replace({"optimizer": "sgd", "freeze_epochs": 1, "task_weighting": weighting})
    plain, compiled = (
        Training(config.replace({"compile": value}), labels, CPU) for value in (False, True)
    )
    for training in (plain, compiled):
        list(fit(training, train, val))
    torch.testing.assert_close(flat(compiled.network), flat(plain.network))


@pytest.mark.slow
def test_a_compiled_network_gives_the_logits_of_every_head(
    config: TrialConfig, labels: Labels
) -> None:
    network = build_network(config, labels).eval()
    images_BCHW = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected, logits = network(images_BCHW), torch.compile(network)(images_BCHW)
    assert list(logits) == list(expected) == list(labels.names)
    for head in labels.names:
        torch.testing.assert_close(logits[head], expected[head], rtol=1e-4, atol=1e-4)
