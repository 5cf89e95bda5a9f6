"""Counts against scikit-learn. B images, N rows, K classes of a head, U unseen ones."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from torch import Tensor

from raymlc.labels import MISSING, Head, Labels
from raymlc.training.metrics import Counts, HeadCounts, majority_accuracy

CPU = torch.device("cpu")
ROWS = 60
BATCHINGS = [[ROWS], [1] * ROWS, [7] * 8 + [4], [59, 1], [0, 30, 0, 30]]
METRICS = ("accuracy", "balanced_accuracy", "loss")


def random_head(
    seed: int, classes: int, unseen: int, multi_hot: bool, absent: int = 0, missing: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and targets (N,) or (N, K + U); its first `absent` classes do not occur."""
    generator = torch.Generator().manual_seed(seed)
    logits_NK = 2 * torch.randn(ROWS, classes, generator=generator)
    lost_N = torch.rand(ROWS, generator=generator) < missing
    if multi_hot:
        target_NC = torch.randint(0, 2, (ROWS, classes + unseen), generator=generator)
        # Else a row of many classes is never right as a whole.
        target_NC[::3, :classes] = (logits_NK[::3] > 0).long()
        target_NC[::3, classes:] = 0
        target_NC[:, :absent] = 0
        return logits_NK, torch.where(lost_N[:, None], MISSING, target_NC)
    target_N = torch.randint(absent, classes + unseen, (ROWS,), generator=generator)
    return logits_NK, torch.where(lost_N, MISSING, target_N)


def counted(logits_NK: Tensor, target: Tensor, unseen: int, batching: Sequence[int]) -> HeadCounts:
    head = Head("head", tuple(map(str, range(logits_NK.shape[1]))), multi_hot=target.dim() == 2)
    counts = HeadCounts(head, unseen, CPU)
    start = 0
    for rows in batching:
        counts.add(logits_NK[start : start + rows], target[start : start + rows])
        start += rows
    assert start == len(logits_NK)
    return counts


def balanced(truth: object, said: object) -> float:
    with warnings.catch_warnings():  # of a class that is said but never true
        warnings.simplefilter("ignore")
        return float(balanced_accuracy_score(truth, said))


def single_label_reference(logits_NK: Tensor, target_N: Tensor) -> dict[str, float]:
    """By scikit-learn, over the rows that have a label."""
    known_N = target_N != MISSING
    truth, logits = target_N[known_N].numpy(), logits_NK[known_N].double()
    said = logits.argmax(1).numpy()
    seen = truth < logits.shape[1]
    classes = list(range(logits.shape[1]))
    return {
        "accuracy": accuracy_score(truth, said),
        "balanced_accuracy": balanced(truth, said),
        "loss": log_loss(truth[seen], logits.softmax(1).numpy()[seen], labels=classes),
    }


def multi_hot_reference(logits_NK: Tensor, target_NC: Tensor) -> dict[str, float]:
    """By scikit-learn, over the rows that have labels; an unseen class is never said."""
    known_N = target_NC[:, 0] != MISSING
    truth_NC, logits_NK = target_NC[known_N].numpy(), logits_NK[known_N].double()
    classes = logits_NK.shape[1]
    said_NC = np.zeros_like(truth_NC)
    said_NC[:, :classes] = (logits_NK > 0).numpy()
    shares_NK = logits_NK.sigmoid().numpy()
    columns = range(truth_NC.shape[1])
    losses = [log_loss(truth_NC[:, k], shares_NK[:, k], labels=[0, 1]) for k in range(classes)]
    return {
        "accuracy": float((truth_NC == said_NC).all(1).mean())
        if truth_NC.shape[1] == 1
        else accuracy_score(truth_NC, said_NC),
        "balanced_accuracy": float(
            np.mean([balanced(truth_NC[:, c], said_NC[:, c]) for c in columns])
        ),
        "loss": float(np.mean(losses)),
    }


@pytest.mark.parametrize("batching", BATCHINGS, ids=["whole", "ones", "sevens", "59+1", "empty"])
@pytest.mark.parametrize(
    ("classes", "unseen", "absent"), [(2, 0, 0), (3, 2, 0), (5, 0, 2), (5, 3, 1)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_single_label_counts_equal_scikit_learn_over_any_batches(
    seed: int, classes: int, unseen: int, absent: int, batching: list[int]
) -> None:
    logits_NK, target_N = random_head(seed, classes, unseen, False, absent)
    metrics = counted(logits_NK, target_N, unseen, batching).metrics()
    assert metrics == pytest.approx(single_label_reference(logits_NK, target_N), rel=1e-6)


@pytest.mark.parametrize("batching", BATCHINGS, ids=["whole", "ones", "sevens", "59+1", "empty"])
@pytest.mark.parametrize(
    ("classes", "unseen", "absent"), [(1, 0, 0), (2, 0, 0), (3, 2, 1), (5, 0, 2)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_multi_hot_counts_equal_scikit_learn_over_any_batches(
    seed: int, classes: int, unseen: int, absent: int, batching: list[int]
) -> None:
    logits_NK, target_NC = random_head(seed, classes, unseen, True, absent)
    metrics = counted(logits_NK, target_NC, unseen, batching).metrics()
    assert metrics == pytest.approx(multi_hot_reference(logits_NK, target_NC), rel=1e-6)
    assert 0 < metrics["accuracy"] < 1


def test_a_row_with_an_unseen_class_counts_as_wrong_and_not_in_the_loss() -> None:
    logits_NK = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    metrics = counted(logits_NK, torch.tensor([0, 2, 1]), 1, [3]).metrics()
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["balanced_accuracy"] == pytest.approx(2 / 3)  # classes 0 and 1 found, 2 not
    assert metrics["loss"] == pytest.approx(math.log1p(math.exp(-9)), rel=1e-3)


@pytest.mark.parametrize("multi_hot", [False, True])
def test_a_head_without_any_label_measures_nan(multi_hot: bool) -> None:
    logits_NK, target = random_head(0, 3, 0, multi_hot, missing=1.1)
    metrics = counted(logits_NK, target, 0, [30, 30]).metrics()
    assert list(metrics) == list(METRICS)
    assert all(math.isnan(value) for value in metrics.values())


@pytest.mark.parametrize("multi_hot", [False, True])
def test_counts_of_parts_add_up_to_the_counts_of_the_whole(multi_hot: bool) -> None:
    logits_NK, target = random_head(4, 4, 1, multi_hot)
    whole = counted(logits_NK, target, 1, [ROWS])
    parts = [counted(logits_NK[rank::3], target[rank::3], 1, [20]) for rank in range(3)]
    first, *others = parts
    for other in others:
        for mine, theirs in zip(first.tensors(), other.tensors(), strict=True):
            mine += theirs
    assert first.metrics() == pytest.approx(whole.metrics(), rel=1e-6)


LABELS = Labels.learn(
    {"color": ["blue", "green", "red"], "side": ["top", "bottom"], "tags": ["dim|noisy"]}
)


def test_the_means_are_over_the_heads_that_have_labels() -> None:
    targets = LABELS.encode(
        {
            "color": ["red", "", "violet", "blue"],
            "side": [""] * 4,
            "tags": ["dim", "|", "", "old|noisy"],
        }
    )
    counts = Counts(LABELS, targets, CPU)
    generator = torch.Generator().manual_seed(0)
    logits = {
        head.name: torch.randn(4, len(head.classes), generator=generator) for head in LABELS.heads
    }
    values_NT = torch.from_numpy(targets.values_NT)
    batch = {name: values_NT[:, columns] for name, columns in targets.columns.items()}
    batch |= {name: batch[name][:, 0] for name in ("color", "side")}
    counts.add(logits, batch)
    metrics = counts.metrics("test")
    expected = {
        "color": single_label_reference(logits["color"], batch["color"]),
        "tags": multi_hot_reference(logits["tags"], batch["tags"]),
    }
    for name in METRICS:
        assert math.isnan(metrics[f"test/{name}/side"])
        for head, values in expected.items():
            assert metrics[f"test/{name}/{head}"] == pytest.approx(values[name])
        mean = (expected["color"][name] + expected["tags"][name]) / 2
        assert metrics[f"test/{name}"] == pytest.approx(mean)
    heads = ("", "/color", "/side", "/tags")
    assert set(metrics) == {f"test/{name}{head}" for name in METRICS for head in heads}


@pytest.mark.parametrize(
    ("train", "split", "expected"),
    [
        (["red", "red", "blue"], ["red", "blue", "green", "red"], 2 / 4),
        (["red", "red", "blue"], ["red", "", "", "blue"], 1 / 2),
        (["", "", "blue"], ["red", "blue"], 1 / 2),
        (["red", "blue", "blue"], ["violet", "violet"], 0.0),
        (["red", "red", "blue"], ["", ""], math.nan),
    ],
)
def test_majority_accuracy_of_a_single_label_head(
    train: list[str], split: list[str], expected: float
) -> None:
    labels = Labels.learn({"color": ["red", "green", "blue"]})
    given = majority_accuracy(
        labels, labels.encode({"color": train}), labels.encode({"color": split})
    )
    assert given == pytest.approx({"color": expected}, nan_ok=True)


@pytest.mark.parametrize(
    ("train", "split", "expected"),
    [
        (["a|b", "b|a", "a"], ["a", "a|b", "b", "a | b"], 2 / 4),
        (["|", "|", "a"], ["|", "a", "", "|"], 2 / 3),
        (["a", "a", "b"], ["a", "a|new", "new"], 1 / 3),
        (["a", "a", "b"], [""], math.nan),
    ],
)
def test_majority_accuracy_of_a_multi_hot_head_is_of_its_commonest_set(
    train: list[str], split: list[str], expected: float
) -> None:
    labels = Labels.learn({"tags": ["a|b"]})
    given = majority_accuracy(
        labels, labels.encode({"tags": train}), labels.encode({"tags": split})
    )
    assert given == pytest.approx({"tags": expected}, nan_ok=True)


def test_majority_accuracy_is_what_a_constant_model_would_measure() -> None:
    random = np.random.default_rng(0)
    train = {"color": random.choice(["red", "green", "blue"], 50, p=[0.5, 0.2, 0.3]).tolist()}
    val = {"color": random.choice(["red", "green", "", "violet"], 30).tolist()}
    labels = Labels.learn(train)
    targets = labels.encode(val)
    always = labels.heads[0].classes.index("red")
    logits_NK = torch.nn.functional.one_hot(torch.full((30,), always), 3).float()
    counts = counted(logits_NK, torch.from_numpy(targets.values_NT[:, 0]), 1, [30])
    majority = majority_accuracy(labels, labels.encode(train), targets)["color"]
    assert majority == pytest.approx(counts.metrics()["accuracy"])
