"""Figures of a session as SVG text. One colour per arm, everywhere the same."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qsteer_ros.types import Array

COLOURS = ("#7a818c", "#c98a1b", "#1c6fb5", "#26936a", "#9a4fb0", "#b8423a", "#4b4f9e", "#5d7a1f")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a8",
    "axes.labelcolor": "#3a3f47",
    "xtick.color": "#5a6069",
    "ytick.color": "#5a6069",
    "svg.fonttype": "none",
    "svg.hashsalt": "qsteer",
}


def colours(arms: Sequence[str]) -> dict[str, str]:
    """Arm -> colour; the first, usually ``off``, is grey."""
    return {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(arms)}


def success_bars(
    rates: Mapping[str, tuple[float, float, float]], colour: Mapping[str, str]
) -> str:
    """Success per arm with its interval.

    Args:
        rates: Arm -> (rate, lower end, upper end), each 0 to 1.
        colour: Arm -> colour.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.55 * len(rates) + 0.8), layout="constrained")
        axes = figure.subplots()
        for row, (arm, (rate, low, high)) in enumerate(rates.items()):
            axes.barh(row, 100 * rate, height=0.56, color=colour[arm], alpha=0.85)
            axes.plot([100 * low, 100 * high], [row, row], color="#20242c", lw=1.4)
            axes.plot([100 * low, 100 * high], [row, row], "|", color="#20242c", ms=9)
        axes.set_yticks(range(len(rates)), list(rates))
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("episodes that reach the goal, % (line: 95 % Wilson interval)")
        axes.grid(axis="x", color="#e4e6e9", lw=0.8)
        axes.set_axisbelow(True)
        return svg_text(figure)


def traces(
    series: Mapping[str, Mapping[str, tuple[Array, Array]]], colour: Mapping[str, str]
) -> str:
    """Several numbers along one episode per arm, one panel per number.

    Args:
        series: Label of the panel -> arm -> (time in s, values); NaN is not drawn.
        colour: Arm -> colour.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.55 * len(series) + 0.4), layout="constrained")
        panels = np.atleast_1d(figure.subplots(len(series), 1, sharex=True))
        for axes, (label, lines) in zip(panels, series.items(), strict=True):
            _trace(axes, label, lines, colour)
        drawn = {arm for lines in series.values() for arm in lines}
        handles = [
            Line2D([], [], color=value, lw=1.5, label=arm)
            for arm, value in colour.items()
            if arm in drawn
        ]
        figure.legend(
            handles=handles, frameon=False, fontsize=9, ncols=8, loc="outside upper left"
        )
        panels[-1].set_xlabel("time in the episode, s")
        return svg_text(figure)


def latency_histogram(
    latency_ms: Mapping[str, Array], colour: Mapping[str, str], *, deadline_ms: float | None = None
) -> str:
    """Distribution of the time from observation stamp to published chunk, per arm."""
    known = {arm: values[np.isfinite(values)] for arm, values in latency_ms.items()}
    everything = np.concatenate(list(known.values()) or [np.zeros(0)])
    top = float(np.quantile(everything, 0.995)) * 1.1 if everything.size else 1.0
    bins = np.linspace(0.0, max(top, 1e-3), 50)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.6), layout="constrained")
        axes = figure.subplots()
        for arm, values in known.items():
            if values.size:
                label = f"{arm}: median {np.median(values):.0f} ms"
                shown = np.clip(values, 0.0, bins[-1])
                axes.hist(
                    shown, list(bins), histtype="step", color=colour[arm], lw=1.8, label=label
                )
        if deadline_ms is not None and deadline_ms <= bins[-1]:
            axes.axvline(deadline_ms, color="#b8423a", lw=1, ls="--")
        axes.set_xlabel("from observation stamp to published chunk, ms")
        axes.set_ylabel("chunks")
        if everything.size:
            axes.legend(frameon=False, fontsize=9)
        return svg_text(figure)


def _trace(
    axes: Axes,
    label: str,
    lines: Mapping[str, tuple[Array, Array]],
    colour: Mapping[str, str],
) -> None:
    for arm, (time_s, values) in lines.items():
        axes.plot(time_s, values, color=colour[arm], lw=1.5, marker=".", ms=4, label=arm)
    axes.set_ylabel(label)
    axes.grid(axis="y", color="#e4e6e9", lw=0.8)


def svg_text(figure: Figure) -> str:
    """A figure as SVG text without a preamble; equal figures give equal text."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
