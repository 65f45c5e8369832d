"""The ``qsteer`` command: thin verbs, each of which calls one function of the core.

To add a verb, write ``_add_<verb>`` (its parser, with ``run`` as default) and ``_<verb>`` (the
lazy import and the one call), and name the first in ``VERBS``. What a verb returns is its exit
status; ``None`` means success. Nothing heavy is imported before the verb is known.

An error that the package raises on purpose becomes one line on standard error and exit status 1.
Anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qsteer_ros import __version__
from qsteer_ros.errors import QsteerError

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def _add_up(verbs: Verbs) -> None:
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


def _add_report(verbs: Verbs) -> None:
    parser = verbs.add_parser("report", help="write report.html of a finished session")
    parser.add_argument("session", type=Path, help="folder that holds session.json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html beside it")
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from qsteer_ros.evaluation.report import write_report

    _say(str(write_report(arguments.session, arguments.out)))


VERBS: tuple[Callable[[Verbs], None], ...] = (_add_up, _add_report)


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line, so that tests can read its verbs and options."""
    root = argparse.ArgumentParser(
        prog="qsteer", description="Frozen policies, steered by a critic."
    )
    root.add_argument("--version", action="version", version=f"qsteer_ros {__version__}")
    verbs = root.add_subparsers(dest="verb", metavar="VERB", required=True)
    for add in VERBS:
        add(verbs)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Command line without the program's name; default: that of the process.

    Returns:
        Exit status: 0, what the verb returned, 1 for an error raised on purpose, 130 after Ctrl-C.
    """
    arguments = parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int | None] = arguments.run
    try:
        return run(arguments) or 0
    except QsteerError as error:
        sys.stderr.write(f"qsteer {arguments.verb}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"qsteer {arguments.verb}: interrupted\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
