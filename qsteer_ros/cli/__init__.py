"""The ``qsteer`` command: thin verbs, each of which calls one function of the core.

To add a verb, write ``add_<verb>`` (its parser, with ``run`` as default) and ``_<verb>`` (the lazy
import and the one call) in a module of this folder, and name the first in ``VERBS``. What a verb
returns is its exit status; ``None`` means success. Nothing heavy is imported before the verb is
known.

An error that the package raises on purpose becomes one line on standard error and exit status 1.
Anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from qsteer_ros import __version__
from qsteer_ros.cli.bench import add_bench
from qsteer_ros.cli.judging import add_calibrate, add_evaluate, add_gate
from qsteer_ros.cli.learning import add_data, add_fit_servo, add_train
from qsteer_ros.cli.log import add_inspect, add_report, add_verify
from qsteer_ros.cli.running import add_demo, add_set, add_up
from qsteer_ros.cli.saying import Verbs
from qsteer_ros.errors import QsteerError

VERBS: tuple[Callable[[Verbs], None], ...] = (
    add_up,
    add_set,
    add_demo,
    add_report,
    add_data,
    add_train,
    add_evaluate,
    add_calibrate,
    add_bench,
    add_gate,
    add_inspect,
    add_verify,
    add_fit_servo,
)


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
    arguments = _parsed(argv)
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


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ``key=value`` words may stand before and after options."""
    root = parser()
    arguments, rest = root.parse_known_args(argv)
    if rest:
        if arguments.verb != "train" or any(word.startswith("-") for word in rest):
            root.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.settings += rest
    return arguments
