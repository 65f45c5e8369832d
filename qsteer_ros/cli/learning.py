"""Verbs that make what acts: data, train, fit-servo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qsteer_ros.cli.saying import Verbs, say

if TYPE_CHECKING:
    from qsteer_ros.evaluation.collecting import Simulated
    from qsteer_ros.learning.settings_online import OnlineSettings


def add_data(verbs: Verbs) -> None:
    """Verb ``data``."""
    from qsteer_ros.learning.settings import add_options
    from qsteer_ros.learning.settings_data import DataSettings

    parser = verbs.add_parser("data", help="generate play episodes and camera frames to train on")
    parser.add_argument("--out", type=Path, default=Path("data/cube"), metavar="DIR")
    add_options(parser, DataSettings)
    parser.set_defaults(run=_data)


def _data(arguments: argparse.Namespace) -> None:
    from qsteer_ros.learning.data import generate
    from qsteer_ros.learning.settings import checked, given
    from qsteer_ros.learning.settings_data import DataSettings

    generate(arguments.out, checked(DataSettings, given(arguments, DataSettings)))
    say(str(arguments.out))


def add_train(verbs: Verbs) -> None:
    """Verb ``train``."""
    from qsteer_ros.learning.programs import PROGRAMS, settings_of
    from qsteer_ros.learning.settings import described

    parser = verbs.add_parser("train", help=f"train one of: {', '.join(PROGRAMS)}")
    programs = parser.add_subparsers(dest="program", metavar="PROGRAM", required=True)
    for name, entry in PROGRAMS.items():
        program = programs.add_parser(
            name,
            help=entry.meaning,
            description=f"{entry.meaning}\n\n{described(settings_of(name))}".replace("%", "%%"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        program.add_argument(
            "settings", nargs="*", metavar="KEY=VALUE", help="see above; they override --config"
        )
        program.add_argument("--config", type=Path, metavar="FILE", help="YAML of settings")
        program.add_argument(
            "--resume", action="store_true", help="continue an interrupted run of the same out"
        )
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> None:
    from qsteer_ros.learning.programs import train_program

    parts = {"simulator": _simulator} if arguments.program == "online" else {}
    say(
        train_program(
            arguments.program,
            arguments.settings,
            config=arguments.config,
            resume=arguments.resume,
            **parts,
        )
    )


def _simulator(settings: OnlineSettings) -> Simulated:
    from qsteer_ros.evaluation.collecting import Simulated

    return Simulated(settings)


def add_fit_servo(verbs: Verbs) -> None:
    """Verb ``fit-servo``."""
    parser = verbs.add_parser("fit-servo", help="fit a robot file's servo lag to play")
    parser.add_argument("--data", type=Path, default=Path("data/cube"), metavar="DIR")
    parser.set_defaults(run=_fit_servo)


def _fit_servo(arguments: argparse.Namespace) -> None:
    from qsteer_ros.learning.servo import fit_servo_of_play, robot_file_lines

    say(robot_file_lines(fit_servo_of_play(arguments.data)))
