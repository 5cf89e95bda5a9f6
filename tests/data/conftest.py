"""What several tests of the data room compare with."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

Samples = NDArray[np.float64]


def distance(first_N: Samples, second_N: Samples) -> float:
    """Kolmogorov and Smirnov's: the largest gap between the two cumulative distributions."""
    places = np.concatenate([first_N, second_N])
    first_cdf = np.searchsorted(np.sort(first_N), places, side="right") / len(first_N)
    second_cdf = np.searchsorted(np.sort(second_N), places, side="right") / len(second_N)
    return float(np.abs(first_cdf - second_cdf).max())


@pytest.fixture
def assert_one_distribution() -> Callable[[Samples, Samples], None]:
    """Checks that two samples differ no more than one in 1,000 pairs of one distribution would."""

    def check(first_N: Samples, second_N: Samples) -> None:
        n, m = len(first_N), len(second_N)
        assert distance(first_N, second_N) < 1.95 * math.sqrt((n + m) / (n * m))

    return check
