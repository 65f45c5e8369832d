"""Verbs that make what acts: data, train, fit-servo."""

from __future__ import annotations

import argparse
from pathlib import Path

from qsteer_ros.cli.saying import Verbs, say


def add_data(verbs: Verbs) -> None:
    """Verb ``data``."""
    from qsteer_ros.learning.settings import DataSettings, add_options

    parser = verbs.add_parser("data", help="generate play episodes and camera frames to train on")
    parser.add_argument("--out", type=Path, default=Path("data/cube"), metavar="DIR")
    add_options(parser, DataSettings)
    parser.set_defaults(run=_data)


def _data(arguments: argparse.Namespace) -> None:
    from qsteer_ros.learning.data import generate
    from qsteer_ros.learning.settings import DataSettings, checked, given

    generate(arguments.out, checked(DataSettings, given(arguments, DataSettings)))
    say(str(arguments.out))


def add_train(verbs: Verbs) -> None:
    """Verb ``train``."""
    from qsteer_ros.learning.settings import PROGRAMS, add_options

    parser = verbs.add_parser("train", help="train an encoder, a policy (bc) or a critic")
    programs = parser.add_subparsers(dest="program", metavar="PROGRAM", required=True)
    for name, (settings, meaning) in PROGRAMS.items():
        program = programs.add_parser(name, help=meaning)
        program.add_argument(
            "--data", type=Path, default=Path("data/cube"), metavar="DIR", help="of qsteer data"
        )
        program.add_argument("--out", type=Path, required=True, metavar="DIR")
        program.add_argument(
            "--resume", action="store_true", help="continue an interrupted run in --out"
        )
        if name == "critic":
            program.add_argument(
                "--episodes",
                type=Path,
                metavar="DIR",
                help="train from logged episodes alone instead of --data",
            )
            program.add_argument("--encoder", default="checkpoints/encoder", metavar="DIR")
            program.add_argument("--robot", default="robot_ur5e_sim.yaml", metavar="FILE")
        add_options(program, settings)
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> None:
    from qsteer_ros.learning.commands import train_program

    say(train_program(arguments.program, vars(arguments)))


def add_fit_servo(verbs: Verbs) -> None:
    """Verb ``fit-servo``."""
    parser = verbs.add_parser("fit-servo", help="fit a robot file's servo lag to play")
    parser.add_argument("--data", type=Path, default=Path("data/cube"), metavar="DIR")
    parser.set_defaults(run=_fit_servo)


def _fit_servo(arguments: argparse.Namespace) -> None:
    from qsteer_ros.learning.servo import fit_servo_of_play, robot_file_lines

    say(robot_file_lines(fit_servo_of_play(arguments.data)))
