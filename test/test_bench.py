"""The benchmark: what is asked for, in which order it is done, and what the table says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.evaluation.bench import write_table
from qsteer_ros.evaluation.bench_jobs import Job, jobs_of
from qsteer_ros.evaluation.bench_run import run_jobs
from qsteer_ros.evaluation.bench_settings import METHODS, BenchSettings, Recipes, Task
from qsteer_ros.evaluation.bench_table import Results, markdown
from qsteer_ros.evaluation.bootstrap import interval, stratified_means

FILE = """
defaults:
  {task: 2, execute: 5, bc: {steps: 100, horizon: 5}, critic: {steps: 50}, qgf: {weight: 0.1}}
environments: {scene: {task: 1, critic: {steps: 70, expectile: 0.8}}}
quick: {bc: {steps: 7}}
"""


@pytest.fixture
def recipes(tmp_path: Path) -> Recipes:
    return of(tmp_path)


def of(folder: Path, *words: str, quick: bool = False) -> Recipes:
    path = folder / "recipes.yaml"
    path.write_text(FILE)
    return Recipes.read(path, words=words, quick=quick)


def settings(out: Path, **changes: Any) -> BenchSettings:
    made = BenchSettings(
        tasks=(Task("cube-single", 2), Task("cube-single", 4)),
        methods=("off", "qgf", "qpilots_m", "dsrl"),
        seeds=(0, 1),
        episodes=3,
        out=out / "out",
        data=out / "data",
        recipes=of(out),
    )
    return replace(made, **changes)


def test_an_environment_overrides_the_defaults_and_words_override_both(tmp_path: Path) -> None:
    found = of(tmp_path, "critic.steps=5", "scene/qgf.weight=0.3", "bc.hidden=8,8")
    assert found.of("scene")["critic"] == {"steps": 5, "expectile": 0.8}
    assert found.of("scene")["qgf"] == {"weight": 0.3}
    assert found.of("cube-single")["qgf"] == {"weight": 0.1}
    assert found.of("cube-single")["bc"] == {"steps": 100, "horizon": 5, "hidden": "8,8"}
    assert of(tmp_path, quick=True).of("scene")["bc"]["steps"] == 7
    assert of(tmp_path, "bc.steps=9", quick=True).of("scene")["bc"]["steps"] == 9


def test_a_task_may_be_left_to_the_recipe_or_named(recipes: Recipes) -> None:
    assert recipes.task("scene") == Task("scene", 1)
    assert recipes.task("puzzle-3x3") == Task("puzzle-3x3", 2)
    assert recipes.task("puzzle-3x3:4") == recipes.task("puzzle-3x3-task4")
    assert str(recipes.task("cube-double:1")) == "cube-double-task1"
    with pytest.raises(ConfigError, match="a task must be written"):
        recipes.task("cube single")


@pytest.mark.parametrize("word", ["steps=3", "bc.steps", "nonsense.steps=3", "/bc.steps=3"])
def test_a_word_that_names_no_section_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(ConfigError, match=r"SECTION\.KEY=VALUE"):
        of(tmp_path, word)


def test_a_file_with_another_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("defaults: {bcc: {steps: 3}}")
    with pytest.raises(ConfigError, match="got 'bcc'"):
        Recipes.read(path)


def test_the_recipes_of_the_package_fit_every_program(tmp_path: Path) -> None:
    recipes = Recipes.read()
    names = ("cube-single", "cube-double", "scene", "puzzle-3x3")
    tasks = tuple(recipes.task(name) for name in names)
    jobs = jobs_of(settings(tmp_path, tasks=tasks, methods=tuple(METHODS), recipes=recipes))
    assert len(jobs) == 4 + 2 * 4 * (5 + 9)


def test_a_setting_that_a_program_does_not_know_is_refused_before_anything_is_done(
    tmp_path: Path,
) -> None:
    recipes = of(tmp_path, "critic.expectil=0.9")
    with pytest.raises(ConfigError, match="no setting 'expectil'"):
        jobs_of(settings(tmp_path, recipes=recipes))


def test_what_depends_on_no_reward_is_trained_once_for_all_tasks(tmp_path: Path) -> None:
    jobs = {job.name: job for job in jobs_of(settings(tmp_path))}
    kinds = [name.split("/")[0] for name in jobs]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert counts == {
        "data": 1, "bc": 2, "posterior-map": 2, "critic": 4, "dsrl": 4, "evaluate": 16,
    }  # fmt: skip
    evaluation = jobs["evaluate/cube-single-task4/seed1/qpilots_m"]
    assert set(evaluation.needs) == {
        "bc/cube-single/seed1",
        "critic/cube-single-task4/seed1",
        "posterior-map/cube-single/seed1",
    }
    order = list(jobs)
    for job in jobs.values():
        assert all(order.index(need) < order.index(job.name) for need in job.needs)
    critic = jobs["critic/cube-single-task4/seed1"].words
    assert {"task=4", "seed=1", "steps=50", "--resume"} <= set(critic)
    folder = tmp_path / "out" / "checkpoints"
    dsrl = jobs["dsrl/cube-single-task4/seed1"]  # learns from the critic that steers the others
    assert set(dsrl.needs) == {
        "data/cube-single", "bc/cube-single/seed1", "critic/cube-single-task4/seed1",
    }  # fmt: skip
    assert f"critic={folder / 'cube-single-task4' / 'seed1' / 'critic'}" in dsrl.words
    assert f"policy={folder / 'cube-single' / 'seed1' / 'bc'}" in dsrl.words


def test_methods_are_judged_on_the_same_checkpoints_and_initial_states(tmp_path: Path) -> None:
    jobs = [job for job in jobs_of(settings(tmp_path)) if job.batch.endswith("task2/seed0")]
    specs = [json.loads(job.words[-1]) for job in jobs]
    assert [spec["method"] for spec in specs] == ["off", "qgf", "qpilots_m", "dsrl"]
    for key in ("seed", "block", "episodes", "execute"):
        assert len({spec[key] for spec in specs}) == 1
    for key in ("bc", "critic", "data"):
        assert len({spec["places"][key] for spec in specs}) == 1


class Launcher:
    """Programs that write their record, fail, or wait."""

    def __init__(self, code: dict[str, str] | None = None) -> None:
        self.started: list[list[str]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.code = code or {}

    def __call__(self, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        self.started.append(list(words))
        lines = [
            f"import pathlib; p = pathlib.Path({word!r}); "
            "p.parent.mkdir(parents=True, exist_ok=True); p.write_text('{\"made\": {}}')"
            for word in words
        ]
        code = self.code.get(words[0], "\n".join(lines))
        with log.open("wb") as output:
            command = [sys.executable, "-S", "-c", code]
            self.processes.append(subprocess.Popen(command, stdout=output, stderr=output))
        return self.processes[-1]


def job(folder: Path, name: str, *needs: str, batch: str = "", slots: int = 1) -> Job:
    record = folder / f"{name}.json"
    return Job(name, (str(record),), needs, record, {}, 1.0, slots, batch)


def run(jobs: list[Job], folder: Path, launch: Launcher, workers: int = 2) -> None:
    run_jobs(jobs, workers=workers, logs=folder / "logs", launch=launch)


def test_jobs_wait_for_what_they_need_and_are_not_done_twice(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a"), job(tmp_path, "b", "a"), job(tmp_path, "c", "b", "a")]
    launch = Launcher()
    run(jobs, tmp_path, launch)
    assert [Path(words[0]).stem for words in launch.started] == ["a", "b", "c"]
    again = Launcher()
    run([*jobs, job(tmp_path, "d", "c")], tmp_path, again)
    assert [Path(words[0]).stem for words in again.started] == ["d"]


def test_evaluations_that_are_ready_together_share_a_process(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "slow"),
        job(tmp_path, "e0", batch="e"),
        job(tmp_path, "e1", batch="e"),
        job(tmp_path, "e2", "slow", batch="e"),
        job(tmp_path, "f0", batch="f"),
    ]
    launch = Launcher()
    run(jobs, tmp_path, launch, workers=1)
    stems = [[Path(word).stem for word in words] for words in launch.started]
    assert stems == [["slow"], ["e0", "e1", "e2"], ["f0"]]


def test_a_job_of_several_processes_runs_alone(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "wide", slots=2), job(tmp_path, "a"), job(tmp_path, "b")]
    launch = Launcher({str(jobs[0].record): "raise SystemExit(3)"})
    with pytest.raises(DataError, match="wide"):
        run(jobs, tmp_path, launch)
    assert [Path(words[0]).stem for words in launch.started] == ["wide", "a", "b"]


def test_a_failure_names_its_reason_and_stops_only_what_needs_it(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a"), job(tmp_path, "b", "a"), job(tmp_path, "c")]
    launch = Launcher({str(jobs[0].record): "raise SystemExit('qsteer train: no data')"})
    with pytest.raises(DataError, match=r"a \(qsteer train: no data; see .*1 jobs wait"):
        run(jobs, tmp_path, launch)
    assert jobs[2].record.exists()
    assert not jobs[1].record.exists()
    run(jobs, tmp_path, Launcher())  # the cause is repaired
    assert jobs[1].record.exists()


def test_a_step_that_was_done_with_other_settings_is_not_taken_for_this_one(
    tmp_path: Path,
) -> None:
    first = replace(job(tmp_path, "bc"), made={"steps": 100})
    first.record.write_text(json.dumps({"made": {"steps": 100}}))
    assert first.done()
    with pytest.raises(ConfigError, match="'steps' was 100, now it is 200"):
        replace(first, made={"steps": 200}).done()


def test_ctrl_c_lets_trainings_save_ends_evaluations_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
    note, ready = tmp_path / "interrupted", [tmp_path / "ready0", tmp_path / "ready1"]
    train = (
        f"import time, pathlib\ntry:\n    pathlib.Path({str(ready[0])!r}).touch()\n"
        "    time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    pathlib.Path({str(note)!r}).write_text('saved')"
    )
    evaluation = (
        "import pathlib, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"pathlib.Path({str(ready[1])!r}).touch(); time.sleep(60)"
    )
    jobs = [
        job(tmp_path, "train"),
        job(tmp_path, "evaluate", batch="e"),
        job(tmp_path, "after", "train"),
    ]
    launch = Launcher({str(jobs[0].record): train, str(jobs[1].record): evaluation})

    def interrupt() -> None:
        while not all(path.exists() for path in ready):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(jobs, tmp_path, launch)
    assert note.read_text() == "saved"
    assert [process.poll() for process in launch.processes] == [0, -signal.SIGTERM]


def record(out: Path, task: int, seed: int, method: str, solved: list[bool], **rest: Any) -> None:
    made = {"suite": "scene", "task": task, "seed": seed, "method": method, "block": 0}
    path = out / "results" / f"scene-task{task}" / f"seed{seed}" / f"{method}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"made": made, "solved": solved, **rest}))


def test_the_table_is_made_of_the_results_that_are_there(tmp_path: Path) -> None:
    record(tmp_path, 1, 0, "off", [False, False, False, False])
    record(tmp_path, 1, 1, "off", [False, False, False, True])
    record(tmp_path, 1, 0, "qgf", [True, True, True, True], steering={"weight": 0.04})
    record(tmp_path, 1, 1, "qgf", [True, True, True, True], steering={"weight": 0.05})
    record(tmp_path, 2, 0, "off", [True, False, True, False])
    record(tmp_path, 2, 1, "off", [True, False, True, False])
    text = write_table(tmp_path, command="qsteer bench ogbench")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| method | scene-task1 | scene-task2 | average |"
    assert rows[2].startswith("| off | 12 [0, 38] | **50 [")
    assert rows[2].endswith("] |")
    assert rows[3] == "| qgf | **100 [100, 100]** | - | 100 [100, 100] |"
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["tasks"]["scene-task1"]["off"]["runs"] == [0.0, 0.25]
    assert found["tasks"]["scene-task1"]["qgf"]["weights"] == [0.04, 0.05]
    assert found["average"]["off"]["mean"] == pytest.approx((0.125 + 0.5) / 2)
    assert "<svg" in (tmp_path / "success.svg").read_text()


def test_results_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    record(tmp_path, 1, 0, "off", [False, True])
    record(tmp_path, 1, 0, "qgf", [False, True, True])
    with pytest.raises(DataError, match="same number of episodes"):
        Results.read(tmp_path / "results")
    path = tmp_path / "results" / "scene-task1" / "seed0" / "qgf.json"
    path.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Results.read(tmp_path / "results")
    with pytest.raises(DataError, match="none yet"):
        Results.read(tmp_path / "elsewhere")


def test_methods_keep_their_order_whatever_the_files_are_called(tmp_path: Path) -> None:
    for method in ("qvgm", "best_of_n", "off"):
        record(tmp_path, 1, 0, method, [True])
    rows = markdown(Results.read(tmp_path / "results")).splitlines()[2:5]
    assert [row.split("|")[1].strip() for row in rows] == ["off", "best_of_n", "qvgm"]


def test_the_interval_of_one_stratum_is_that_of_the_normal_approximation() -> None:
    values = np.repeat([0.0, 1.0], [1200, 400])
    low, high = interval(stratified_means([values]))
    half = 1.96 * np.sqrt(0.25 * 0.75 / 1600)
    assert low == pytest.approx(0.25 - half, abs=0.002)
    assert high == pytest.approx(0.25 + half, abs=0.002)


def test_the_interval_is_about_episodes_and_not_about_differences_between_runs() -> None:
    assert interval(stratified_means([np.zeros(50), np.ones(50)])) == (0.5, 0.5)
    mixed = np.tile([0.0, 1.0], 25)
    low, high = interval(stratified_means([mixed, mixed]))
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.012)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.012)


def test_every_stratum_counts_the_same() -> None:
    means = stratified_means([np.ones(2), np.zeros(1000)], resamples=10)
    np.testing.assert_array_equal(means, np.full(10, 0.5))
    with pytest.raises(DataError, match="at least one number"):
        stratified_means([[1.0], []])
