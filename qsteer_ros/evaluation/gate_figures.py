"""The plots of an examination as SVG text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qsteer_ros.critics.gate_checks_gradient import dimension_energy, direction_share
from qsteer_ros.critics.gate_checks_inputs import Effects
from qsteer_ros.critics.gate_checks_values import calibration_bins
from qsteer_ros.critics.gate_settings import GateSettings
from qsteer_ros.evaluation.figures import STYLE, svg_text
from qsteer_ros.evaluation.gate_held_out import Bools, HeldOut
from qsteer_ros.evaluation.gate_measure import Measured
from qsteer_ros.types import Array

GOOD, BAD, LIMIT, GREY = "#1c6fb5", "#c98a1b", "#b8423a", "#7a818c"
WIDTH = 9.6
MARGIN = 0.995
"""Quantile of a histogram beyond which bars are put into the last one."""


def calibration_curve(measured: Measured, held_out: HeldOut, settings: GateSettings) -> str:
    """Observed return against value, in bins of equal count."""
    seen = held_out.tail <= settings.tail_max
    bins = calibration_bins(measured.value[seen], held_out.observed[seen])
    value, observed, error = (np.array([b[i] for b in bins]) for i in range(3))
    with _figure(1, 3.4) as (figure, (axes,)):
        ends = [min(value.min(), observed.min()), max(value.max(), observed.max())]
        axes.plot(ends, ends, color=LIMIT, lw=1, ls="--", label="equal")
        axes.plot(
            measured.value[seen], held_out.observed[seen], ".", color="#c9ced4", ms=3, zorder=0
        )
        axes.errorbar(value, observed, yerr=error, color=GOOD, marker="o", ms=4, lw=1.4, capsize=2)
        axes.set_xlabel("value of the chunk in the data, Q")
        axes.set_ylabel("observed return")
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        return svg_text(figure)


def outcome_curves(measured: Measured, held_out: HeldOut) -> str:
    """Value of the states along an episode, successful against failing: median and quartiles."""
    with _figure(1, 2.8) as (figure, (axes,)):
        for wanted, colour, name in ((True, GOOD, "successful"), (False, BAD, "failing")):
            mine = held_out.success == wanted
            steps = np.unique(held_out.step[mine])
            if not len(steps):
                continue
            lines = np.array(
                [
                    np.percentile(
                        measured.state_value[mine & (held_out.step == step)], [25, 50, 75]
                    )
                    for step in steps
                ]
            )
            axes.plot(steps, lines[:, 1], color=colour, lw=1.6, label=f"{name} episodes")
            axes.fill_between(steps, lines[:, 0], lines[:, 2], color=colour, alpha=0.18, lw=0)
        axes.set_xlabel("step of the episode")
        axes.set_ylabel("value of the state")
        axes.legend(frameon=False, fontsize=9)
        return svg_text(figure)


def preference_histograms(measured: Measured, free: Bools) -> str:
    """What the chunk in the data is worth more than others in the same state.

    Args:
        measured: What the critic said.
        free: Rows whose chunk it did not choose, (N,).
    """
    with _figure(2, 2.6) as (figure, (random, shuffled)):
        for axes, gain, other in (
            (random, measured.random_gain, "a random chunk"),
            (shuffled, measured.shuffled_gain, "a chunk of another episode"),
        ):
            _histogram(axes, {"": gain[free].ravel()}, (GOOD,))
            axes.axvline(0.0, color=LIMIT, lw=1, ls="--")
            axes.set_xlabel(f"Q(data) - Q({other})")
        random.set_ylabel("share")
        return svg_text(figure)


def input_effects(effects: Effects, settings: GateSettings) -> str:
    """Effect of permuting each group of inputs."""
    kinds = ("feature", "chunk")
    parts = {k: [p for p in effects.parts if p.group and p.kind == k] for k in kinds}
    height = 0.24 * max(map(len, parts.values())) + 1.0
    with _figure(2, height) as (figure, panels):
        for axes, kind in zip(panels, kinds, strict=True):
            share = [effects.relative(part) for part in parts[kind]]
            colour = [GOOD if part.varies else "#c9ced4" for part in parts[kind]]
            axes.barh(range(len(share)), share, color=colour, height=0.66)
            axes.axvline(settings.group_effect_min, color=LIMIT, lw=1, ls="--")
            axes.set_yticks(range(len(share)), [part.name for part in parts[kind]], fontsize=8)
            axes.invert_yaxis()
            whole = "all features" if kind == "feature" else "the whole chunk"
            axes.set_xlabel(f"effect, of that of {whole}")
        return svg_text(figure)


def direction_plots(
    measured: Measured, horizon: int, action_names: tuple[str, ...], settings: GateSettings
) -> str:
    """Shares of the principal directions, the first of them, and energy per dimension."""
    every = np.concatenate([measured.gradient, measured.policy_gradient])
    length = np.linalg.norm(every, axis=1)
    moved = every[length > 0.0]
    with _figure(3, 2.7) as (figure, (shares, first, energy)):
        if len(moved) == 0:
            return svg_text(figure)
        unit = moved / length[length > 0.0, None]
        for rows, colour, name in ((moved, GOOD, "gradients"), (unit, BAD, "directions")):
            values = np.linalg.eigvalsh(rows.T @ rows)[::-1]
            part = (values / values.sum())[:10]
            shares.plot(range(1, len(part) + 1), part, color=colour, marker=".", label=name)
        shares.axhline(settings.direction_share_max, color=LIMIT, lw=1, ls="--")
        shares.set_ylim(0, 1)
        shares.set_xlabel("direction")
        shares.set_ylabel("share")
        shares.legend(frameon=False, fontsize=8)
        line = direction_share(moved)[1].reshape(horizon, -1)
        most = float(np.abs(line).max())
        first.imshow(line.T, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        first.grid(visible=False)
        first.set_yticks(range(len(action_names)), action_names, fontsize=8)
        first.set_xlabel("first direction: position in the chunk")
        energy.bar(
            range(len(action_names)), dimension_energy(moved, horizon), color=GOOD, width=0.6
        )
        energy.set_xticks(range(len(action_names)), action_names, fontsize=8)
        energy.set_ylabel("energy")
        return svg_text(figure)


def gradient_plots(measured: Measured, held_out: HeldOut) -> str:
    """Autograd against finite differences, and the length of gradients per outcome."""
    success = held_out.success[measured.rows]
    norm = np.linalg.norm(measured.gradient, axis=1)
    with _figure(2, 2.8) as (figure, (scatter, lengths)):
        d, g = measured.differences.ravel(), measured.exact.ravel()
        scatter.plot(d, g, ".", color=GOOD, ms=3)
        finite = d[np.isfinite(d)]
        if finite.size:
            ends = [finite.min(), finite.max()]
            scatter.plot(ends, ends, color=LIMIT, lw=1, ls="--")
        scatter.set_xlabel("by finite differences")
        scatter.set_ylabel("by autograd")
        _histogram(
            lengths,
            {"successful episodes": norm[success], "failing episodes": norm[~success]},
            (GOOD, BAD),
        )
        lengths.set_xlabel("length of the gradient, return per normalised action")
        lengths.set_ylabel("share")
        return svg_text(figure)


def spread_histograms(measured: Measured) -> str:
    """Standard deviation over members in the data and at random chunks."""
    with _figure(1, 2.4) as (figure, (axes,)):
        _histogram(
            axes,
            {"chunks of the data": measured.spread, "random chunks": measured.random_spread},
            (GOOD, BAD),
        )
        axes.set_xlabel("spread of the members, return")
        axes.set_ylabel("share")
        return svg_text(figure)


def _histogram(axes: Axes, values: dict[str, Array], colours: tuple[str, ...]) -> None:
    """Shares per bin, so that groups of different size compare."""
    finite = {name: rows[np.isfinite(rows)] for name, rows in values.items()}
    everything = np.concatenate(list(finite.values()))
    if everything.size == 0:
        return
    low, high = np.quantile(everything, [1.0 - MARGIN, MARGIN])
    bins = np.linspace(low, high if high > low else low + 1e-9, 41)
    for (name, rows), colour in zip(finite.items(), colours, strict=True):
        if rows.size:
            weight = np.full(rows.size, 1.0 / rows.size)
            shown = np.clip(rows, bins[0], bins[-1])
            axes.hist(
                shown,
                list(bins),
                weights=weight,
                histtype="step",
                color=colour,
                lw=1.6,
                label=name,
            )
    if any(finite):
        axes.legend(frameon=False, fontsize=8)


@contextmanager
def _figure(columns: int, height: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure in the style of all pages and its panels, side by side."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = list(np.atleast_1d(figure.subplots(1, columns)))
        for axes in panels:
            axes.grid(color="#e4e6e9", lw=0.8)
            axes.set_axisbelow(True)
        yield figure, panels
