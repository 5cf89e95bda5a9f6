"""A Gaussian process for a few hundred points, in NumPy: fitted, asked, and its improvement.

Shapes: N observations, M questions, C columns of an encoded point, P parameters.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NOISE = 0.1  # variance of an observation before any is seen, of the values' own
_erf = np.vectorize(math.erf, otypes=[np.float64])


class GaussianProcess:
    """Matern 5/2 with a length for each parameter, over standardised values.

    parameter_of_C: to which parameter each column belongs; columns of one have one length. Lengths
    and noise are the most probable ones under broad log-normal priors, which keep a fit to ten
    points sane; they are kept from fit to fit, so that a few steps are enough.
    """

    def __init__(self, parameter_of_C: NDArray[np.int64]) -> None:
        self._of_C = parameter_of_C
        self._count = int(parameter_of_C.max()) + 1
        self._prior = np.full(self._count + 1, math.log(0.5 * math.sqrt(self._count)))
        self._prior[-1] = math.log(_NOISE)
        self._log = self._prior.copy()  # lengths of the P parameters, then the noise

    @property
    def lengths(self) -> Floats:
        """Distance, in the unit cube, over which values of a parameter are alike."""
        return np.asarray(np.exp(self._log[:-1]))

    @property
    def noise(self) -> float:
        """Variance of an observation around the value."""
        return math.exp(float(self._log[-1]))

    def fit(self, points_NC: Floats, values_N: Floats, steps: int) -> None:
        """Move lengths and noise uphill by so many steps of Rprop (doi:10.1109/ICNN.1993.298623).

        It needs the gradient's signs only, so no scale has to be known. values_N: of mean 0.
        """
        size = np.full(self._count + 1, 0.15)
        before = np.zeros(self._count + 1)
        for _ in range(steps):
            gradient = self._gradient(points_NC, values_N)
            size *= np.select([gradient * before > 0, gradient * before < 0], [1.2, 0.5], 1.0)
            self._log += np.sign(gradient) * np.clip(size, 1e-3, 0.5)
            self._log[:-1] = np.clip(self._log[:-1], math.log(0.03), math.log(30))
            self._log[-1] = np.clip(self._log[-1], math.log(1e-3), math.log(2))
            before = gradient

    def observe(self, points_NC: Floats, values_N: Floats) -> None:
        """Take these observations in place of all before. values_N: of mean 0, variance about 1."""
        self._points = points_NC / self._scale()
        covariance = _matern(_distance(self._points, self._points))[0]
        covariance[np.diag_indices(len(values_N))] += self.noise
        self._inverse = np.linalg.inv(covariance)
        self._weights_N = self._inverse @ values_N

    def predict(self, points_MC: Floats, waiting_WC: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the value, without noise, at each point.

        waiting_WC: points that are being observed. To have seen there what is expected would leave
        every mean as it is and narrow the deviations; these are the narrower ones.
        """
        asked, waiting = points_MC / self._scale(), waiting_WC / self._scale()
        shared_MN = _matern(_distance(asked, self._points))[0]
        known_MN = shared_MN @ self._inverse
        variance_M = 1.0 - (known_MN * shared_MN).sum(1)
        if len(waiting):
            shared_WN = _matern(_distance(waiting, self._points))[0]
            left_MW = _matern(_distance(asked, waiting))[0] - known_MN @ shared_WN.T
            left_WW = _matern(_distance(waiting, waiting))[0]
            left_WW -= shared_WN @ self._inverse @ shared_WN.T
            left_WW[np.diag_indices(len(waiting))] += self.noise
            variance_M -= (np.linalg.solve(left_WW, left_MW.T).T * left_MW).sum(1)
        return shared_MN @ self._weights_N, np.sqrt(np.maximum(variance_M, 1e-9))

    def _scale(self) -> Floats:
        return self.lengths[self._of_C]

    def _gradient(self, points_NC: Floats, values_N: Floats) -> Floats:
        scaled = points_NC / self._scale()
        covariance, steepness = _matern(_distance(scaled, scaled))
        covariance[np.diag_indices(len(values_N))] += self.noise
        inverse = np.linalg.inv(covariance)
        weights_N = inverse @ values_N
        pull = np.outer(weights_N, weights_N) - inverse
        slope = pull * steepness
        # The sum over pairs of slope * (difference in a column)^2, without the pairs.
        by_column = (slope.sum(1)[:, None] * scaled**2).sum(0) - ((slope @ scaled) * scaled).sum(0)
        gradient = self._prior - self._log
        gradient[:-1] += np.bincount(self._of_C, by_column, self._count)
        gradient[-1] += 0.5 * self.noise * np.trace(pull)
        return np.asarray(gradient)


def log_expected_improvement(mean_M: Floats, deviation_M: Floats, best: float) -> Floats:
    """Logarithm of the expected rise above `best`; far below it, a bound that keeps the order."""
    z_M = (mean_M - best) / deviation_M
    density_M = np.exp(-0.5 * z_M**2) / math.sqrt(2 * math.pi)
    share_M = 0.5 * (1 + _erf(z_M / math.sqrt(2)))
    rise_M = density_M + z_M * share_M
    tail_M = -0.5 * z_M**2 - 0.5 * math.log(2 * math.pi) - 2 * np.log(np.maximum(np.abs(z_M), 1.0))
    near_M = np.log(np.maximum(rise_M, 1e-300))
    return np.asarray(np.log(deviation_M) + np.where(z_M > -5, near_M, tail_M))


def _distance(a_NC: Floats, b_MC: Floats) -> Floats:
    squares = (a_NC**2).sum(1)[:, None] + (b_MC**2).sum(1) - 2 * a_NC @ b_MC.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def _matern(distance: Floats) -> tuple[Floats, Floats]:
    """The covariance at a distance, and minus its slope over the distance, divided by that."""
    root5 = math.sqrt(5) * distance
    decay = np.exp(-root5)
    steepness = (5 / 3) * (1 + root5) * decay
    return np.asarray(steepness * 0.6 + (root5**2 / 3) * decay), np.asarray(steepness)
