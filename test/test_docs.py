"""Prose against code: commands, options, links, paths and parameter files."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from qsteer_ros import cli
from qsteer_ros.graph.systems import parse_settings, system
from qsteer_ros.learning.programs import PROGRAMS, settings_of
from qsteer_ros.learning.settings import read

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
PARAMETERS = {
    "sim.yaml": ("qsteer_ros.nodes.sim_parameters", "SimParameters"),
    "policy.yaml": ("qsteer_ros.nodes.policy_parameters", "PolicyParameters"),
    "logger.yaml": ("qsteer_ros.nodes.logger_node", "LoggerParameters"),
    "session.yaml": ("qsteer_ros.nodes.session_parameters", "SessionParameters"),
}
GIVEN_EACH_TIME = {"folder"}
KINDS = {file.replace(".yaml", "_node"): kind for file, kind in PARAMETERS.items()} | {
    "replay_node": ("qsteer_ros.nodes.replay_node", "ReplayParameters")
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shell_lines(page: Path) -> list[str]:
    """Lines of the shell blocks of a page, continuations joined."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands(program: str) -> list[tuple[str, list[str]]]:
    """(page, arguments) of every command of a program in the documentation."""
    return [
        (name_of(page), shlex.split(line, comments=True)[1:])
        for page in PAGES
        for line in shell_lines(page)
        if line.split()[:1] == [program] and "..." not in line
    ]


def actions_of(verb: str) -> dict[str, argparse.Action]:
    verbs = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {o: a for a in verbs.choices[verb]._actions for o in a.option_strings}


@pytest.mark.parametrize(("page", "arguments"), commands("qsteer"))
def test_commands_in_the_documentation_are_understood(page: str, arguments: list[str]) -> None:
    try:
        given = cli.parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{page}: qsteer {shlex.join(arguments)}")
    if given.verb == "train":
        read(settings_of(given.program), given.settings)
    if given.verb == "up":
        pytest.importorskip("rclpy")
        settings = parse_settings(given.settings)
        assert set(settings) <= {p.name for p in system(given.system, settings={})}
        for node, values in settings.items():
            module, kind = KINDS[node]
            fields = dataclasses.fields(getattr(importlib.import_module(module), kind))
            assert set(values) <= {field.name for field in fields}, page


def test_training_programs_that_the_code_tells_the_user_to_run_exist() -> None:
    for path in (ROOT / "qsteer_ros").rglob("*.py"):
        for program in re.findall(r"qsteer train ([a-z][a-z-]*)", path.read_text()):
            assert program in PROGRAMS, f"{name_of(path)}: qsteer train {program}"


@pytest.mark.parametrize(("page", "arguments"), commands("scripts/demo"))
def test_calls_of_the_demo_are_understood(page: str, arguments: list[str]) -> None:
    assert cli.parser().parse_args(["demo", *arguments]).verb == "demo", page


def test_the_readme_lists_every_option_of_the_demo_with_its_default() -> None:
    rows = re.findall(r"^\| `(--\w+)` \|.*\| *(.*?) *\|$", (ROOT / "README.md").read_text(), re.M)
    said = {option: text.strip("`") for option, text in rows}
    real = {
        option: "" if action.default is False else str(action.default)
        for option, action in actions_of("demo").items()
        if option not in ("-h", "--help")
    }
    assert {o: text.rstrip("/") for o, text in said.items()} == real


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    folders = {p.name for p in (ROOT / "qsteer_ros").iterdir() if p.is_dir()}
    top = {"qsteer_ros", "config", "docs", "scripts", "launch", "test", "benchmarks"}
    for text in re.findall(r"`([\w./*<>-]+/[\w./*<>-]*)`", page.read_text()):
        first = text.split("/")[0]
        if "<" in text or first not in folders | top:
            continue
        base = ROOT if first in top and (ROOT / first).exists() else ROOT / "qsteer_ros"
        assert list(base.glob(text.rstrip("/"))), f"{name_of(page)}: {text}"


@pytest.mark.parametrize("file", PARAMETERS)
def test_a_parameter_file_lists_every_parameter_with_its_default(file: str) -> None:
    pytest.importorskip("rclpy")
    if file == "policy.yaml":
        pytest.importorskip("torch")
    module, kind = PARAMETERS[file]
    declared = {
        field.name: list(field.default) if isinstance(field.default, tuple) else field.default
        for field in dataclasses.fields(getattr(importlib.import_module(module), kind))
        if field.name not in GIVEN_EACH_TIME
    }
    written = yaml.safe_load((ROOT / "config" / file).read_text())["/**"]["ros__parameters"]
    assert written == declared


def test_every_verb_is_explained() -> None:
    verbs = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert {action.dest for action in verbs._choices_actions if action.help} == set(verbs.choices)
