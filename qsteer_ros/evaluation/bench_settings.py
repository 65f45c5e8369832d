"""What ``qsteer bench`` is asked for: tasks, methods, and the settings of each step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from qsteer_ros import resources
from qsteer_ros.errors import ConfigError

RECIPES = "bench_ogbench.yaml"


class Method(NamedTuple):
    """A row of the table.

    Attributes:
        needs: Programs whose checkpoints it acts with, beside ``bc`` and ``critic``.
        group: Methods of one group and one seed are evaluated by one process.
    """

    needs: tuple[str, ...]
    group: str


METHODS: dict[str, Method] = {
    "off": Method((), "steered"),
    "best_of_n": Method((), "steered"),
    "gradient_step": Method((), "steered"),
    "noisy_gradient": Method((), "steered"),
    "qgf": Method((), "steered"),
    "qpilots_u": Method((), "steered"),
    "qpilots_m": Method(("posterior-map",), "posterior-map"),
    "dsrl": Method(("dsrl",), "dsrl"),
    "qvgm": Method(("qvgm",), "qvgm"),
}
"""Everything that is compared, in the order of the table."""

PROGRAMS = ("bc", "critic", "posterior-map", "dsrl", "qvgm")
"""Training programs, in the order in which they need one another."""

SECTIONS = ("data", *PROGRAMS, *(name for name in METHODS if name not in PROGRAMS))
"""Sections of a recipe; the other keys are ``task`` and ``execute``."""


class Task(NamedTuple):
    """One task of one environment.

    Attributes:
        suite: Name of the environment.
        number: Of the task, counted from 1.
    """

    suite: str
    number: int

    def __str__(self) -> str:
        """Such as ``cube-single-task2``."""
        return f"{self.suite}-task{self.number}"


@dataclass(frozen=True)
class Recipes:
    """Settings of every step, by environment.

    Attributes:
        defaults: Section -> settings, for all.
        environments: Environment -> the same, over the defaults.
        over: Over both.
    """

    defaults: Mapping[str, Any]
    environments: Mapping[str, Mapping[str, Any]]
    over: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(
        cls, path: str | Path | None = None, *, quick: bool = False, words: Sequence[str] = ()
    ) -> Recipes:
        """From a YAML file and ``section.key=value`` words; the words win.

        Args:
            path: None: the file that comes with the package.
            quick: Apply the file's section ``quick``.
            words: ``bc.steps=2000`` for all environments, ``scene/bc.steps=2000`` for one.

        Raises:
            ConfigError: The file is missing or no mapping, or it or a word names no section.
        """
        found = resources.find(RECIPES if path is None else path)
        try:
            content = yaml.safe_load(found.read_text())
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"'{found}' must be YAML: {reason}. Correct the file.") from error
        known = {"defaults", "environments", "quick"}
        if not isinstance(content, dict) or not set(content) <= known:
            raise ConfigError(
                f"'{found}' must hold the keys {', '.join(sorted(known))}: got "
                f"{sorted(content) if isinstance(content, dict) else type(content).__name__}."
            )
        environments = {k: dict(v or {}) for k, v in (content.get("environments") or {}).items()}
        defaults = content.get("defaults") or {}
        over = [content.get("quick") or {}] if quick else []
        for recipe in (defaults, *environments.values(), *over):
            _check(recipe, str(found))
        for word in words:
            name, section, key, value = _split(word)
            patch = {section: {key: value}} if key else {section: value}
            over.append({name: patch} if name else patch)
        return cls(defaults, environments, tuple(over))

    def of(self, name: str) -> dict[str, Any]:
        """The whole recipe of one environment."""
        recipe: dict[str, Any] = {section: {} for section in SECTIONS}
        patches = [self.defaults, self.environments.get(name, {})]
        for patch in self.over:
            patches.append({k: v for k, v in patch.items() if k in SECTIONS or k in _PLAIN})
            patches.append(patch.get(name, {}))
        for patch in patches:
            for key, value in patch.items():
                recipe[key] = {**recipe[key], **value} if key in SECTIONS else value
        return recipe

    def task(self, text: str) -> Task:
        """``cube-single`` (the recipe's task), ``cube-single:4`` or ``cube-single-task4``.

        Raises:
            ConfigError: The recipe names no task, or the text is something else.
        """
        match = re.fullmatch(r"([a-z0-9-]+?)(?:(?::|-task)(\d+))?", text.strip())
        if match is None:
            raise ConfigError(
                f"a task must be written as cube-single, cube-single:4 or cube-single-task4: got "
                f"'{text}'."
            )
        number = match[2] if match[2] is not None else self.of(match[1]).get("task")
        if number is None:
            raise ConfigError(
                f"the recipe of '{match[1]}' must say which task is meant. Write {match[1]}:1."
            )
        return Task(match[1], int(number))


@dataclass(frozen=True)
class BenchSettings:
    """A benchmark.

    Attributes:
        tasks: Which.
        methods: Keys of `METHODS`, in the order of the table.
        seeds: Of the training runs.
        episodes: Per task, method and seed.
        out: Folder of everything.
        data: Folder of the environments' data sets.
        workers: Processes.
        block: Of initial states: 0 for what is reported, others for choosing settings.
        recipes: Settings of every step.

    Raises:
        ConfigError: A method is unknown, something is given twice, or a number is too small.
    """

    tasks: tuple[Task, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    episodes: int
    out: Path
    data: Path
    workers: int = 1
    block: int = 0
    recipes: Recipes = field(default_factory=Recipes.read)

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for method in self.methods:
            if method not in METHODS:
                raise ConfigError(f"a method must be one of {', '.join(METHODS)}: got '{method}'.")
        for what, values in (
            ("tasks", self.tasks),
            ("methods", self.methods),
            ("seeds", self.seeds),
        ):
            if not values or len(set(values)) != len(values):
                raise ConfigError(
                    f"'{what}' must name at least one, each once: got "
                    f"{', '.join(map(str, values))}."
                )
        for name, number in (("episodes", self.episodes), ("workers", self.workers)):
            if number < 1:
                raise ConfigError(f"'{name}' must be at least 1: got {number}.")
        if min(self.seeds) < 0 or self.block < 0:
            raise ConfigError(f"seeds must not be negative: got {self.seeds}, block {self.block}.")


_PLAIN = ("task", "execute")


def _check(recipe: Mapping[str, Any], source: str) -> None:
    for key, value in recipe.items():
        if key in _PLAIN:
            continue
        if key not in SECTIONS or not isinstance(value, dict):
            raise ConfigError(
                f"{source} must hold only sections {', '.join(SECTIONS)} with keys and values, "
                f"{' and '.join(_PLAIN)}: got '{key}'."
            )


def _split(word: str) -> tuple[str, str, str, Any]:
    """``name/section.key=value`` in its parts."""
    place, equals, text = word.partition("=")
    name, slash, rest = place.rpartition("/")
    section, _, key = rest.partition(".")
    known = (section in SECTIONS and key) or (section in _PLAIN and not key)
    if not equals or not known or (slash and not name):
        raise ConfigError(
            "'--set' must be SECTION.KEY=VALUE or ENVIRONMENT/SECTION.KEY=VALUE with a section of "
            f"{', '.join(SECTIONS)}: got '{word}'."
        )
    return name, section, key, yaml.safe_load(text)
