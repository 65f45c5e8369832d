"""The demo: a session in simulation through the whole graph, checked and reported.

The last line on standard output is one JSON object; everything before it is for people.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qsteer_ros.errors import ConfigError, QsteerError
from qsteer_ros.graph.environment import additions, free_domain, shared_memory_remark
from qsteer_ros.graph.live_table import REDRAW_S, LiveTable
from qsteer_ros.graph.supervisor import Command, Outcome, Supervisor, module_command
from qsteer_ros.graph.systems import Settings, system
from qsteer_ros.graph.training import GOALS, CheckpointFolders, qsteer, train_everything
from qsteer_ros.replay.arms import arm_parameters
from qsteer_ros.replay.episode import Episode
from qsteer_ros.replay.sessions import SESSION, STORE, Session

SESSION_LINE = "@session "
REPORT = "report.html"


@dataclass(frozen=True)
class DemoOptions:
    """What the user chose.

    Attributes:
        episodes: Per arm and goal.
        arms: Labels of the steering arms.
        goals: Numbers of the goals.
        seed: Of the schedule and of the initial states.
        out: Folder; the session gets a new folder inside it.
        train: Regenerate data and all checkpoints first.
    """

    episodes: int = 20
    arms: tuple[str, ...] = ("off", "best_of_n", "qgf", "qpilots_u")
    goals: tuple[int, ...] = (1,)
    seed: int = 0
    out: Path = Path("demo")
    train: bool = False

    def __post_init__(self) -> None:
        """Refuse what would fail only after minutes.

        Raises:
            ConfigError: An arm is unknown, or there is nothing to run.
        """
        Session(self.arms, self.goals, self.episodes, self.seed)
        for arm in self.arms:
            arm_parameters(arm)
        unknown = sorted(set(self.goals) - set(GOALS))
        if unknown:
            raise ConfigError(f"goals must be among {list(GOALS)}: got {unknown}.")


def parse_goals(text: str) -> tuple[int, ...]:
    """Read ``2``, ``1,3`` or ``all``.

    Raises:
        ConfigError: It is something else.
    """
    if text == "all":
        return GOALS
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"'--goal' must be 1, 2, 3 or all: got '{text}'.") from None


def demo(options: DemoOptions, *, command: Command = module_command) -> int:
    """Run the demo.

    Args:
        options: What the user chose.
        command: How a process becomes a command line.

    Returns:
        0 when every episode was run and stored whole; 1 otherwise.

    Raises:
        ConfigError: An option, a checkpoint or a step of the training; nothing has moved.
    """
    folder = _new_folder(options.out)
    _say(f"session in {folder}")
    if remark := shared_memory_remark():
        _say(remark)
    checkpoints = CheckpointFolders()
    if options.train:
        checkpoints = train_everything(options.out / "training", seed=options.seed)
        _say(
            "these critics have not passed the gate: there are no held-out episodes yet. This "
            "session lets them steer all the same and records some: "
            f"qsteer gate --critic {checkpoints.critics[0]} --policy {checkpoints.policy} "
            f"--encoder {checkpoints.encoder} --episodes {folder / STORE}"
        )
    outcome = _run_session(options, folder, checkpoints, command)
    if not (folder / SESSION).exists() or not (session := Session.load(folder)).results:
        raise ConfigError(f"the session must run: {outcome.reason}.")
    _say(outcome.reason)
    whole = _verify(folder / STORE)
    report = _report(folder, options.out)
    complete = outcome.status == 0 and not session.remaining()
    sys.stdout.write(json.dumps(summary(session, folder, report)) + "\n")
    sys.stdout.flush()
    return 0 if complete and whole else 1


def summary(session: Session, folder: Path, report: Path) -> dict[str, Any]:
    """The JSON object of the last line.

    Returns:
        ``episodes``, ``success`` and ``chunk_ms_p50`` per arm, with several goals also
        ``success_by_goal``, ``drops`` (messages that should be in the store and are not),
        ``store`` and ``report``.
    """
    chunk_ms = {
        arm: [ms for result in session.of(arm) for ms in result.chunk_ms] for arm in session.arms
    }
    entries: dict[str, Any] = {
        "episodes": len(session.results),
        "success": {arm: session.success(arm) for arm in session.arms},
    }
    if len(session.goals) > 1:
        entries["success_by_goal"] = {
            str(goal): {arm: session.success(arm, goal) for arm in session.arms}
            for goal in session.goals
        }
    return entries | {
        "chunk_ms_p50": {
            arm: round(statistics.median(values), 1) if values else None
            for arm, values in chunk_ms.items()
        },
        "drops": sum(_lost(folder / STORE / r.trial.episode_id) for r in session.results),
        "store": str((folder / STORE).resolve()),
        "report": str(report.resolve()),
    }


def _lost(episode: Path) -> int:
    """Messages of an episode that should be in the store; a missing frame counts once."""
    topics = Episode.load(episode).topics
    return sum(topic.dropped + max(topic.lost, topic.missing or 0) for topic in topics)


def _new_folder(out: Path) -> Path:
    """A folder of its own for this session; nothing that is there is touched."""
    name = datetime.now(UTC).strftime("session_%Y%m%dT%H%M%S")
    for attempt in range(100):
        folder = out / (name if attempt == 0 else f"{name}_{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"'--out' must be a folder that can be written: '{out}' is not ({error.strerror})."
                " Choose another one."
            ) from error
        return folder
    raise ConfigError(f"a new folder must fit into '{out}': a hundred names are taken.")


def _settings(options: DemoOptions, folder: Path, checkpoints: CheckpointFolders) -> Settings:
    settings: dict[str, dict[str, Any]] = {
        node: dict(values) for node, values in checkpoints.settings().items()
    }
    settings["logger_node"] = {"directory": str((folder / STORE).resolve())}
    settings["session_node"] |= {
        "folder": str(folder.resolve()),
        "arms": list(options.arms),
        "goals": list(options.goals),
        "episodes": options.episodes,
        "seed": options.seed,
    }
    return settings


def _run_session(
    options: DemoOptions, folder: Path, checkpoints: CheckpointFolders, command: Command
) -> Outcome:
    """Run the graph until the session is done, a node dies or the user stops it."""
    table = LiveTable(options.arms, options.goals, options.episodes)
    processes = system("sim", session=True, settings=_settings(options, folder, checkpoints))
    environment = dict(os.environ)
    environment.setdefault("ROS_DOMAIN_ID", str(free_domain()))
    environment |= additions(environment)

    def on_line(node: str, line: str) -> None:
        if node == "session_node" and line.startswith(SESSION_LINE):
            table.take(json.loads(line.removeprefix(SESSION_LINE)))

    with Supervisor(
        processes, logs=folder / "logs", environment=environment, on_line=on_line, command=command
    ) as supervisor:
        outcome = supervisor.wait(REDRAW_S)
        while outcome is None:
            table.redraw()
            outcome = supervisor.wait(REDRAW_S)
        killed = supervisor.stop()
    table.finish()
    if killed:
        return Outcome(1, f"{outcome.reason}; had to be killed: {', '.join(killed)}")
    return outcome


def _verify(store: Path) -> bool:
    """Whether every episode of the store is whole."""
    try:
        qsteer("verify", str(store))
    except QsteerError:
        return False
    return True


def _report(folder: Path, out: Path) -> Path:
    """Write the session's report, and a copy as the newest one of the output folder."""
    qsteer("report", str(folder))
    newest = out / REPORT
    partial = newest.with_suffix(".partial")
    partial.write_bytes((folder / REPORT).read_bytes())
    partial.replace(newest)
    return newest


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
