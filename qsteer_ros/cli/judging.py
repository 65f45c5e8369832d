"""Verbs that measure what acts: evaluate, calibrate, gate."""

from __future__ import annotations

import argparse
from pathlib import Path

from qsteer_ros.cli.saying import Verbs, say


def add_evaluate(verbs: Verbs) -> None:
    """Verb ``evaluate``."""
    parser = verbs.add_parser("evaluate", help="success rates of steering arms, in process")
    parser.add_argument(
        "--arms",
        default="off,best_of_n,qgf,qpilots_u",
        help="modes, as mode or mode:number (qgf:0.05, best_of_n:16), separated by commas",
    )
    parser.add_argument("--goals", default="1", help="numbers separated by commas")
    for option, default, meaning in (
        ("episodes", 25, "per arm and goal"),
        ("seed", 0, "of the first initial state"),
        ("max-steps", 200, "control steps of 50 ms"),
        ("denoising-steps", 10, "from noise to chunk"),
        ("backend", "auto", "or eager, compiled, cuda_graph"),
        ("integrator", "euler", "or midpoint, heun"),
        ("time-power", 1.0, "of the schedule of flow times"),
        ("execute-steps", 5, "actions of a chunk before the next one is decided"),
        ("latency-ms", 60.0, "from observation to command"),
        ("camera-shift-m", 0.0, "front camera moved sideways"),
        ("workers", 1, "processes"),
        ("robot", "robot_ur5e_sim.yaml", "robot file"),
        ("encoder", "checkpoints/encoder", "checkpoint"),
        ("policy", "checkpoints/policy", "checkpoint"),
        ("critic", "checkpoints/critic_goal{goal}", "checkpoint, {goal} is replaced"),
    ):
        parser.add_argument(
            f"--{option}", type=type(default), default=default, help=f"{meaning} ({default})"
        )
    for option, meaning in (
        ("noise-policy", "checkpoint for arm dsrl, {goal} is replaced"),
        ("posterior-map", "checkpoint for arm qpilots_m; without one the policy draws"),
    ):
        parser.add_argument(f"--{option}", default="", metavar="DIR", help=meaning)
    parser.add_argument("--true-pose", action="store_true", help="cube pose from the simulator")
    parser.add_argument("--no-latency", action="store_true", help="commands take effect at once")
    parser.add_argument("--native", action="store_true", help="no decoder and no follower")
    parser.add_argument("--rtc", action="store_true", help="continue the running chunk")
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="arms without a number take the weight that qsteer calibrate found",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other steering setting for all arms, such as reduction=mean",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON report")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from qsteer_ros.evaluation.evaluate import evaluate, table
    from qsteer_ros.evaluation.evaluation_settings import from_options

    say(table(evaluate(from_options(vars(arguments)), arguments.out)))


def add_calibrate(verbs: Verbs) -> None:
    """Verb ``calibrate``."""
    parser = verbs.add_parser("calibrate", help="find a critic's guidance weight for a ratio")
    parser.add_argument("--critic", required=True, metavar="DIR", help="gets calibration.json")
    parser.add_argument("--policy", default="checkpoints/policy", metavar="DIR")
    parser.add_argument("--episodes", type=Path, metavar="DIR", help="store of logged episodes")
    parser.add_argument("--play", type=Path, metavar="DIR", help="of qsteer data, instead")
    parser.add_argument("--goal", type=int, metavar="N", help="only episodes of this goal")
    parser.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help="wanted ||guidance|| / ||velocity|| (0.05; for qpilots_u and qpilots_m 0.15)",
    )
    for option, default, meaning in (
        ("modes", "qgf,qpilots_u", "separated by commas"),
        ("observations", 256, "at most, spread evenly over the episodes"),
        ("reduction", "min", "how ensemble members become one value"),
        ("rho", 0.5, "weight of the spread, for reduction pessimistic"),
        ("denoising-steps", 10, "from noise to chunk"),
        ("integrator", "euler", "or midpoint, heun"),
        ("time-power", 1.0, "of the schedule of flow times"),
        ("seed", 0, "of the choice of observations and of all noise"),
    ):
        parser.add_argument(
            f"--{option}", type=type(default), default=default, help=f"{meaning} ({default})"
        )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other steering setting, such as keep_jacobian=false",
    )
    parser.add_argument(
        "--renew", action="store_true", help="replace a calibration of another critic or policy"
    )
    parser.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> None:
    from qsteer_ros.evaluation.calibrate import calibrate_from_options

    say(calibrate_from_options(vars(arguments)))


def add_gate(verbs: Verbs) -> None:
    """Verb ``gate``."""
    parser = verbs.add_parser(
        "gate", help="examine a critic on held-out episodes before it steers"
    )
    parser.add_argument("--critic", required=True, metavar="DIR", help="gets gate.json")
    parser.add_argument("--policy", default="checkpoints/policy", metavar="DIR")
    parser.add_argument(
        "--episodes",
        type=Path,
        required=True,
        metavar="DIR",
        help="store of logged episodes that the critic was not trained on",
    )
    parser.add_argument("--robot", default="robot_ur5e_sim.yaml", metavar="FILE")
    parser.add_argument("--encoder", default="checkpoints/encoder", metavar="DIR")
    parser.add_argument("--page", type=Path, metavar="FILE.html", help="gets a page with plots")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a threshold, such as direction_share_max=0.7; it is recorded",
    )
    parser.set_defaults(run=_gate)


def _gate(arguments: argparse.Namespace) -> int:
    from qsteer_ros.evaluation.gate_run import gate_from_options

    status, text = gate_from_options(vars(arguments))
    say(text)
    return status
