"""An examination as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import asdict
from html import escape

from qsteer_ros.critics.gate import PASS, Check, Gate
from qsteer_ros.evaluation import gate_figures as figures
from qsteer_ros.evaluation import page
from qsteer_ros.evaluation.gate import Examined
from qsteer_ros.evaluation.gate_measure import Measured

QUESTIONS = {
    "interface": "Is it made for this policy and this robot?",
    "held_out": "Are these episodes new to it?",
    "gradient": "Is its gradient the derivative of its values?",
    "inputs": "Does it look at every input?",
    "direction": "Does its gradient depend on the state?",
    "outcome": "Are states of successful episodes worth more?",
    "random": "Is a chunk that was executed worth more than a random one?",
    "shuffled": "Does a chunk fit its own state better than another's?",
    "calibration": "Are its values the return?",
    "unit": "Are its values possible returns?",
    "flatness": "Is there a gradient where episodes fail?",
    "spread": "Do its members agree less where there was no data?",
}


def gate_page(record: Gate, examined: Examined, *, critic_name: str) -> str:
    """The page.

    Args:
        record: What was written beside the critic.
        examined: What the plots are drawn from.
        critic_name: What the critic is called.
    """
    solved = sum(episode.success for episode in record.episodes)
    passed = sum(check.verdict == PASS for check in record.checks)
    verdict = "passed" if record.passed else "not passed"
    body = [
        f"<h1>Gate of {escape(critic_name)}: "
        f'<span class="{"good" if record.passed else "bad"}">{verdict}</span></h1>',
        "<p>Before a critic may steer, it is examined on episodes it has not learned from. It "
        "passes when every check passes or is exempt by name; a check that cannot be judged is "
        "not passed.</p>",
        page.tiles(
            [
                (f"{passed} of {len(record.checks)}", "checks passed"),
                (f"{solved} / {len(record.episodes)}", "held-out episodes successful"),
                (str(len(examined.held_out)), "windows"),
            ]
        ),
        _verdicts(record),
    ]
    if examined.measured is not None:
        body += _plots(record, examined, examined.measured)
    body += [_provenance(record, examined)]
    return page.page(f"Gate of {critic_name}", body)


def _verdicts(record: Gate) -> str:
    rows = []
    for check in record.checks:
        kind = "good" if check.verdict == PASS else "bad"
        exempt = " (exempt)" if check.name in record.settings.exempted else ""
        rows.append(
            f'<tr><td class="ask">{escape(QUESTIONS[check.name])}<br>'
            f"<code>{escape(check.name)}</code></td>"
            f'<td><b class="{kind}">{escape(check.verdict + exempt)}</b></td>'
            f'<td class="wrap">{escape(check.reason)}<br><span class="rule">'
            f"{escape(check.rule)}</span></td></tr>"
        )
    style = (
        "<style>.rule { color: var(--soft); font-size: 0.85em; } "
        "td.ask { white-space: normal; min-width: 15em; }</style>"
    )
    return page.section("Verdicts", f"{style}<table>{''.join(rows)}</table>")


def _plots(record: Gate, examined: Examined, measured: Measured) -> list[str]:
    settings, held_out = record.settings, examined.held_out
    space = held_out.interface
    return [
        page.section(
            "Values against what happened",
            figures.calibration_curve(measured, held_out, settings),
            note="Windows in bins of equal count by value; bars: one standard deviation of the "
            "observed return. An unsolved episode is taken to go on as it ended; windows of which "
            "too little was seen are left out. A critic that learned what good chunks reach lies "
            "above what was observed.",
        ),
        page.section(
            "Successful against failing episodes",
            figures.outcome_curves(measured, held_out),
            note="Value of the frozen policy's chunk in each state: median and quartiles over "
            "episodes.",
        ),
        page.section(
            "Chunks of the data against others",
            figures.preference_histograms(measured, ~held_out.steered[measured.rows]),
            note="In the same state, where this critic did not choose the chunk. To the right of "
            "the dashed line the chunk that was executed is worth more.",
        ),
        page.section(
            "What it looks at",
            figures.input_effects(measured.effects, settings),
            note="How far the value moves when an input takes the value it has in another window; "
            "grey: hardly varies in these windows.",
        ),
        page.section(
            "Directions of the gradient",
            figures.direction_plots(measured, space.horizon, space.action_names, settings),
            note="Shares of the uncentred second moment of the gradients over states and chunks. "
            "One direction for all states is no steering: refused from the dashed line on.",
        ),
        page.section(
            "The gradient itself",
            figures.gradient_plots(measured, held_out),
            note="Left: every component, in float64. Right: where episodes fail it must not be "
            "gone.",
        ),
        page.section("Spread of the members", figures.spread_histograms(measured)),
    ]


def _provenance(record: Gate, examined: Examined) -> str:
    hashes = [
        ("critic", record.critic),
        ("policy", record.policy),
        ("encoder", record.encoder or "none"),
        ("robot file", record.robot),
        ("windows", record.data),
        ("command", record.command or "in process"),
        ("package", record.package_version),
    ]
    episodes = page.table(
        ("episode", "goal reached", "steered by it", "windows", "bag"),
        [
            (e.name, _word(e.success), _word(e.steered), str(e.windows), e.sha256[:12])
            for e in record.episodes
        ],
    )
    aside = [page.facts(examined.held_out.left_out)] if examined.held_out.left_out else []
    thresholds = page.table(
        ("setting", "value"), [(k, str(v)) for k, v in asdict(record.settings).items()]
    )
    return page.section(
        "Provenance",
        page.facts(hashes),
        page.folded("Held-out episodes", episodes),
        *(page.folded("Left out", part) for part in aside),
        page.folded("Thresholds", thresholds),
        page.folded("All figures", *(_numbers(check) for check in record.checks)),
    )


def _word(holds: bool) -> str:
    return "yes" if holds else "no"


def _numbers(check: Check) -> str:
    if not check.figures:
        return ""
    rows = [(name, "-" if v is None else f"{v:.6g}") for name, v in check.figures.items()]
    return page.table((check.name, ""), rows)
