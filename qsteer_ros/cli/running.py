"""Verbs that run processes: up, set, demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from qsteer_ros.cli.saying import Verbs


def add_up(verbs: Verbs) -> None:
    """Verb ``up``."""
    parser = verbs.add_parser("up", help="start the processes of a system and keep them running")
    parser.add_argument("system", choices=("sim", "arm", "replay"))
    parser.add_argument(
        "--params",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="extra parameter file for every node; the last one wins",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.PARAM=VALUE",
        dest="settings",
        help="one parameter of one node, value as in YAML",
    )
    parser.add_argument(
        "--activate",
        action=argparse.BooleanOptionalAction,
        help="let the policy move the arm as soon as it is configured (default: only in sim)",
    )
    parser.add_argument(
        "--logs",
        type=Path,
        default=Path("log/qsteer"),
        metavar="DIR",
        help="a folder is made in it with one log file per node",
    )
    parser.set_defaults(run=_up)


def _up(arguments: argparse.Namespace) -> int:
    from qsteer_ros.graph.up import up

    return up(
        arguments.system,
        parameter_files=arguments.params,
        settings=arguments.settings,
        activate=arguments.activate,
        logs=arguments.logs,
    )


def add_set(verbs: Verbs) -> None:
    """Verb ``set``."""
    parser = verbs.add_parser("set", help="set parameters of running nodes")
    parser.add_argument("assignments", nargs="+", metavar="NODE.PARAMETER=VALUE")
    parser.set_defaults(run=_set)


def _set(arguments: argparse.Namespace) -> int:
    from qsteer_ros.graph.up import set_live

    return set_live(arguments.assignments)


def add_demo(verbs: Verbs) -> None:
    """Verb ``demo``."""
    parser = verbs.add_parser("demo", help="run a session in simulation and write its report")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="per arm and goal")
    parser.add_argument(
        "--arms",
        default="off,best_of_n,qgf,qpilots_u",
        help="modes, as mode or mode:number (qgf:0.05), separated by commas",
    )
    parser.add_argument("--goal", default="1", help="1, 2, 3, several with commas, or all")
    parser.add_argument("--seed", type=int, default=0, help="of schedule and initial states")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="gets a folder per session"
    )
    parser.add_argument(
        "--train", action="store_true", help="regenerate data and all checkpoints first"
    )
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from qsteer_ros.graph.demo import DemoOptions, demo, parse_goals

    options = DemoOptions(
        episodes=arguments.episodes,
        arms=tuple(arguments.arms.split(",")),
        goals=parse_goals(arguments.goal),
        seed=arguments.seed,
        out=arguments.out,
        train=arguments.train,
    )
    return demo(options)
