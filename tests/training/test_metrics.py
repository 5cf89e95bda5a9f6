"""Counts against scikit-learn.

Shapes: B images, N rows, K classes of a head, C those and the ones that training never saw.
"""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import cycle
from operator import methodcaller

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    multilabel_confusion_matrix,
    top_k_accuracy_score,
)
from torch import Tensor

from raymlc.errors import UserError
from raymlc.labels import MISSING, Head, Labels, Targets
from raymlc.metric import METRICS, check_metric, metric_names
from raymlc.training import metrics as metrics_module
from raymlc.training.metrics import (
    Counts,
    MultiHotCounts,
    SingleLabelCounts,
    average_precision,
    check_metric_of,
    majority_accuracy,
    reported_metrics,
)
from tests.no_waiting import no_waiting

CPU = torch.device("cpu")
ROWS = 60
BATCHINGS = [[ROWS], [1] * ROWS, [7] * 8 + [4], [59, 1], [0, 30, 0, 30]]
OF_SINGLE_LABEL = {"accuracy", "balanced_accuracy", "macro_f1", "loss"}
OF_MULTI_HOT = OF_SINGLE_LABEL | {"micro_f1", "mean_average_precision"}


def random_head(
    seed: int, classes: int, unseen: int, multi_hot: bool, absent: int = 0, missing: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and targets (N,) or (N, C); its first `absent` classes do not occur."""
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


def empty_counts(
    logits_NK: Tensor, target: Tensor, unseen: int, rank: int = 0, size: int = 1
) -> Counts:
    """Of a split with one head."""
    multi_hot = target.dim() == 2
    labels = Labels((Head("head", tuple(map(str, range(logits_NK.shape[1]))), multi_hot),))
    values_NT = (target if multi_hot else target[:, None]).numpy().copy()
    values_NT.flags.writeable = False  # as what Ray hands on to a worker
    targets = Targets(
        values_NT,
        {"head": slice(0, values_NT.shape[1])},
        {"head": multi_hot},
        {"head": tuple(f"new {place}" for place in range(unseen))},
    )
    return Counts(labels, targets, CPU, rank, size)


def counts_of(
    logits_NK: Tensor,
    target: Tensor,
    unseen: int,
    batching: Sequence[int] = (ROWS,),
    rank: int = 0,
    size: int = 1,
) -> Counts:
    """What worker `rank` counts, in batches of these sizes, and again from the first."""
    counts = empty_counts(logits_NK, target, unseen, rank, size)
    logits_NK, target = logits_NK[rank::size], target[rank::size]
    start = 0
    for rows in cycle(batching):
        part = slice(start, start + rows)
        counts.add({"head": logits_NK[part]}, {"head": target[part]})
        start += rows
        if start >= len(logits_NK):
            break
    return counts


def counted(
    logits_NK: Tensor, target: Tensor, unseen: int, batching: Sequence[int] = (ROWS,)
) -> SingleLabelCounts | MultiHotCounts:
    return counts_of(logits_NK, target, unseen, batching).heads["head"]


def balanced(truth: object, said: object) -> float:
    with warnings.catch_warnings():  # of a class that is said but never true
        warnings.simplefilter("ignore")
        return float(balanced_accuracy_score(truth, said))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def single_label_reference(logits_NK: Tensor, target_N: Tensor, unseen: int) -> dict[str, float]:
    """By scikit-learn, over the rows that have a label."""
    classes = logits_NK.shape[1]
    known_N = target_N != MISSING
    truth, logits = target_N[known_N].numpy(), logits_NK[known_N].double()
    names = OF_SINGLE_LABEL | ({"top5_accuracy"} if classes > 5 else set())
    if not len(truth):
        return dict.fromkeys(names, math.nan)
    said = logits.argmax(1).numpy()
    seen = truth < classes
    shares, labels = logits.softmax(1).numpy()[seen], list(range(classes))
    reference = {
        "accuracy": accuracy_score(truth, said),
        "balanced_accuracy": balanced(truth, said),
        "macro_f1": f1_score(
            truth, said, labels=np.unique(truth), average="macro", zero_division=0
        ),
        "loss": log_loss(truth[seen], shares, labels=labels) if seen.any() else math.nan,
    }
    if classes > 5:
        places = first_places(logits.numpy(), unseen)
        reference["top5_accuracy"] = top_k_accuracy_score(
            truth, -places, k=5, labels=list(range(classes + unseen))
        )
    return reference


def first_places(logits_NK: NDArray[np.float64], unseen: int) -> NDArray[np.int64]:
    """Each class's place in its row, of equal ones the first before; the unseen ones at the end.

    scikit-learn puts the last of equal scores first, as argmax does not.
    """
    places_NK = (-logits_NK).argsort(1, kind="stable").argsort(1)
    return np.pad(places_NK, ((0, 0), (0, unseen)), constant_values=logits_NK.shape[1])


def multi_hot_reference(logits_NK: Tensor, target_NC: Tensor) -> dict[str, float]:
    """By scikit-learn, over the rows that have labels; an unseen class is never said."""
    known_N = target_NC[:, 0] != MISSING
    truth_NC, logits_NK = target_NC[known_N].numpy(), logits_NK[known_N].double()
    if not len(truth_NC):
        return dict.fromkeys(OF_MULTI_HOT, math.nan)
    classes = logits_NK.shape[1]
    said_NC = np.zeros_like(truth_NC)
    said_NC[:, :classes] = (logits_NK > 0).numpy()
    shares_NK = logits_NK.sigmoid().numpy()
    pairs = list(zip(truth_NC.T, said_NC.T, strict=True))
    losses = [log_loss(truth_NC[:, k], shares_NK[:, k], labels=[0, 1]) for k in range(classes)]
    occur = [c for c in range(truth_NC.shape[1]) if truth_NC[:, c].any()]
    precisions = [
        float(average_precision_score(truth_NC[:, c], logits_NK[:, c])) if c < classes else 0.0
        for c in occur
    ]
    return {
        "accuracy": float((truth_NC == said_NC).all(1).mean())
        if truth_NC.shape[1] == 1
        else accuracy_score(truth_NC, said_NC),
        "balanced_accuracy": mean([balanced(truth, said) for truth, said in pairs]),
        "macro_f1": mean([float(f1_score(*pairs[c], zero_division=0)) for c in occur]),
        "micro_f1": f1_score(truth_NC.ravel(), said_NC.ravel(), zero_division=math.nan),
        "mean_average_precision": mean(precisions),
        "loss": mean(losses),
    }


def reference_of(logits_NK: Tensor, target: Tensor, unseen: int) -> dict[str, float]:
    if target.dim() == 2:
        return multi_hot_reference(logits_NK, target)
    return single_label_reference(logits_NK, target, unseen)


@pytest.mark.parametrize("batching", BATCHINGS, ids=["whole", "ones", "sevens", "59+1", "empty"])
@pytest.mark.parametrize(
    ("classes", "unseen", "absent"),
    [(2, 0, 0), (3, 2, 0), (5, 0, 2), (5, 3, 1), (6, 0, 0), (9, 2, 4)],
)
def test_single_label_counts_equal_scikit_learn_over_any_batches(
    classes: int, unseen: int, absent: int, batching: list[int]
) -> None:
    logits_NK, target_N = random_head(0, classes, unseen, False, absent)
    metrics = counted(logits_NK, target_N, unseen, batching).metrics()
    reference = single_label_reference(logits_NK, target_N, unseen)
    assert metrics == pytest.approx(reference, rel=1e-6, abs=1e-6)
    assert ("top5_accuracy" in metrics) is (classes > 5)


@pytest.mark.parametrize("batching", BATCHINGS, ids=["whole", "ones", "sevens", "59+1", "empty"])
@pytest.mark.parametrize(
    ("classes", "unseen", "absent"), [(1, 0, 0), (2, 0, 0), (3, 2, 1), (5, 0, 2), (6, 1, 0)]
)
def test_multi_hot_counts_equal_scikit_learn_over_any_batches(
    classes: int, unseen: int, absent: int, batching: list[int]
) -> None:
    logits_NK, target_NC = random_head(0, classes, unseen, True, absent)
    metrics = counted(logits_NK, target_NC, unseen, batching).metrics()
    assert metrics == pytest.approx(multi_hot_reference(logits_NK, target_NC), rel=1e-6, abs=1e-6)
    assert 0 < metrics["accuracy"] < 1


@st.composite
def any_heads(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Logits with many ties, any targets, missing ones among them, and the unseen classes."""
    multi_hot = draw(st.booleans())
    classes = draw(st.integers(1 if multi_hot else 2, 8))
    unseen, rows = draw(st.integers(0, 2)), draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits_NK = random.integers(-2, 3, (rows, classes)) / draw(st.sampled_from([1, 3]))
    shape = (rows, classes + unseen) if multi_hot else (rows,)
    target = random.integers(0, 2 if multi_hot else classes + unseen, shape)
    if draw(st.booleans()):
        target *= random.integers(0, 2, shape)  # classes that do not occur
    target[random.random(rows) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = MISSING
    return torch.from_numpy(logits_NK).float(), torch.from_numpy(target), unseen


@given(any_heads(), st.lists(st.integers(0, 5), max_size=3), st.integers(1, 3))
def test_whatever_the_labels_ties_batches_and_workers_counts_equal_scikit_learn(
    head: tuple[Tensor, Tensor, int], batching: list[int], size: int
) -> None:
    logits_NK, target, unseen = head
    parts = [counts_of(*head, [*batching, 4], rank, size) for rank in range(size)]
    metrics = summed(parts).heads["head"].metrics()
    reference = reference_of(logits_NK, target, unseen)
    assert metrics == pytest.approx(reference, rel=1e-6, abs=1e-6, nan_ok=True)


def summed(parts: Sequence[Counts]) -> Counts:
    """Worker 0's counts once they are summed over all."""
    first, *others = parts
    for other in others:
        for mine, theirs in zip(first.tensors(), other.tensors(), strict=True):
            mine += theirs
    return first


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_counts_of_parts_add_up_to_the_counts_of_the_whole(multi_hot: bool, size: int) -> None:
    logits_NK, target = random_head(4, 6, 1, multi_hot)
    whole = counts_of(logits_NK, target, 1)
    together = summed([counts_of(logits_NK, target, 1, [4], rank, size) for rank in range(size)])
    for mine, theirs in zip(together.tensors(), whole.tensors(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)
        assert mine.is_contiguous()  # or it could not be summed over processes
    assert together.metrics("val") == pytest.approx(whole.metrics("val"), rel=1e-6, abs=1e-6)
    assert together.confusion() == whole.confusion()


def test_a_row_with_an_unseen_class_counts_as_wrong_and_not_in_the_loss() -> None:
    logits_NK = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    metrics = counted(logits_NK, torch.tensor([0, 2, 1]), 1).metrics()
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["balanced_accuracy"] == pytest.approx(2 / 3)  # classes 0 and 1 found, 2 not
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics["loss"] == pytest.approx(math.log1p(math.exp(-9)), rel=1e-3)


def test_an_unseen_class_of_a_multi_hot_head_is_never_found() -> None:
    logits_NK = torch.tensor([[9.0], [9.0], [-9.0]])
    target_NC = torch.tensor([[1, 1], [1, 1], [0, 0]])
    metrics = counted(logits_NK, target_NC, 1).metrics()
    assert metrics["mean_average_precision"] == pytest.approx((1 + 0) / 2)
    assert metrics["macro_f1"] == pytest.approx((1 + 0) / 2)
    assert metrics["micro_f1"] == pytest.approx(2 * 2 / (4 + 2))


def test_a_class_that_is_said_but_never_true_is_no_part_of_macro_f1() -> None:
    logits_NK = torch.eye(3)[[0, 0, 1, 2]]
    metrics = counted(logits_NK, torch.tensor([0, 0, 1, 1]), 0).metrics()
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("multi_hot", [False, True])
def test_a_head_without_any_label_measures_nan(multi_hot: bool) -> None:
    logits_NK, target = random_head(0, 6, 0, multi_hot, missing=1.1)
    metrics = counted(logits_NK, target, 0, [30]).metrics()
    assert set(metrics) == (OF_MULTI_HOT if multi_hot else OF_SINGLE_LABEL | {"top5_accuracy"})
    assert all(math.isnan(value) for value in metrics.values())


def test_a_multi_hot_head_without_a_positive_has_a_loss_but_nothing_to_find() -> None:
    metrics = counted(torch.full((4, 2), -1.0), torch.zeros(4, 2, dtype=torch.int64), 0).metrics()
    nothing = {name for name, value in metrics.items() if math.isnan(value)}
    assert nothing == {"macro_f1", "micro_f1", "mean_average_precision"}
    assert metrics["accuracy"] == metrics["balanced_accuracy"] == 1


@pytest.mark.parametrize(("place", "right"), [(0, 1.0), (4, 1.0), (5, 0.0), (6, 0.0)])
def test_of_equal_logits_the_first_classes_are_the_top_five(place: int, right: float) -> None:
    """So that a network that says the same of every class gets no credit for it."""
    metrics = counted(torch.zeros(1, 7), torch.tensor([place]), 0).metrics()
    assert metrics["top5_accuracy"] == right
    assert metrics["accuracy"] == (place == 0)


@pytest.mark.parametrize("multi_hot", [False, True])
def test_logits_that_are_not_numbers_earn_nothing_and_lose_infinitely(multi_hot: bool) -> None:
    logits_NK = torch.full((ROWS, 6), math.nan)
    _, target = random_head(0, 6, 0, multi_hot)
    metrics = counts_of(logits_NK, target, 0).metrics("val")
    assert metrics["val/loss"] == metrics["val/loss/head"] == math.inf
    if multi_hot:
        equal = counted(torch.zeros(ROWS, 6), target, 0).metrics()["mean_average_precision"]
        assert metrics["val/mean_average_precision"] == pytest.approx(equal)
        assert metrics["val/macro_f1"] == 0
    else:
        assert metrics["val/top5_accuracy"] == 0


@pytest.mark.parametrize("multi_hot", [False, True])
def test_logits_of_half_precision_are_counted_as_the_numbers_they_are(multi_hot: bool) -> None:
    logits_NK, target = random_head(0, 7, 1, multi_hot)
    rounded_NK = logits_NK.bfloat16()
    expected = counted(rounded_NK.float(), target, 1).metrics()
    assert counted(rounded_NK, target, 1).metrics() == pytest.approx(expected, rel=1e-6)


@given(
    st.lists(
        st.tuples(st.sampled_from([-math.inf, -1.5, 0.0, 0.5, 1e30]), st.booleans()),
        min_size=1,
        max_size=20,
    ).filter(lambda rows: any(true for _, true in rows))
)
def test_average_precision_equals_scikit_learn_with_ties(rows: list[tuple[float, bool]]) -> None:
    scores_N, true_N = (torch.tensor(column) for column in zip(*rows, strict=True))
    finite_N = scores_N.clamp(min=-1e9)  # scikit-learn takes no infinite scores
    expected = average_precision_score(true_N.numpy(), finite_N.numpy())
    assert average_precision(scores_N, true_N) == pytest.approx(expected)


def test_average_precision_of_nothing_true_is_nan() -> None:
    assert math.isnan(average_precision(torch.zeros(3), torch.zeros(3, dtype=torch.bool)))


def test_confusion_of_a_single_label_head_equals_scikit_learn() -> None:
    logits_NK, target_N = random_head(0, 4, 2, False)
    confusion = counts_of(logits_NK, target_N, 2, [7]).confusion()["head"]
    assert confusion["true"] == ["0", "1", "2", "3", "new 0", "new 1"]
    assert confusion["predicted"] == ["0", "1", "2", "3"]
    known_N = target_N != MISSING
    said_N = logits_NK.argmax(1)
    expected = confusion_matrix(target_N[known_N], said_N[known_N], labels=range(6))
    assert confusion["counts"] == expected[:, :4].tolist()


def test_confusion_of_a_multi_hot_head_equals_scikit_learn() -> None:
    logits_NK, target_NC = random_head(0, 3, 1, True)
    confusion = counts_of(logits_NK, target_NC, 1, [7]).confusion()["head"]
    assert confusion["classes"] == ["0", "1", "2", "new 0"]
    known_N = target_NC[:, 0] != MISSING
    said_NC = torch.nn.functional.pad((logits_NK > 0).long(), (0, 1))
    expected = multilabel_confusion_matrix(target_NC[known_N].numpy(), said_NC[known_N].numpy())
    assert confusion["counts"] == expected.tolist()


@pytest.mark.parametrize("multi_hot", [False, True])
def test_confusion_is_json(multi_hot: bool) -> None:
    logits_NK, target = random_head(0, 3, 1, multi_hot)
    confusion = counts_of(logits_NK, target, 1).confusion()
    assert json.loads(json.dumps(confusion)) == confusion


@pytest.mark.parametrize(("classes", "unseen"), [(4, 0), (7, 0), (7, 2)])
def test_a_head_of_too_many_classes_measures_the_same_without_a_matrix(
    classes: int, unseen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_NK, target_N = random_head(0, classes, unseen, False, absent=1)
    expected = counts_of(logits_NK, target_N, unseen).metrics("val")
    monkeypatch.setattr(metrics_module, "LARGEST_MATRIX", classes + unseen - 1)
    parts = [counts_of(logits_NK, target_N, unseen, [7], rank, 2) for rank in range(2)]
    counts = summed(parts)
    assert counts.metrics("val") == pytest.approx(expected, rel=1e-6)
    assert counts.confusion() == {}


@pytest.mark.parametrize(
    ("classes", "unseen", "kept"), [(1000, 0, True), (1001, 0, False), (999, 2, False)]
)
def test_a_matrix_has_at_most_a_thousand_rows(classes: int, unseen: int, kept: bool) -> None:
    counts = counts_of(torch.zeros(1, classes), torch.tensor([0]), unseen)
    assert ("head" in counts.confusion()) is kept
    assert all(tensor.numel() <= 1_000_000 for tensor in counts.tensors())


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("largest", [1000, 3])
def test_counting_a_batch_never_waits_for_the_device(
    multi_hot: bool, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "LARGEST_MATRIX", largest)
    logits_NK, target = random_head(0, 6, 1, multi_hot)
    counts = empty_counts(logits_NK, target, 1)
    with no_waiting():
        counts.add({"head": logits_NK}, {"head": target})
    assert counts.metrics("val")["val/accuracy"] > 0


@pytest.mark.parametrize(
    "wait",
    [
        float,
        bool,
        *map(methodcaller, ("item", "tolist", "numpy", "nonzero", "bincount")),
        lambda ones: ones[ones > 0],
        lambda ones: ones.index_put_((ones > 0,), ones),
    ],
)
def test_what_would_wait_for_the_device_is_noticed(wait: Callable[[Tensor], object]) -> None:
    """Else the test above could not fail."""
    ones = torch.ones(1, dtype=torch.int64)
    with pytest.raises(AssertionError, match="waits for the device"), no_waiting():
        wait(ones)


LABELS = Labels.learn(
    {
        "color": ["blue", "green", "red"],
        "side": ["top", "bottom"],
        "shape": list("abcdef"),
        "tags": ["dim|noisy"],
    }
)


def test_the_means_are_over_the_heads_that_have_the_metric_and_labels() -> None:
    targets = LABELS.encode(
        {
            "color": ["red", "", "violet", "blue"],
            "side": [""] * 4,
            "shape": ["a", "b", "", "f"],
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
    batch |= {name: batch[name][:, 0] for name in ("color", "side", "shape")}
    counts.add(logits, batch)
    metrics = counts.metrics("test")
    expected = {
        name: reference_of(logits[name], batch[name], len(targets.unseen[name]))
        for name in LABELS.names
    }
    for name in METRICS:
        having = [head for head in LABELS.names if name in expected[head]]
        for head in having:
            value = metrics.pop(f"test/{name}/{head}")
            assert value == pytest.approx(expected[head][name], nan_ok=True)
        known = [expected[head][name] for head in having if head != "side"]
        assert metrics.pop(f"test/{name}") == pytest.approx(mean(known))
    assert metrics == {}
    assert set(counts.confusion()) == set(LABELS.names)


COLOR = Head("color", ("blue", "green", "red"))
SHAPE = Head("shape", tuple("abcdef"))
FIVE = Head("five", tuple("abcde"))
TAGS = Head("tags", ("dim", "noisy"), multi_hot=True)


@pytest.mark.parametrize(
    "heads", [(COLOR,), (FIVE, COLOR), (SHAPE,), (TAGS,), (COLOR, SHAPE, TAGS)], ids=len
)
def test_what_heads_report_is_known_before_anything_is_counted(heads: tuple[Head, ...]) -> None:
    labels = Labels(heads)
    targets = labels.encode({head.name: [""] for head in heads})
    metrics = Counts(labels, targets, CPU).metrics("val")
    assert list(metrics) == list(reported_metrics(labels))
    assert set(metrics) <= set(metric_names(labels.names))
    for metric in metrics:
        check_metric_of(metric, labels)


@pytest.mark.parametrize(
    ("heads", "metric", "why", "way_out"),
    [
        (
            (COLOR, FIVE, SHAPE),
            "val/top5_accuracy/five",
            "single-label heads of more than 5 classes",
            "or 'val/top5_accuracy/shape'",
        ),
        (
            (COLOR, FIVE),
            "val/top5_accuracy",
            "single-label heads of more than 5 classes",
            "did you mean 'val/accuracy'",
        ),
        ((TAGS,), "val/top5_accuracy", "single-label heads", "'val/accuracy'"),
        ((COLOR, TAGS), "val/micro_f1/color", "multi-hot heads", "'val/macro_f1/color'"),
        (
            (COLOR,),
            "val/mean_average_precision",
            "multi-hot heads",
            "the metrics are val/accuracy, val/accuracy/color, val/balanced_accuracy",
        ),
    ],
)
def test_a_metric_that_the_heads_do_not_have_is_refused(
    heads: tuple[Head, ...], metric: str, why: str, way_out: str
) -> None:
    labels = Labels(heads)
    check_metric(metric, labels.names)  # the names alone do not tell
    with pytest.raises(UserError) as refused:
        check_metric_of(metric, labels)
    line = str(refused.value)
    assert line.startswith(
        f"--metric must be one that the heads report, but {metric!r} is only of {why}"
    )
    assert way_out in line
    assert "\n" not in line


def test_a_metric_of_no_head_at_all_is_refused_too() -> None:
    with pytest.raises(UserError, match="did you mean 'val/accuracy/color'"):
        check_metric_of("val/accuracy/colour", Labels((COLOR,)))


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
    counts = counted(logits_NK, torch.from_numpy(targets.values_NT[:, 0]), 1)
    majority = majority_accuracy(labels, labels.encode(train), targets)["color"]
    assert majority == pytest.approx(counts.metrics()["accuracy"])
