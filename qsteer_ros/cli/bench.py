"""Verb ``bench``: methods compared on a public suite of tasks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qsteer_ros.cli.saying import Verbs, say

DESCRIPTION = """\
  qsteer bench ogbench --tasks cube-single --methods off,best_of_n,qgf --seeds 1 --quick

trains and evaluates; the same command goes on where an interrupted one stopped, and fills in
tasks, methods and seeds that were not there before. The table is in OUT/table.md, the plot in
OUT/success.svg, every episode in OUT/results.
"""


def add_bench(verbs: Verbs) -> None:
    """Verb ``bench``."""
    from qsteer_ros.evaluation.bench_settings import METHODS

    parser = verbs.add_parser("bench", help="compare methods on a public suite of tasks")
    kinds = parser.add_subparsers(dest="suite", metavar="WHAT", required=True)
    suite = kinds.add_parser(
        "ogbench",
        help="train and evaluate on OGBench's tabletop tasks, write a table and a plot",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    suite.add_argument(
        "--tasks",
        default="cube-single,cube-double,scene,puzzle-3x3",
        help="environments, or environment:task, separated by commas",
    )
    suite.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    suite.add_argument("--seeds", type=int, default=3, metavar="N", help="training runs (3)")
    suite.add_argument(
        "--first-seed", type=int, default=0, metavar="K", help="number of the first one (0)"
    )
    suite.add_argument(
        "--episodes", type=int, default=50, metavar="N", help="per task, method and seed (50)"
    )
    suite.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR")
    suite.add_argument("--data", type=Path, metavar="DIR", help="of the play (default OUT/data)")
    suite.add_argument("--workers", type=int, default=1, metavar="N", help="processes (1)")
    suite.add_argument("--quick", action="store_true", help="sizes for a few minutes")
    suite.add_argument("--config", type=Path, metavar="FILE", help="YAML of settings of each step")
    suite.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="one setting, such as bc.steps=2000 or scene/critic.steps=2000",
    )
    suite.add_argument(
        "--block",
        type=int,
        default=0,
        metavar="K",
        help="of initial states; 0 is for reporting, choose settings with another",
    )
    suite.set_defaults(run=_ogbench)
    data = kinds.add_parser("data", help="play of the scripted experts in one environment")
    data.add_argument("words", nargs="*", metavar="KEY=VALUE", help="such as suite=scene out=DIR")
    data.set_defaults(run=_data)
    one = kinds.add_parser("evaluate", help="one evaluation, as the benchmark asks for it")
    one.add_argument("evaluations", nargs="+", metavar="JSON")
    one.set_defaults(run=_evaluate)


def _ogbench(arguments: argparse.Namespace) -> None:
    from qsteer_ros.evaluation.bench import bench_from_options

    say(bench_from_options(vars(arguments), command=" ".join(["qsteer", *sys.argv[1:]])))


def _data(arguments: argparse.Namespace) -> None:
    from qsteer_ros.learning.settings import read
    from qsteer_ros.learning.suite_data import SuiteDataSettings, generate_suite

    generate_suite(read(SuiteDataSettings, arguments.words))


def _evaluate(arguments: argparse.Namespace) -> None:
    from qsteer_ros.evaluation.bench_evaluate import Evaluation, evaluate

    evaluate([Evaluation.parse(text) for text in arguments.evaluations])
