"""The loss against plain loops and torch's own losses. B images, K classes of a head."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from raymlc.labels import MISSING
from raymlc.model.loss import multi_head_loss, summed_loss

SIZES = {"article": 7, "gender": 2, "tags": 3, "one": 1}
MULTI_HOT = {"tags", "one"}


def random_batch(
    seed: int, rows: int, missing: float
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """Logits, targets and counts of known labels for every head of SIZES."""
    generator = torch.Generator().manual_seed(seed)
    logits: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}
    for head, classes in SIZES.items():
        logits[head] = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float32)
        lost_B = torch.rand(rows, generator=generator) < missing
        if head in MULTI_HOT:
            target_BK = torch.randint(0, 2, (rows, classes), generator=generator)
            targets[head] = torch.where(lost_B[:, None], MISSING, target_BK)
        else:
            target_B = torch.randint(0, classes, (rows,), generator=generator)
            targets[head] = torch.where(lost_B, MISSING, target_B)
        logits[head].requires_grad_()
    return logits, targets, known_labels(targets)


def known_labels(targets: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        head: float(sum(row[0] != MISSING for row in target.reshape(len(target), -1).tolist()))
        for head, target in targets.items()
    }


def log_softmax(logits: list[float]) -> list[float]:
    peak = max(logits)
    norm = peak + math.log(sum(math.exp(logit - peak) for logit in logits))
    return [logit - norm for logit in logits]


def loss_of_row(logits: list[float], target: int | list[int], smoothing: float) -> float:
    """One label's loss, in floats: smoothed cross-entropy, or mean binary cross-entropy."""
    if isinstance(target, int):
        logs = log_softmax(logits)
        return -(1 - smoothing) * logs[target] - smoothing * sum(logs) / len(logs)
    costs = [math.log1p(math.exp(-x if bit else x)) for x, bit in zip(logits, target, strict=True)]
    return sum(costs) / len(costs)


def loss_in_a_loop(
    logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], smoothing: float
) -> float:
    """Mean over known labels in a head, then over the heads with any."""
    means = []
    for head in logits:
        costs = [
            loss_of_row(row, label, smoothing)
            for row, label in zip(logits[head].tolist(), targets[head].tolist(), strict=True)
            if label != MISSING and label != [MISSING] * len(row)
        ]
        if costs:
            means.append(sum(costs) / len(costs))
    return sum(means) / len(means)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("missing", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_loss_is_the_mean_over_heads_of_means_over_known_labels(
    seed: int, missing: float, smoothing: float
) -> None:
    logits, targets, known = random_batch(seed, 12, missing)
    loss, sums = multi_head_loss(logits, targets, known, smoothing)
    assert float(loss.detach()) == pytest.approx(
        loss_in_a_loop(logits, targets, smoothing), rel=1e-5
    )
    assert list(sums) == list(SIZES)
    for head, value in sums.items():
        alone = summed_loss(logits[head], targets[head], smoothing)
        assert torch.equal(value, alone.detach())
        assert not value.requires_grad


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_single_label_head_equals_torchs_cross_entropy(smoothing: float) -> None:
    logits, targets, known = random_batch(0, 16, 0.0)
    head = {"article": logits["article"]}
    loss, _ = multi_head_loss(head, targets, known, smoothing)
    expected = cross_entropy(logits["article"], targets["article"], label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)


def test_a_multi_hot_head_equals_torchs_binary_cross_entropy_and_is_not_smoothed() -> None:
    logits, targets, known = random_batch(0, 16, 0.0)
    loss, _ = multi_head_loss({"tags": logits["tags"]}, targets, known, smoothing=0.3)
    expected = binary_cross_entropy_with_logits(logits["tags"], targets["tags"].float())
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("silent", [("article",), ("tags",), ("gender", "one")])
def test_a_head_without_labels_is_left_out_and_gets_no_gradient(silent: tuple[str, ...]) -> None:
    logits, targets, known = random_batch(1, 8, 0.2)
    for head in silent:
        targets[head] = torch.full_like(targets[head], MISSING)
        known[head] = 0.0
    loss, sums = multi_head_loss(logits, targets, known, 0.1)
    assert float(loss.detach()) == pytest.approx(loss_in_a_loop(logits, targets, 0.1), rel=1e-5)
    torch.autograd.backward(loss)
    for head, logits_BK in logits.items():
        assert logits_BK.grad is not None
        assert bool(logits_BK.grad.abs().max() == 0) == (head in silent)
        assert (sums[head] == 0) == (head in silent)


def test_a_batch_without_any_label_gives_zero_and_zero_gradients() -> None:
    logits, targets, known = random_batch(1, 5, 1.0)
    loss, _ = multi_head_loss(logits, targets, known, 0.1)
    assert float(loss.detach()) == 0
    torch.autograd.backward(loss)
    for logits_BK in logits.values():
        assert logits_BK.grad is not None
        assert not logits_BK.grad.any()


def test_a_row_without_a_label_gets_no_gradient_from_that_head() -> None:
    logits, targets, known = random_batch(2, 20, 0.5)
    torch.autograd.backward(multi_head_loss(logits, targets, known, 0.1)[0])
    for head, logits_BK in logits.items():
        assert logits_BK.grad is not None
        lost_B = (targets[head].reshape(20, -1) == MISSING).any(1)
        assert lost_B.any()
        assert not logits_BK.grad[lost_B].any()
        assert logits_BK.grad[~lost_B].abs().sum(1).min() > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_that_training_never_saw_adds_nothing(smoothing: float) -> None:
    logits, targets, _ = random_batch(3, 10, 0.2)
    single = targets["article"].clone()
    single[::3] = SIZES["article"] + torch.arange(len(single[::3]))
    seen_B = single < SIZES["article"]
    torch.testing.assert_close(
        summed_loss(logits["article"], single, smoothing),
        summed_loss(logits["article"][seen_B], single[seen_B], smoothing),
    )
    unseen_columns = torch.randint(0, 2, (10, 2))
    unseen_columns[targets["tags"][:, 0] == MISSING] = MISSING
    torch.testing.assert_close(
        summed_loss(logits["tags"], torch.cat([targets["tags"], unseen_columns], 1)),
        summed_loss(logits["tags"], targets["tags"]),
    )


def test_the_first_steps_loss_is_the_log_of_the_number_of_classes() -> None:
    _, targets, known = random_batch(4, 30, 0.3)
    logits = {head: torch.zeros(30, classes) for head, classes in SIZES.items()}
    loss, sums = multi_head_loss(logits, targets, known, 0.1)
    logs = {"article": math.log(7), "gender": math.log(2), "tags": math.log(2), "one": math.log(2)}
    assert float(loss) == pytest.approx(sum(logs.values()) / 4)
    for head, log in logs.items():
        assert float(sums[head]) / known[head] == pytest.approx(log)


@pytest.mark.parametrize("cut", [5, 8, 15])
def test_parts_of_a_batch_average_to_the_whole_if_they_share_its_counts(cut: int) -> None:
    """As in training by two workers: labels may be missing in one part more than in the other."""
    logits, targets, known = random_batch(5, 16, 0.4)
    whole, _ = multi_head_loss(logits, targets, known, 0.1)
    torch.autograd.backward(whole)
    gradients = {head: part.grad for head, part in logits.items()}
    shared = {head: count / 2 for head, count in known.items()}
    losses = []
    for part in (slice(0, cut), slice(cut, 16)):
        loss, _ = multi_head_loss(
            {head: full[part] for head, full in logits.items()},
            {head: full[part] for head, full in targets.items()},
            shared,
            0.1,
        )
        losses.append(loss / 2)
    torch.testing.assert_close(losses[0] + losses[1], whole)
    for full in logits.values():
        full.grad = None
    torch.autograd.backward(losses)
    for head, full in logits.items():
        torch.testing.assert_close(full.grad, gradients[head])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits, targets, known = random_batch(6, 200, 0.1)
    halved = {head: part.detach().to(dtype) for head, part in logits.items()}
    loss, _ = multi_head_loss(halved, targets, known, 0.1)
    assert loss.dtype == torch.float32
    rounded = {head: part.double() for head, part in halved.items()}
    assert float(loss) == pytest.approx(loss_in_a_loop(rounded, targets, 0.1), rel=1e-5)
