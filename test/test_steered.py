"""The decision: observation in, chunk and record out."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from parts import (
    FEATURES,
    FixedEncoder,
    make_critic,
    make_noise_policy,
    make_policy,
    observation,
    other,
)

from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.flow import Sampler, denoise, sample_noise
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.running import RunningChunk
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.random_matched import random_matched
from qsteer_ros.steering.settings import CHUNK_MODES, MODES, NOISE_MODES, SteeringSettings

WEIGHTS = {
    "zero": 0.5,
    "random_matched": 0.5,
    "qgf": 0.5,
    "qgf_jacobian": 0.5,
    "qpilots_u": 0.3,
    "qpilots_m": 0.3,
    "noisy_gradient": 0.05,
    "bptt": 0.5,
    "gradient_step": 0.05,
}
TILT = {"tilt_mean": 0.0, "tilt_std": 1.0}
CPU = torch.device("cpu")


def steered(
    mode: str = "qgf", *, critic: Critic | None = None, backend: str = "auto", **options: Any
) -> SteeredPolicy:
    settings = SteeringSettings(
        mode=mode, weight=WEIGHTS.get(mode, 0.0), num_samples=4, **TILT, **options
    )
    parts = FixedEncoder(), make_policy(), critic or make_critic()
    chooser = make_noise_policy()
    return SteeredPolicy(*parts, settings, backend=backend, noise_policy=chooser)


def frozen_chunk(seed: int) -> np.ndarray:
    """By the readable loop: what backend ``eager`` gives to the bit."""
    field = make_policy().condition(FEATURES)
    noise = sample_noise((1, 3, 2), seed=seed, device=CPU)
    return denoise(field, noise, denoising_steps=10).clamp(-1, 1)[0].numpy()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_a_finite_chunk_inside_the_bounds(mode: str) -> None:
    decision = steered(mode).decide(observation(), seed=3)
    assert (decision.chunk.shape, decision.chunk.dtype) == ((3, 2), np.float32)
    assert np.abs(decision.chunk).max() <= 1.0
    np.testing.assert_array_equal(decision.chunk, decision.record.chunk)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_chunk_bit_for_bit(mode: str) -> None:
    first = steered(mode).decide(observation(), seed=3)
    again = steered(mode).decide(observation(), seed=3)
    another = steered(mode).decide(observation(), seed=4)
    np.testing.assert_array_equal(first.chunk, again.chunk)
    assert not np.array_equal(first.chunk, another.chunk)


@pytest.mark.parametrize("mode", ["off", "zero"])
def test_a_mode_that_adds_nothing_is_the_frozen_policy_bit_for_bit(mode: str) -> None:
    found = steered(mode, backend="eager").decide(observation(), seed=3).chunk
    np.testing.assert_array_equal(found, frozen_chunk(seed=3))
    off = steered("off").decide(observation(), seed=3).chunk
    np.testing.assert_array_equal(steered(mode).decide(observation(), seed=3).chunk, off)


@pytest.mark.parametrize(
    "mode", [mode for mode in MODES if mode not in ("zero", *CHUNK_MODES, *NOISE_MODES)]
)
def test_weight_zero_is_the_frozen_policy_bit_for_bit(mode: str) -> None:
    idle = SteeringSettings(mode=mode, weight=0.0, **TILT)
    found = steered(backend="eager").with_settings(idle).decide(observation(), seed=3).chunk
    np.testing.assert_array_equal(found, frozen_chunk(seed=3))
    off, by_default = (
        steered().with_settings(choice).decide(observation(), seed=3).chunk
        for choice in (SteeringSettings(), idle)
    )
    np.testing.assert_array_equal(by_default, off)
    np.testing.assert_allclose(by_default, found, rtol=0, atol=1e-6)


def test_the_decision_is_the_chain_written_out() -> None:
    rule = qgf(make_critic().condition(FEATURES), weight=0.5)
    field = guide(make_policy().condition(FEATURES), rule)
    unclipped = denoise(field, sample_noise((1, 3, 2), seed=3, device=CPU), denoising_steps=10)[0]
    decision = steered("qgf", backend="eager").decide(observation(), seed=3)
    np.testing.assert_array_equal(decision.chunk, unclipped.clamp(-1, 1).numpy())
    np.testing.assert_array_equal(decision.record.tensors["chunk_unclipped"], unclipped.numpy())


def test_the_decision_follows_the_observation() -> None:
    dark, bright = (steered().decide(observation(b), seed=3).chunk for b in (0, 255))
    assert not np.array_equal(dark, bright)


@pytest.mark.parametrize("mode", MODES)
def test_the_record_reproduces_the_chunk_bit_for_bit(mode: str) -> None:
    first = steered(mode, twin_rate=1.0).decide(observation(7), seed=3)
    stored = first.record.extended(meta={"execute_steps": 3})
    record = DecisionRecord.decode(stored.encode())
    settings = SteeringSettings.from_json(record.meta["steering"])
    policy = SteeredPolicy(
        None,
        make_policy(),
        make_critic(),
        settings,
        sampler=Sampler(**record.meta["sampler"]),
        noise_policy=make_noise_policy(),
    )
    features = torch.from_numpy(record.tensors["features"].copy())[None]
    again = policy.act(features, seed=record.meta["seed"])
    np.testing.assert_array_equal(again.chunk, record.chunk)
    np.testing.assert_array_equal(again.record.tensors["noise"], record.tensors["noise"])


@pytest.mark.parametrize("mode", MODES)
def test_the_record_says_where_it_came_from(mode: str) -> None:
    meta = steered(mode).decide(observation(), seed=3).record.meta
    assert meta["mode"] == mode
    assert meta["stamp_ns"] == 100
    assert meta["robot_stamp_ns"] == 90
    assert meta["image_stamps_ns"] == {"front": 100}
    assert meta["control_dt_ns"] == 50_000_000
    assert meta["hashes"] == {
        "encoder": "e" * 64,
        "policy": "policy0",
        "critic": "critic1",
        "noise_policy": "noise4",
        "posterior_map": None,
    }
    assert set(meta["timings_ns"]) == {
        "encode", "condition", "denoise", "select", "judge", "total",
    }  # fmt: skip
    assert sum(meta["timings_ns"].values()) <= 2 * meta["timings_ns"]["total"]
    json.dumps(meta, allow_nan=False)


def test_off_asks_no_critic_and_says_nothing_about_values() -> None:
    policy = SteeredPolicy(None, make_policy(), None, SteeringSettings(twin_rate=1.0))
    record = policy.act(FEATURES, seed=3).record
    assert "q_after" not in record.meta
    assert record.meta["ratio"] is record.meta["q_before"] is None
    assert not any(name.startswith("step_") for name in record.tensors)


@pytest.mark.parametrize("mode", ["qgf", "qpilots_u"])
def test_the_steps_of_a_steered_chunk_are_recorded(mode: str) -> None:
    record = steered(mode).decide(observation(), seed=3).record
    steps = {name: rows for name, rows in record.tensors.items() if name.startswith("step_")}
    assert {rows.shape for rows in steps.values()} == {(10,)}
    asked = np.isfinite(steps["step_q"])
    assert asked.sum() == (10 if mode == "qgf" else 9)
    assert record.meta["ratio"] == pytest.approx(steps["step_ratio"][asked].mean())
    assert record.meta["cosine"] == pytest.approx(steps["step_cosine"][asked].mean())
    assert record.meta["q_before"] == pytest.approx(steps["step_q"][asked][0])


def test_the_gain_is_the_value_of_the_chunk_less_that_of_its_unguided_twin() -> None:
    policy = steered("qgf", twin_rate=1.0)
    record = policy.decide(observation(), seed=3).record
    twin = policy.with_settings(SteeringSettings()).decide(observation(), seed=3).chunk
    np.testing.assert_array_equal(record.tensors["chunk_unguided"], twin)
    q = make_critic().condition(FEATURES)
    after, before = (
        float(q(torch.from_numpy(record.tensors[name])[None]).amin(dim=0)[0])
        for name in ("chunk", "chunk_unguided")
    )
    assert record.meta["q_after"] == pytest.approx(after, abs=1e-6)
    assert record.meta["q_unguided"] == pytest.approx(before, abs=1e-6)
    assert record.meta["delta_q"] == record.meta["q_after"] - record.meta["q_unguided"] > 0


def test_asking_for_the_twin_does_not_change_the_chunk() -> None:
    np.testing.assert_array_equal(
        steered("qgf", twin_rate=1.0).decide(observation(), seed=3).chunk,
        steered("qgf").decide(observation(), seed=3).chunk,
    )
    assert "delta_q" not in steered("qgf").decide(observation(), seed=3).record.meta


def test_zero_gains_nothing() -> None:
    assert (
        steered("zero", twin_rate=1.0).decide(observation(), seed=3).record.meta["delta_q"] == 0.0
    )


def test_best_of_n_records_its_candidates_and_keeps_the_best() -> None:
    record = steered("best_of_n", twin_rate=1.0).decide(observation(), seed=3).record
    index = record.meta["candidate"]
    chunks = record.tensors["candidate_chunks"]
    assert chunks.shape == (4, 3, 2)
    values = make_critic().condition(FEATURES)(torch.from_numpy(chunks)).amin(dim=0)
    assert index == int(values.argmax())
    np.testing.assert_array_equal(record.chunk, chunks[index])
    np.testing.assert_array_equal(
        record.tensors["noise"], record.tensors["candidate_noise"][index]
    )
    np.testing.assert_array_equal(record.tensors["chunk_unguided"], chunks[0])
    gain = float(values[index]) - float(values[0])
    assert record.meta["delta_q"] == pytest.approx(gain, abs=1e-5)
    assert gain > 0.0


def test_the_first_candidate_starts_from_the_noise_of_every_other_mode() -> None:
    candidates = steered("best_of_n").decide(observation(), seed=3).record.tensors
    alone = steered("off").decide(observation(), seed=3).record.tensors
    np.testing.assert_array_equal(candidates["candidate_noise"][0], alone["noise"])
    distinct = {noise.tobytes() for noise in candidates["candidate_noise"]}
    assert len(distinct) == 4


def test_the_clipped_share_counts_what_the_final_clip_changed() -> None:
    record = steered("qgf").decide(observation(), seed=3).record
    outside = np.abs(record.tensors["chunk_unclipped"]) > 1.0
    assert record.meta["clipped_share"] == pytest.approx(outside.mean())


def test_the_seed_decides_noise_and_random_directions() -> None:
    rule = random_matched(qgf(make_critic().condition(FEATURES), weight=0.5), seed=3)
    field = guide(make_policy().condition(FEATURES), rule)
    noise = sample_noise((1, 3, 2), seed=3, device=CPU)
    expected = denoise(field, noise, denoising_steps=10)[0].clamp(-1, 1).numpy()
    found = steered("random_matched").decide(observation(), seed=3).chunk
    np.testing.assert_array_equal(found, expected)


def test_another_critic_steers_elsewhere_and_the_old_policy_still_works() -> None:
    old = steered("qgf")
    before = old.decide(observation(), seed=3)
    new = old.with_critic(make_critic(seed=5))
    after = new.decide(observation(), seed=3)
    assert not np.array_equal(before.chunk, after.chunk)
    assert after.record.meta["hashes"]["critic"] == "critic5"
    assert new.policy is old.policy
    np.testing.assert_array_equal(old.decide(observation(), seed=3).chunk, before.chunk)


@pytest.mark.parametrize("mode", MODES)
def test_a_caller_in_inference_mode_gets_the_same_chunk(mode: str) -> None:
    policy = steered(mode)
    expected = policy.decide(observation(), seed=3).chunk
    with torch.inference_mode():
        found = policy.decide(observation(), seed=3).chunk
        from_inference = policy.act(FEATURES.clone(), seed=3).chunk
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(from_inference, expected)


def test_deciding_leaves_no_gradient_on_any_weight() -> None:
    policy, critic = make_policy(), make_critic()
    policy.network.requires_grad_(True)
    critic.network.requires_grad_(True)
    settings = SteeringSettings(mode="qpilots_u", weight=0.3)
    SteeredPolicy(None, policy, critic, settings).act(FEATURES, seed=0)
    weights = [*policy.network.parameters(), *critic.network.parameters()]
    assert all(weight.grad is None for weight in weights)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("off", *NOISE_MODES)])
def test_a_mode_that_needs_a_critic_is_refused_without_one(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"'{mode}' needs a critic: none is loaded"):
        SteeredPolicy(None, make_policy(), None, SteeringSettings(mode=mode, weight=0.1))
    with pytest.raises(ConfigError, match=f"'{mode}' needs a critic: none is loaded"):
        steered(mode).with_critic(None)


def test_a_critic_for_another_policy_is_refused_and_the_old_one_stays() -> None:
    policy = steered("qgf")
    wrong = make_critic(interface=other(horizon=4))
    with pytest.raises(
        ConfigError, match=r"critic and the policy must have the same horizon.*Tra"
    ):
        policy.with_critic(wrong)
    assert policy.decide(observation(), seed=3).record.meta["hashes"]["critic"] == "critic1"


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (FixedEncoder(hash="f" * 64), "that is eeeeeeeeeeee, loaded is ffffffffffff"),
        (FixedEncoder(feature_names=("joint",)), "the encoder must give the 4 features that the"),
    ],
)
def test_an_encoder_of_another_kind_is_refused(encoder: FixedEncoder, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SteeredPolicy(encoder, make_policy(), None, SteeringSettings())


def test_a_policy_trained_on_true_poses_takes_any_encoder_of_its_features() -> None:
    policy: FlowPolicy = make_policy(interface=other(encoder_hash=None))
    SteeredPolicy(FixedEncoder(hash="f" * 64), policy, None, SteeringSettings())


def test_deciding_without_an_encoder_is_refused() -> None:
    policy = SteeredPolicy(None, make_policy(), None, SteeringSettings())
    with pytest.raises(ConfigError, match="needs an encoder: there is none"):
        policy.decide(observation(), seed=0)


def test_features_that_are_not_finite_are_refused() -> None:
    broken = FEATURES.clone()
    broken[0, 2] = float("nan")
    with pytest.raises(DataError, match=r"features must be finite: entry \[0, 2\] is nan. Check"):
        steered().act(broken, seed=0)


@pytest.mark.parametrize("denoising_steps", [1, 10])
def test_a_chunk_that_is_not_finite_is_refused(denoising_steps: int) -> None:
    # In the last step an infinity stays one, which clipping would turn into full speed.
    policy = dataclasses.replace(steered("off"), sampler=Sampler(denoising_steps))
    policy.policy.network.head.bias[0] = float("inf")
    with pytest.raises(DataError, match="the denoised chunk must be finite"):
        policy.act(FEATURES, seed=0)


def test_values_that_are_not_finite_are_refused() -> None:
    critic = make_critic()
    critic.network.biases[-1][1] = float("inf")
    with pytest.raises(
        DataError, match=r"the critic's values must be finite: 1 of 2 are not. Nothing was sampled"
    ):
        steered("zero", critic=critic).act(FEATURES, seed=0)


def test_two_observations_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"features of one observation, \(1, F\): got \(2, 4\)"):
        steered().act(FEATURES.expand(2, -1), seed=0)


class Silent:
    """A field that must not be asked."""

    def condition(self, features: torch.Tensor) -> Any:
        def velocity(noisy_chunk: torch.Tensor, flow_time: torch.Tensor) -> torch.Tensor:
            raise AssertionError("something was sampled")

        return velocity


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "off"])
def test_a_critic_that_answers_nonsense_is_refused_before_anything_is_sampled(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = steered(mode)
    monkeypatch.setattr(FlowPolicy, "condition", Silent.condition)
    policy.critic.network.biases[-1][1] = float("nan")
    with pytest.raises(DataError, match="Nothing was sampled"):
        policy.act(FEATURES, seed=0)
    monkeypatch.setattr(Critic, "condition", lambda *_: lambda chunk: chunk.sum(dim=2))
    with pytest.raises(ConfigError, match=r"one value per member and chunk, \(E, \d+\): got"):
        policy.act(FEATURES, seed=0)


def test_without_statistics_of_the_values_qpilots_m_is_refused_at_once() -> None:
    settings = SteeringSettings(mode="qpilots_m", weight=0.1)
    with pytest.raises(ConfigError, match="'tilt_mean' and 'tilt_std' are not set"):
        SteeredPolicy(None, make_policy(), make_critic(), settings)


RUNNING = RunningChunk(np.linspace(-0.9, 0.9, 6, dtype=np.float32).reshape(3, 2), 1, 1)


@pytest.mark.parametrize("mode", MODES)
def test_committed_actions_come_out_as_they_run_bit_for_bit(mode: str) -> None:
    decision = steered(mode).decide(observation(), seed=3, running=RUNNING)
    np.testing.assert_array_equal(decision.chunk[0], RUNNING.chunk[1])
    afresh = steered(mode).decide(observation(), seed=3).chunk
    assert not np.array_equal(decision.chunk, afresh)


@pytest.mark.parametrize("mode", ["off", "qgf"])
def test_a_continued_chunk_is_reproduced_from_its_record(mode: str) -> None:
    first = steered(mode, twin_rate=1.0).decide(observation(), seed=3, running=RUNNING)
    stored = first.record.extended(meta={"execute_steps": 3})
    record = DecisionRecord.decode(stored.encode())
    again = steered(mode, twin_rate=1.0).act(
        torch.from_numpy(record.tensors["features"].copy())[None],
        seed=record.meta["seed"],
        running=RunningChunk(record.tensors["running_chunk"], **record.meta["running"]),
    )
    np.testing.assert_array_equal(again.chunk, first.chunk)


@pytest.mark.parametrize(("elapsed", "committed"), [(0, 0), (4, 0), (1, 3), (1, -1)])
def test_a_running_chunk_that_promises_too_much_is_refused(elapsed: int, committed: int) -> None:
    with pytest.raises(ConfigError, match=r"'elapsed' must be|'committed' must be"):
        RunningChunk(RUNNING.chunk, elapsed, committed)


@pytest.mark.parametrize(
    "mode", [mode for mode in MODES if mode not in ("off", "zero", "best_of_n")]
)
def test_the_displacement_of_a_chunk_is_bounded(mode: str) -> None:
    free = steered(mode, twin_rate=1.0).decide(observation(), seed=3)
    far = free.record.meta["displacement"]
    assert far > 0.0
    near = steered(mode, max_displacement=far / 2).decide(observation(), seed=3)
    assert near.record.meta["displacement"] == pytest.approx(far / 2, rel=1e-4)
    assert near.record.meta["displacement_kept"] == pytest.approx(0.5, rel=1e-4)


def test_candidates_that_lie_too_far_from_the_first_are_not_chosen_and_not_blended() -> None:
    for seed in range(20):
        free = steered("best_of_n", twin_rate=1.0).decide(observation(), seed=seed).record
        if free.meta["candidate"] != 0:
            break
    far = free.meta["displacement"]
    near = steered("best_of_n", max_displacement=0.99 * far).decide(observation(), seed=seed)
    meta = near.record.meta
    assert meta["displacement"] <= 0.99 * far
    assert 1 <= meta["candidates_near"] < 4
    candidates = near.record.tensors["candidate_chunks"]
    np.testing.assert_array_equal(near.chunk, candidates[meta["candidate"]])


def test_gradient_steps_leave_committed_actions_alone_and_judge_with_them() -> None:
    decision = steered("gradient_step", twin_rate=1.0).decide(
        observation(), seed=3, running=RUNNING
    )
    meta = decision.record.meta
    assert meta["ascent_steps_taken"] > 0
    assert meta["delta_q"] > 0.0
    moved = decision.chunk - decision.record.tensors["chunk_unguided"]
    np.testing.assert_array_equal(moved[0], 0.0)
    length = meta["ascent_steps_taken"] * WEIGHTS["gradient_step"]
    assert np.linalg.norm(moved) == pytest.approx(length, rel=0.05)  # all of it in free rows


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=r"'seed' must be in \[0, 2\^63\): got"):
        steered().act(FEATURES, seed=seed)


def test_clips_by_steering_and_by_the_policy_add_up() -> None:
    strong = steered("qgf", twin_rate=1.0)
    strong = strong.with_settings(dataclasses.replace(strong.settings, weight=50.0))
    meta = strong.decide(observation(), seed=3).record.meta
    assert meta["clipped_by_steering"] > 0.0
    total = meta["clipped_by_steering"] + meta["clipped_by_policy"]
    assert total == pytest.approx(meta["clipped_share"])
    alone = steered("zero", twin_rate=1.0).decide(observation(), seed=3).record.meta
    assert alone["clipped_by_steering"] == 0.0
