"""Intervals of means by resampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import DataError

RESAMPLES = 10_000
LEVEL = 0.95

Stratum = Sequence[float] | NDArray[np.floating]


def stratified_means(
    strata: Sequence[Stratum], *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    r"""Bootstrap distribution of the mean over strata of their means, (resamples,).

    .. math:: \hat m = \frac1S \sum_{s=1}^{S} \frac1{n_s} \sum_{i=1}^{n_s} x_{s,i}^*, \qquad
              x_{s,\cdot}^* \text{ drawn with replacement from } x_{s,\cdot}

    Each stratum is resampled by itself and counts the same. A stratum is the episodes of one
    training run on one task: the interval says how the mean would vary with other episodes of
    *these* runs. How it varies from run to run is not in it; for that, look at the runs.

    Args:
        strata: Numbers of each stratum.
        resamples: How many times.
        seed: Of the draws.

    Raises:
        DataError: There is no stratum, or one is empty.
    """
    if not strata or any(len(stratum) == 0 for stratum in strata):
        raise DataError("a bootstrap needs at least one number in every stratum: one is empty.")
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for stratum in strata:
        values = np.asarray(stratum, dtype=np.float64)
        total += values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    return total / len(strata)


def interval(samples: NDArray[np.floating], *, level: float = LEVEL) -> tuple[float, float]:
    """Central part of a bootstrap distribution: its percentiles."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return float(low), float(high)
