"""The weights of classes against scikit-learn and the paper's formula. K classes of a head."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from raymlc.labels import MISSING, Head, Targets
from raymlc.model.class_weights import class_weights
from raymlc.trial import TrialConfig

CPU = torch.device("cpu")


def weights_of(
    changes: dict[str, Any], values_NC: NDArray[np.int64], classes: int, multi_hot: bool = False
) -> Tensor:
    """The weights of a head that is not the table's first."""
    head = Head("head", tuple(map(str, range(classes))), multi_hot)
    other_N1 = np.full((len(values_NC), 1), 5)
    columns = {"other": slice(0, 1), "head": slice(1, 1 + values_NC.shape[1])}
    kinds = {"other": False, "head": multi_hot}
    unseen: dict[str, tuple[str, ...]] = {"other": (), "head": ()}
    targets = Targets(np.concatenate([other_N1, values_NC], 1), columns, kinds, unseen)
    weights = class_weights(TrialConfig(**changes), head, targets, CPU)
    assert weights is not None
    assert weights.dtype == torch.float32
    return weights


def rows_of(counts_K: Sequence[int], missing: int = 3) -> NDArray[np.int64]:
    """A single-label column with so many rows of each class."""
    known_N = np.repeat(np.arange(len(counts_K)), counts_K)
    return np.concatenate([known_N, np.full(missing, MISSING)])[:, None]


counts = st.lists(st.integers(1, 50), min_size=2, max_size=8)


@given(counts)
def test_inverse_is_what_scikit_learn_calls_balanced(counts_K: list[int]) -> None:
    column_N1 = rows_of(counts_K)
    known_N = column_N1[column_N1 != MISSING]
    expected_K = compute_class_weight("balanced", classes=np.arange(len(counts_K)), y=known_N)
    weights_K = weights_of({"class_weighting": "inverse"}, column_N1, len(counts_K))
    np.testing.assert_allclose(weights_K, expected_K, rtol=1e-6)


@given(counts, st.floats(0.001, 0.9999))
def test_effective_is_the_papers_ratio_with_a_mean_of_1_over_the_labels(
    counts_K: list[int], beta: float
) -> None:
    """arXiv:1901.05555: (1 - beta) / (1 - beta^n)."""
    changes = {"class_weighting": "effective", "class_weight_beta": beta}
    weights_K = weights_of(changes, rows_of(counts_K), len(counts_K))
    papers_K = [(1 - beta) / (1 - beta**n) for n in counts_K]
    mean = sum(n * w for n, w in zip(counts_K, papers_K, strict=True)) / sum(counts_K)
    np.testing.assert_allclose(weights_K, np.array(papers_K) / mean, rtol=1e-5)
    assert float((weights_K * torch.tensor(counts_K)).sum()) == pytest.approx(sum(counts_K))


def test_effective_lies_between_equal_weights_and_inverse_ones() -> None:
    column_N1 = rows_of([1, 20, 300])
    inverse_K = weights_of({"class_weighting": "inverse"}, column_N1, 3)
    for beta, expected_K in ((1e-9, torch.ones(3)), (1 - 1e-15, inverse_K)):
        changes = {"class_weighting": "effective", "class_weight_beta": beta}
        torch.testing.assert_close(weights_of(changes, column_N1, 3), expected_K)


@pytest.mark.parametrize("weighting", ["inverse", "effective"])
def test_a_multi_hot_class_is_a_problem_of_two_classes(weighting: str) -> None:
    random = np.random.default_rng(0)
    values_NK = (random.random((80, 3)) < [0.5, 0.1, 0.9]).astype(np.int64)
    values_NK[::7] = MISSING
    weights_2K = weights_of({"class_weighting": weighting}, values_NK, 3, multi_hot=True)
    for k in range(3):
        alone_K = weights_of({"class_weighting": weighting}, values_NK[:, k : k + 1], 2)
        torch.testing.assert_close(weights_2K[:, k], alone_K)


@pytest.mark.parametrize("weighting", ["inverse", "effective"])
def test_classes_that_training_lacks_weigh_nothing_and_leave_the_others_as_they_are(
    weighting: str,
) -> None:
    """As a class list may name more classes than the training rows have."""
    changes = {"class_weighting": weighting}
    with_gaps_K = weights_of(changes, rows_of([4, 0, 6, 0]), 4)
    assert with_gaps_K[[1, 3]].tolist() == [0, 0]
    torch.testing.assert_close(with_gaps_K[[0, 2]], weights_of(changes, rows_of([4, 6]), 2))
    always_NK = np.array([[1, 0], [1, 0], [MISSING, MISSING]])
    weights_2K = weights_of(changes, always_NK, 2, multi_hot=True)
    assert weights_2K.tolist() == [[0, 1], [1, 0]]
    nothing_NK = np.full((3, 2), MISSING)
    assert not weights_of(changes, nothing_NK, 2, multi_hot=True).any()
    assert not weights_of(changes, nothing_NK[:, :1], 2).any()


def test_labels_beyond_the_heads_classes_are_not_counted() -> None:
    column_N1 = rows_of([4, 6, 5])
    changes = {"class_weighting": "inverse"}
    torch.testing.assert_close(
        weights_of(changes, column_N1, 2), weights_of(changes, rows_of([4, 6]), 2)
    )
    values_NC = np.array([[0, 1, 1], [1, 0, 1], [1, 0, 0]])
    torch.testing.assert_close(
        weights_of(changes, values_NC, 2, multi_hot=True),
        weights_of(changes, values_NC[:, :2], 2, multi_hot=True),
    )


def test_without_weighting_there_are_no_weights() -> None:
    targets = Targets(rows_of([1, 2]), {"head": slice(0, 1)}, {"head": False}, {"head": ()})
    assert class_weights(TrialConfig(), Head("head", ("a", "b")), targets, CPU) is None
