"""A benchmark as one picture: success of every method on every task, with intervals."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qsteer_ros.evaluation.bench_settings import METHODS
from qsteer_ros.evaluation.bench_table import Rate, Results
from qsteer_ros.evaluation.figures import COLOURS, STYLE, svg_text

_COLOURS = dict(zip(METHODS, (*COLOURS, "#2f8f9d"), strict=True))


def success_figure(results: Results) -> str:
    """One panel per task and one for the average, as SVG text.

    Bars are means over training runs, lines their intervals, dots the runs.
    """
    methods = results.methods
    panels: list[tuple[str, dict[str, Rate]]] = []
    for task in results.tasks:
        rates = ((method, results.rate(task, method)) for method in methods)
        panels.append((task, {method: rate for method, rate in rates if rate is not None}))
    panels.append(("average", {method: results.average(method) for method in methods}))
    with mpl.rc_context(STYLE):
        height = 0.34 * len(methods) + 1.0
        figure = Figure(figsize=(2.3 * len(panels) + 1.2, height), layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, shown) in zip(row, panels, strict=True):
            _panel(axes, title, shown, methods)
        row[0].set_yticks(range(len(methods)), methods)
        row[0].invert_yaxis()
        figure.supxlabel(
            "success, % (line: 95 % bootstrap interval, dots: training runs)", fontsize=10
        )
        return svg_text(figure)


def _panel(axes: Axes, title: str, rates: dict[str, Rate], methods: list[str]) -> None:
    for place, method in enumerate(methods):
        rate = rates.get(method)
        if rate is None:
            continue
        colour = _COLOURS[method]
        axes.barh(place, 100 * rate.mean, height=0.62, color=colour, alpha=0.8)
        ends = [100 * rate.low, 100 * rate.high]
        axes.plot(ends, [place, place], color="#20242c", lw=1.3)
        below = [place + 0.19] * len(rate.runs)
        axes.plot([100 * run for run in rate.runs], below, "o", ms=2.4, c="#20242c", alpha=0.7)
    axes.set_title(title, fontsize=10)
    axes.set_xlim(0, 102)
    axes.grid(axis="x", color="#e4e6e9", lw=0.8)
    axes.set_axisbelow(True)
