"""Verbs that read what was recorded: inspect, verify, report."""

from __future__ import annotations

import argparse
from pathlib import Path

from qsteer_ros.cli.saying import Verbs, say


def add_report(verbs: Verbs) -> None:
    """Verb ``report``."""
    parser = verbs.add_parser("report", help="write report.html of a finished session")
    parser.add_argument("session", type=Path, help="folder that holds session.json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html beside it")
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from qsteer_ros.evaluation.report import write_report

    say(str(write_report(arguments.session, arguments.out)))


def add_verify(verbs: Verbs) -> None:
    """Verb ``verify``."""
    parser = verbs.add_parser("verify", help="check every episode of a store, or recover them")
    parser.add_argument("store", type=Path, help="an episode, or a folder of episodes")
    parser.add_argument(
        "--recover",
        action="store_true",
        help="write a recovered copy beside each episode that was interrupted or is damaged",
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail for missing frames and dropped messages too"
    )
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from qsteer_ros.replay.verify import verify

    return verify(arguments.store, recover=arguments.recover, strict=arguments.strict, say=say)


def add_inspect(verbs: Verbs) -> None:
    """Verb ``inspect``."""
    parser = verbs.add_parser("inspect", help="show what is in a store, or in one episode")
    parser.add_argument("store", type=Path, help="an episode, or a folder of episodes")
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    from qsteer_ros.replay.overview import inspect_store

    say(inspect_store(arguments.store))
