"""``report.html`` of a session: what happened, how sure that is, and what it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from qsteer_ros import __version__
from qsteer_ros.evaluation import figures, page
from qsteer_ros.evaluation.collected import Collected, collect
from qsteer_ros.evaluation.showcase import pictures, shown, strips
from qsteer_ros.evaluation.statistics import paired_sign_test, wilson_interval
from qsteer_ros.replay.durable import write_atomically
from qsteer_ros.types import Array

REPORT = "report.html"
PANELS = {
    "guidance / velocity": "ratio",
    "cosine": "cosine",
    "Q of the chunk": "q_after",
    "dQ over unguided": "delta_q",
}


def write_report(session: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a session, replacing one that is there.

    Args:
        session: The session's folder.
        out: File to write; default: ``report.html`` in that folder.

    Returns:
        The file.

    Raises:
        ConfigError: There is no session, or no episode in it.
        DataError: An episode is missing, torn or damaged.
    """
    collected = collect(session)
    target = Path(out) if out else Path(session) / REPORT
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page.page("qsteer_ros session", _body(collected)))
    return target


def _body(collected: Collected) -> list[str]:
    session = collected.session
    colour = figures.colours(session.arms)
    done = len(session.results)
    planned = len(session.schedule())
    unfinished = "" if done == planned else f" {planned - done} planned episodes have not run."
    parts = [
        "<h1>One frozen policy, steered</h1>",
        f"<p>{done} episodes through cameras, DDS, policy node and controller. Arms alternate in "
        f"a seeded order and meet the same initial states.{unfinished}</p>",
        _headline(collected),
        pictures(collected),
        _success(collected, colour),
        _goals(collected),
        _traces(collected, colour),
        _latency(collected, colour),
        strips(collected),
        _losses(collected),
        _episodes(collected),
        _provenance(collected),
    ]
    return [part for part in parts if part]


def _headline(collected: Collected) -> str:
    session = collected.session
    rates = {arm: rate for arm in session.arms if (rate := session.success(arm)) is not None}
    entries = [(str(len(session.results)), "episodes")]
    if "off" in rates:
        entries.append((f"{100 * rates['off']:.0f} %", "success of the frozen policy (off)"))
    steered = {arm: rate for arm, rate in rates.items() if arm != "off"}
    if steered:
        best = max(steered, key=lambda arm: steered[arm])
        entries.append((f"{100 * steered[best]:.0f} %", f"success of the best arm ({best})"))
    latency = _finite(np.concatenate([t.latency_ms for t in collected.tracks]))
    if latency.size:
        entries.append((f"{np.median(latency):.0f} ms", "observation stamp to chunk, median"))
    entries.append((str(sum(loss.total for loss in collected.losses())), "messages lost"))
    return page.tiles(entries)


def _success(collected: Collected, colour: dict[str, str]) -> str:
    session = collected.session
    rates, rows = {}, []
    for arm in session.arms:
        results = session.of(arm)
        if not results:
            continue
        won = [r for r in results if r.outcome == "success"]
        low, high = wilson_interval(len(won), len(results))
        rates[arm] = (len(won) / len(results), low, high)
        steps = f"{np.mean([r.steps for r in won]):.0f}" if won else "-"
        rows.append(
            (
                arm,
                f"{len(won)} / {len(results)}",
                f"{100 * rates[arm][0]:.0f} %",
                f"{100 * low:.0f} to {100 * high:.0f} %",
                _against_off(collected, arm),
                steps,
            )
        )
    head = ("arm", "reached", "success", "95 % interval", "p against off", "steps to success")
    note = (
        "Success: the cube within 4 cm of the goal before time is up. p: exact paired sign test "
        "against the arm off on the same initial states."
    )
    return page.section(
        "Success", figures.success_bars(rates, colour), page.table(head, rows), note=note
    )


def _against_off(collected: Collected, arm: str) -> str:
    pairs = [
        (arms[arm].outcome == "success", arms["off"].outcome == "success")
        for arms in collected.session.matched().values()
        if {arm, "off"} <= set(arms) and "aborted" not in (arms[arm].outcome, arms["off"].outcome)
    ]
    if arm == "off" or not pairs:
        return "-"
    return f"{paired_sign_test([a for a, _ in pairs], [b for _, b in pairs]):.2g}"


def _goals(collected: Collected) -> str:
    session = collected.session
    if len(session.goals) < 2:
        return ""
    rows = []
    for arm in session.arms:
        cells = [arm]
        for goal in session.goals:
            results = session.of(arm, goal)
            won = sum(r.outcome == "success" for r in results)
            cells.append(f"{won} / {len(results)}" if results else "-")
        rows.append(cells)
    head = ("arm", *(f"goal {goal}" for goal in session.goals))
    return page.section(
        "One policy, several goals",
        page.table(head, rows),
        note="The policy is the same in every cell; each goal has its own critic.",
    )


def _traces(collected: Collected, colour: dict[str, str]) -> str:
    tracks = shown(collected)
    series = {
        label: {
            t.result.trial.arm: (t.time_s, t.values[name])
            for t in tracks
            if np.isfinite(t.values[name]).any()
        }
        for label, name in PANELS.items()
    }
    series = {label: lines for label, lines in series.items() if lines}
    if not series:
        return ""
    rows = []
    for arm in collected.session.arms:
        means = [
            _number([m for t in collected.of(arm) if (m := t.mean(name)) is not None])
            for name in PANELS.values()
        ]
        rows.append((arm, *means))
    return page.section(
        "Steering along an episode",
        figures.traces(series, colour),
        page.table(("mean over all episodes", *PANELS), rows),
        note="One point per chunk of the episodes shown above. The ratio is the norm of the "
        "guidance over that of the policy's own velocity; the cosine is between the two.",
    )


def _latency(collected: Collected, colour: dict[str, str]) -> str:
    arms = [arm for arm in collected.session.arms if collected.of(arm)]
    latency = {arm: np.concatenate([t.latency_ms for t in collected.of(arm)]) for arm in arms}
    stages = sorted({s for t in collected.tracks for s in t.stages_ms} - {"total"})
    rows = []
    for arm in arms:
        known = _finite(latency[arm])
        ends = [f"{np.quantile(known, q):.0f}" if known.size else "-" for q in (0.5, 0.95, 1.0)]
        parts = [
            _number([v for t in collected.of(arm) for v in _finite(t.stages_ms.get(s))], "median")
            for s in stages
        ]
        rows.append((arm, str(known.size), *ends, *parts))
    head = ("arm", "chunks", "median", "95 %", "max", *stages)
    return page.section(
        "Time to a chunk, ms",
        figures.latency_histogram(latency, colour),
        page.table(head, rows),
        note="From the stamp of the newest camera frame to the published trajectory: rendering, "
        "transport, waiting and computing. The last columns are medians of the stages of the "
        "computation.",
    )


def _losses(collected: Collected) -> str:
    losses = collected.losses()
    rows = [
        (
            loss.topic,
            f"{loss.messages}",
            f"{loss.dropped}",
            f"{loss.lost}",
            "-" if loss.missing is None else f"{loss.missing}",
        )
        for loss in losses
    ]
    rows.append(
        (
            "all",
            str(sum(loss.messages for loss in losses)),
            str(sum(loss.dropped for loss in losses)),
            str(sum(loss.lost for loss in losses)),
            str(sum(loss.missing or 0 for loss in losses)),
        )
    )
    head = ("topic", "stored", "not written", "not received", "missing by stamp")
    return page.section(
        "Messages in the store",
        page.table(head, rows, total=True),
        note="Not received: by the publishers' own count. Missing by stamp: frames absent between "
        "the stamps of a periodic topic.",
    )


def _episodes(collected: Collected) -> str:
    rows = [
        (
            t.episode.episode_id,
            t.result.trial.arm,
            str(t.result.trial.goal),
            str(t.result.trial.seed),
            t.result.outcome,
            str(t.result.steps),
            _number(list(_finite(t.latency_ms)), "median"),
        )
        for t in collected.tracks
    ]
    head = ("episode", "arm", "goal", "state", "outcome", "steps", "chunk ms")
    return page.section("Episodes", page.folded("show all", page.table(head, rows)))


def _provenance(collected: Collected) -> str:
    session = collected.session
    entries = [
        ("store", str(collected.folder.resolve())),
        ("report written by", f"qsteer_ros {__version__}"),
        ("seed", str(session.seed)),
        *((f"arm {arm}", json.dumps(dict(s))) for arm, s in session.settings.items()),
        *((name, _plain(value)) for name, value in session.provenance.items()),
    ]
    return page.section("Made from", page.facts(entries))


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _finite(values: Array | None) -> Array:
    return np.zeros(0) if values is None else values[np.isfinite(values)]


def _number(values: list[float], how: str = "mean") -> str:
    if not values:
        return "-"
    return f"{(np.median(values) if how == 'median' else np.mean(values)):.3g}"
