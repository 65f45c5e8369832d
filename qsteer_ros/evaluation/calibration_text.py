"""A calibration in words: its curves as tables, and what to doubt."""

from __future__ import annotations

from collections.abc import Sequence

from qsteer_ros.critics.calibration import Calibration, ModeCalibration
from qsteer_ros.evaluation.observed import Observed
from qsteer_ros.evaluation.statistics import wilson_interval
from qsteer_ros.evaluation.sweep import FACTORS

SILENT = 0.002
"""Ratio up to which guidance is known to have had no effect on an arm. Source: a port of Q-Guided
Flow to a real arm, whose deployed ratios were 5e-5 to 2e-3."""

TOLERANCE = 0.01
"""Relative error of the ratio beyond which there is a warning."""


def doubts(entry: ModeCalibration) -> list[str]:
    """Reasons not to trust a weight, as sentences; none when there are none."""
    point, count = entry.found, entry.observations.count
    low, high = wilson_interval(round(point.improved * count), count)
    sentences = []
    if low <= 0.5:
        sentences.append(
            f"guidance at weight {point.weight:g} does nothing that this critic can tell from "
            f"chance: {point.improved:.0%} of {count} chunks gain value (95 % interval {low:.0%} "
            f"to {high:.0%})."
        )
    if point.ratio < SILENT:
        sentences.append(
            f"guidance of {point.ratio:.2g} times the velocity has no effect on an arm; nothing "
            f"below {SILENT:g} was ever seen to have one. Ask for a larger --ratio."
        )
    if abs(point.ratio / entry.target_ratio - 1.0) > TOLERANCE:
        sentences.append(
            f"the ratio jumps over {entry.target_ratio:g} at weight {point.weight:g}; it is "
            f"{point.ratio:.3g} there."
        )
    if len(entry.curve) < len(FACTORS):
        sentences.append(
            f"chunks are not finite any more beyond weight {entry.curve[-1].weight:g}."
        )
    return sentences


def table(made: Calibration, observed: Observed) -> str:
    """Curves, values and doubts as text."""
    source = observed.source
    lines = [
        f"{source.count} observations of {source.episodes} episodes in {source.source}",
        *(f"not used: {name}: {reason}" for name, reason in observed.skipped),
    ]
    for mode, entry in made.modes.items():
        lines += ["", *_mode_table(mode, entry)]
    lines += [
        "",
        "values of the frozen policy's chunks",
        "  reduction             mean         std",
    ]
    lines += [
        f"  {v.reduction + (f' {v.rho:g}' if v.rho else ''):15}  {v.q_mean:9.4g}  {v.q_std:10.4g}"
        for v in made.values
    ]
    lines += [
        "",
        "delta Q is the critic's own opinion: the largest is not the best on an arm.",
        *(
            f"warning: {mode}: {sentence}"
            for mode, entry in made.modes.items()
            for sentence in doubts(entry)
        ),
    ]
    return "\n".join(lines)


def _mode_table(mode: str, entry: ModeCalibration) -> Sequence[str]:
    rows = [
        f"{mode}: weight {entry.weight:g} gives ratio {entry.found.ratio:.3g}",
        "      weight     ratio    delta Q  std. error  improved  clipped  displacement",
    ]
    for p in entry.curve:
        mark = ">" if p.weight == entry.weight else " "
        rows.append(
            f"  {mark} {p.weight:8.4g}  {p.ratio:8.3g}  {p.delta_q:+9.4g}"
            f"  {p.delta_q_error:10.2g}  {p.improved:8.1%}  {p.clipped:7.2%}"
            f"  {p.displacement:12.4f}"
        )
    return rows
