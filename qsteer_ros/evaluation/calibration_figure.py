"""The curves of a calibration as one picture."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qsteer_ros.critics.calibration import ModeCalibration
from qsteer_ros.evaluation.figures import COLOURS, STYLE, svg_text
from qsteer_ros.types import Array

FIGURE = "calibration.svg"


def calibration_figure(modes: Mapping[str, ModeCalibration]) -> str:
    """Weight -> ratio, and ratio -> gain in value and shares, as SVG text.

    Shares are those of chunks that improved and of components that steering clipped.

    Modes share the axis of the ratio, which has no unit; a ring marks the weight that was found.

    Args:
        modes: Mode -> its calibration.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        weight, gain, share = figure.subplots(1, 3)
        for number, (mode, entry) in enumerate(modes.items(), start=1):
            _mode(weight, gain, share, mode, entry, COLOURS[number % len(COLOURS)])
        for axes, x, y in (
            (weight, "weight", "guidance / velocity"),
            (gain, "guidance / velocity", "gain in Q, by this critic"),
            (share, "guidance / velocity", "improved (line), clipped (dots), %"),
        ):
            axes.set_xscale("log")
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.grid(color="#e4e6e9", lw=0.8)
            axes.set_axisbelow(True)
        weight.set_yscale("log")
        gain.axhline(0.0, color="#9aa0a8", lw=0.8)
        share.axhline(50.0, color="#9aa0a8", lw=0.8)
        share.set_ylim(-3, 103)
        figure.legend(
            *weight.get_legend_handles_labels(),
            frameon=False,
            fontsize=9,
            ncols=8,
            loc="outside upper left",
        )
        return svg_text(figure)


def _mode(
    weight: Axes, gain: Axes, share: Axes, mode: str, entry: ModeCalibration, colour: str
) -> None:
    points = {name: _column(entry, name) for name in vars(entry.curve[0])}
    ratio = points["ratio"]
    weight.plot(points["weight"], ratio, color=colour, lw=1.5, marker=".", ms=4, label=mode)
    gain.plot(ratio, points["delta_q"], color=colour, lw=1.5, marker=".", ms=4)
    spread = 1.96 * points["delta_q_error"]
    low, high = points["delta_q"] - spread, points["delta_q"] + spread
    gain.fill_between(ratio, low, high, color=colour, alpha=0.2, lw=0)
    share.plot(ratio, 100 * points["improved"], color=colour, lw=1.5, marker=".", ms=4)
    share.plot(ratio, 100 * points["clipped"], color=colour, lw=1.2, ls=":")
    found = entry.found
    for axes, x, y in (
        (weight, found.weight, found.ratio),
        (gain, found.ratio, found.delta_q),
        (share, found.ratio, 100 * found.improved),
    ):
        axes.plot([x], [y], "o", mfc="none", mec=colour, ms=9)


def _column(entry: ModeCalibration, name: str) -> Array:
    return np.array([getattr(point, name) for point in entry.curve])
