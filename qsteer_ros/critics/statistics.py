"""Mean and spread of a stream of values, for critics whose values must be normalised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qsteer_ros.errors import DataError

_NAMES = ("count", "mean", "squares")


@dataclass
class RunningStatistics:
    r"""Mean and standard deviation of everything seen so far, in one pass and float64.

    With n values of mean m and sum of squared deviations S, and a batch with n', m', S',

    .. math:: \delta = m' - m, \quad m \leftarrow m + \delta \frac{n'}{n + n'}, \quad
              S \leftarrow S + S' + \delta^2 \frac{n n'}{n + n'}, \quad n \leftarrow n + n'.

    Nothing is forgotten: where a critic keeps changing, collect anew from its final weights.

    Attributes:
        count: n.
        mean: m, in the unit of the values; 0 before the first.
        squares: S, in that unit squared.

    Raises:
        DataError: The three numbers cannot be statistics.

    Source:
        Chan, Golub and LeVeque, 1979; Welford, 1962, for batches of one.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that no stream of values has."""
        whole = isinstance(self.count, int) and self.count >= 0
        finite = math.isfinite(self.mean) and math.isfinite(self.squares)
        empty = self.mean == 0.0 and self.squares == 0.0
        if not (whole and finite and self.squares >= 0.0 and (self.count > 0 or empty)):
            raise DataError(
                "statistics need a count of at least 0, a finite mean and squares of at least 0 "
                f"(both 0 without values): got count {self.count}, mean {self.mean}, squares "
                f"{self.squares}."
            )

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Take values in, of any shape; none is none. Waits for the device.

        Raises:
            DataError: A value is not finite. Nothing was taken in.
        """
        if values.numel() == 0:
            return
        exact = values.detach().double()
        mean = exact.mean()
        squares = (exact - mean).square().sum()
        found = float(mean), float(squares)
        if not all(map(math.isfinite, found)):
            broken = int((~torch.isfinite(exact)).sum())
            raise DataError(f"values must be finite: {broken} of {values.numel()} are not.")
        self.merge(RunningStatistics(values.numel(), *found))

    def merge(self, other: RunningStatistics) -> None:
        """Take in everything that ``other`` has seen, which stays as it is."""
        total = self.count + other.count
        if total == 0:
            return
        gap, share = other.mean - self.mean, other.count / total
        self.squares += other.squares + gap * gap * self.count * share
        self.mean += gap * share
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation of the population, divided by n; the unit of the values.

        Raises:
            DataError: Nothing has been seen.
        """
        if self.count == 0:
            raise DataError("a standard deviation needs values: none has been seen.")
        return math.sqrt(self.squares / self.count)

    def to_json(self) -> dict[str, int | float]:
        """Plain values for a checkpoint's configuration."""
        return {name: getattr(self, name) for name in _NAMES}

    @classmethod
    def from_json(cls, plain: Mapping[str, int | float]) -> RunningStatistics:
        """Inverse of `to_json`, exact.

        Raises:
            DataError: A name is missing or unknown, or the numbers cannot be statistics.
        """
        if set(plain) != set(_NAMES):
            raise DataError(
                f"statistics must have the names {', '.join(_NAMES)}: got "
                f"{', '.join(sorted(plain)) or 'none'}."
            )
        if any(isinstance(n, bool) or not isinstance(n, int | float) for n in plain.values()):
            raise DataError(f"statistics must be numbers: got {dict(plain)}.")
        if not isinstance(plain["count"], int):
            raise DataError(f"statistics need a whole count: got {plain['count']}.")
        return cls(plain["count"], float(plain["mean"]), float(plain["squares"]))
