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


def _add_set(verbs: Verbs) -> None:
    parser = verbs.add_parser("set", help="set parameters of running nodes")
    parser.add_argument("assignments", nargs="+", metavar="NODE.PARAMETER=VALUE")
    parser.set_defaults(run=_set)


def _set(arguments: argparse.Namespace) -> int:
    from qsteer_ros.graph.up import set_live

    return set_live(arguments.assignments)


def _add_demo(verbs: Verbs) -> None:
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


def _add_report(verbs: Verbs) -> None:
    parser = verbs.add_parser("report", help="write report.html of a finished session")
    parser.add_argument("session", type=Path, help="folder that holds session.json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html beside it")
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from qsteer_ros.evaluation.report import write_report

    _say(str(write_report(arguments.session, arguments.out)))


def _add_data(verbs: Verbs) -> None:
    from qsteer_ros.learning.settings import DataSettings, add_options

    parser = verbs.add_parser("data", help="generate play episodes and camera frames to train on")
    parser.add_argument("--out", type=Path, default=Path("data/cube"), metavar="DIR")
    add_options(parser, DataSettings)
    parser.set_defaults(run=_data)


def _data(arguments: argparse.Namespace) -> None:
    from qsteer_ros.learning.data import generate
    from qsteer_ros.learning.settings import DataSettings, checked, given

    generate(arguments.out, checked(DataSettings, given(arguments, DataSettings)))
    _say(str(arguments.out))


def _add_train(verbs: Verbs) -> None:
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

    _say(train_program(arguments.program, vars(arguments)))


def _add_evaluate(verbs: Verbs) -> None:
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
    from qsteer_ros.evaluation.evaluate import evaluate, from_options, table

    _say(table(evaluate(from_options(vars(arguments)), arguments.out)))


def _add_calibrate(verbs: Verbs) -> None:
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

    _say(calibrate_from_options(vars(arguments)))


def _add_fit_servo(verbs: Verbs) -> None:
    parser = verbs.add_parser("fit-servo", help="fit a robot file's servo lag to play")
    parser.add_argument("--data", type=Path, default=Path("data/cube"), metavar="DIR")
    parser.set_defaults(run=_fit_servo)


def _fit_servo(arguments: argparse.Namespace) -> None:
    from qsteer_ros.learning.servo import fit_servo_of_play, robot_file_lines

    _say(robot_file_lines(fit_servo_of_play(arguments.data)))


def _add_verify(verbs: Verbs) -> None:
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

    return verify(arguments.store, recover=arguments.recover, strict=arguments.strict, say=_say)


def _add_inspect(verbs: Verbs) -> None:
    parser = verbs.add_parser("inspect", help="show what is in a store, or in one episode")
    parser.add_argument("store", type=Path, help="an episode, or a folder of episodes")
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    from qsteer_ros.replay.overview import inspect_store

    _say(inspect_store(arguments.store))


VERBS: tuple[Callable[[Verbs], None], ...] = (
    _add_up,
    _add_set,
    _add_demo,
    _add_report,
    _add_data,
    _add_train,
    _add_evaluate,
    _add_calibrate,
    _add_inspect,
    _add_verify,
    _add_fit_servo,
)


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
