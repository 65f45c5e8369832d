"""Episodes in process: the chain moves the arm, links can be replaced, the seed decides."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("mujoco") is None or find_spec("ogbench") is None:
    pytest.skip("needs the simulator's packages", allow_module_level=True)

from parts import make_noise_policy, make_posterior_map

from qsteer_ros import resources
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation.evaluate import evaluate, table
from qsteer_ros.evaluation.evaluation_settings import EvaluationSettings, from_options, parse_arm
from qsteer_ros.evaluation.rollout import Links, Rollout
from qsteer_ros.motion.controller import ChunkController
from qsteer_ros.motion.decoder import make_decoder
from qsteer_ros.motion.kinematics import Kinematics
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.policies.encoder import Encoder
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.replay.arms import MODES, WEIGHTS
from qsteer_ros.sim.world import World

ROBOT = RobotFile.load("robot_ur5e_sim.yaml")


@pytest.fixture(scope="module")
def world():
    made = World(goal=1, seed=0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def parts():
    folder = resources.find("checkpoints")
    return (
        Encoder.load(folder / "encoder", ROBOT),
        FlowPolicy.load(folder / "policy"),
        Critic.load(folder / "critic_goal1"),
    )


def run(
    world,
    parts,
    arm: str,
    links: Links,
    *,
    seed: int = 0,
    max_steps: int = 200,
    execute_steps: int = 5,
    rtc: bool = False,
):
    kinematics = Kinematics(ROBOT)
    controller = ChunkController(ROBOT, make_decoder(ROBOT, kinematics), execute_steps)
    policy = SteeredPolicy(*parts, parse_arm(arm))
    rollout = Rollout(world, controller, kinematics, links)
    return rollout.episode(policy, goal=1, seed=seed, max_steps=max_steps, rtc=rtc)


@pytest.mark.parametrize(
    "links",
    [Links(), Links(true_pose=True), Links(latency_ns=0, true_pose=True), Links(native=True)],
    ids=["everything real", "true pose", "no latency", "native control"],
)
def test_the_steered_policy_reaches_the_goal_through_the_whole_chain(world, parts, links) -> None:
    results = [run(world, parts, "qgf", links, seed=seed) for seed in (0, 1, 2)]
    assert sum(r.success for r in results) >= 2
    assert all(r.refused == 0 for r in results)
    assert all(0.0 < r.ratio < 0.5 for r in results)
    assert all(r.steps == 200 or r.success for r in results)


def test_the_same_seed_gives_the_same_episode(world, parts) -> None:
    one = run(world, parts, "qgf", Links(), seed=4, max_steps=20)
    run(world, parts, "off", Links(true_pose=True), seed=5, max_steps=20)
    assert run(world, parts, "qgf", Links(), seed=4, max_steps=20) == one


def test_mode_zero_moves_like_mode_off(world, parts) -> None:
    off = run(world, parts, "off", Links(true_pose=True), max_steps=15)
    qpos = world.qpos
    zero = run(world, parts, "zero", Links(true_pose=True), max_steps=15)
    np.testing.assert_array_equal(world.qpos, qpos)
    assert (off.steps, off.success) == (zero.steps, zero.success)


def test_the_encoder_sees_the_cube_and_a_moved_camera_moves_what_it_sees(world, parts) -> None:
    seen = run(world, parts, "off", Links(), seed=2, max_steps=5)
    moved = run(world, parts, "off", Links(camera_shift_m=(0.0, 0.1, 0.0)), seed=2, max_steps=5)
    assert seen.cube_error_mm < 15.0
    assert moved.cube_error_mm > seen.cube_error_mm


def test_an_episode_stops_when_time_is_up(world, parts) -> None:
    result = run(world, parts, "off", Links(true_pose=True), seed=1, max_steps=7)
    assert result.steps <= 7
    assert result.chunks == -(-result.steps // 5)


def test_arms_have_tuned_weights_unless_they_name_one() -> None:
    assert parse_arm("qgf").weight == WEIGHTS["qgf"]
    assert parse_arm("qgf:0.01").weight == 0.01
    assert parse_arm("best_of_n:4").num_samples == 4
    assert parse_arm("off").weight == 0.0
    with pytest.raises(ConfigError, match="an arm must be one of"):
        parse_arm("magic")


def test_a_report_counts_every_arm_and_goal(tmp_path: Path) -> None:
    settings = EvaluationSettings(
        arms=("off", "qgf"), goals=(1, 2), episodes=1, max_steps=5, true_pose=True
    )
    report = evaluate(settings, tmp_path / "report.json")
    assert [(row["arm"], row["goal"]) for row in report["summary"]] == [
        ("off", 1),
        ("qgf", 1),
        ("off", 2),
        ("qgf", 2),
    ]
    assert len(report["episodes"]) == 4
    assert json.loads((tmp_path / "report.json").read_text())["summary"] == report["summary"]
    assert len(table(report).splitlines()) == 5


def test_options_become_settings() -> None:
    options = {"arms": "off, qgf:0.02", "goals": "1,3", "no_latency": True, "latency_ms": 60.0}
    settings = from_options(options)
    assert settings.arms == ("off", "qgf:0.02")
    assert settings.goals == (1, 3)
    assert settings.latency_ms == 0.0
    with pytest.raises(ConfigError, match="'goals' must be numbers"):
        from_options({**options, "goals": "one"})
    with pytest.raises(ConfigError, match="'episodes' must be at least 1: got 0"):
        EvaluationSettings(episodes=0)


def test_real_time_chunking_continues_the_running_chunk(world, parts, monkeypatch) -> None:
    decisions = []
    decide = SteeredPolicy.act

    def heard(self, features, **options):
        decisions.append((options["running"], decide(self, features, **options)))
        return decisions[-1][1]

    monkeypatch.setattr(SteeredPolicy, "act", heard)
    links = Links(true_pose=True, latency_ns=60_000_000)
    result = run(world, parts, "qgf", links, max_steps=12, execute_steps=2, rtc=True)
    assert decisions[0][0] is None
    for (_, before), (running, after) in itertools.pairwise(decisions):
        assert (running.elapsed, running.committed) == (2, 2)
        np.testing.assert_array_equal(running.chunk, before.chunk)
        np.testing.assert_array_equal(after.chunk[:2], before.chunk[2:4])
    jumps = [
        np.abs(after.chunk[1:3] - before.chunk[3:5]).max()
        for (_, before), (_, after) in itertools.pairwise(decisions)
    ]
    assert result.seam_jump == pytest.approx(np.mean(jumps))


def test_real_time_chunking_makes_the_seam_smaller(world, parts) -> None:
    links = Links(true_pose=True)
    jumps = [
        run(world, parts, "qgf", links, max_steps=30, execute_steps=2, rtc=rtc).seam_jump
        for rtc in (False, True)
    ]
    assert 0.0 < jumps[1] < 0.75 * jumps[0]


def test_chunks_that_do_not_overlap_have_no_seam_and_cannot_be_continued(world, parts) -> None:
    links = Links(true_pose=True)
    assert run(world, parts, "off", links, max_steps=12).seam_jump is None
    with pytest.raises(ConfigError, match="'execute_steps' must be below the 5 actions"):
        run(world, parts, "off", links, rtc=True)


def test_options_reach_every_arm() -> None:
    options = {
        "arms": "qgf,best_of_n,best_of_n:3",
        "goals": "1",
        "set": ["estimate=chain", "num_samples=8", "ratio=0.1"],
        "integrator": "heun",
        "time_power": 0.5,
        "rtc": True,
        "calibrated": True,
    }
    settings = from_options(options)
    assert (settings.sampler.integrator, settings.sampler.time_power) == ("heun", 0.5)
    assert settings.rtc
    assert settings.calibrated
    first, eight, three = (parse_arm(arm, settings.steering) for arm in settings.arms)
    assert (first.estimate, first.ratio, first.weight) == ("chain", 0.1, WEIGHTS["qgf"])
    assert (eight.num_samples, three.num_samples) == (8, 3)
    with pytest.raises(ConfigError, match="'integrator' must be one of"):
        from_options({**options, "integrator": "rk4"})
    with pytest.raises(ConfigError, match="'ratio' must be"):
        from_options({**options, "set": ["ratio=-1"]})


def test_every_mode_runs_with_its_default_and_with_its_calibrated_weight() -> None:
    arms = tuple(mode for mode in MODES if mode not in ("best_of_n", "dsrl"))
    settings = EvaluationSettings(
        arms=arms, episodes=1, max_steps=5, true_pose=True, calibrated=True
    )
    assert [row["arm"] for row in evaluate(settings)["summary"]] == list(arms)
    bad = EvaluationSettings(
        arms=("qgf",), episodes=1, true_pose=True, calibrated=True, steering={"estimate": "noisy"}
    )
    with pytest.raises(ConfigError, match="'estimate' was euler, now it is noisy"):
        evaluate(bad)


def test_arms_get_the_noise_policy_of_their_goal_and_the_posterior_map(tmp_path):
    policy = FlowPolicy.load(resources.find("checkpoints/policy"))
    made = make_noise_policy(policy).save(tmp_path / "noise_goal2")
    options = {"episodes": 1, "max_steps": 5, "true_pose": True, "goals": (2,)}
    settings = EvaluationSettings(
        arms=("off", "dsrl", "qpilots_m:0.1"),
        noise_policy=str(tmp_path / "noise_goal{goal}"),
        posterior_map=str(make_posterior_map(policy).save(tmp_path / "map")),
        **options,
    )
    report = evaluate(settings)
    assert [row["arm"] for row in report["summary"]] == list(settings.arms)
    assert report["settings"]["noise_policy"].endswith("noise_goal{goal}")
    with pytest.raises(ConfigError, match=r"noise_goal1' must"):
        evaluate(replace(settings, goals=(1,)))
    with pytest.raises(ConfigError, match="must be a posterior_map checkpoint"):
        evaluate(replace(settings, posterior_map=str(made)))
    with pytest.raises(ConfigError, match="arm dsrl needs a noise policy: none is named"):
        EvaluationSettings(arms=("dsrl",))


def test_a_calibrated_weight_is_refused_with_a_sampler_that_it_was_not_found_with() -> None:
    settings = EvaluationSettings(
        arms=("bptt",), episodes=1, true_pose=True, calibrated=True, denoising_steps=3
    )
    with pytest.raises(ConfigError, match="'denoising_steps' was 10, now it is 3"):
        evaluate(settings)
