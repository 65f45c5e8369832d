"""`qsteer calibrate`, from checkpoints and a store to the file beside the critic."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from logged_features import feature_rows, log
from parts import INTERFACE, make_critic, make_policy, other

from qsteer_ros import cli
from qsteer_ros.critics.calibration import FILE, Calibration, ModeCalibration, Observations, Point
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation import calibrate as calibrate_module
from qsteer_ros.evaluation.calibrate import (
    DEFAULT_RATIO,
    DRIFT_MATCHED_RATIO,
    CalibrationSettings,
    calibrate,
    from_options,
)
from qsteer_ros.evaluation.calibration_figure import FIGURE, calibration_figure
from qsteer_ros.evaluation.calibration_text import doubts
from qsteer_ros.evaluation.sweep import FACTORS
from qsteer_ros.flow import Sampler, sample_noise
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.steering.settings import FIELD_MODES, SteeringSettings

COUNT = 40


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the rest; one test draws."""
    monkeypatch.setattr(calibrate_module, "calibration_figure", lambda modes: " ".join(modes))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for number in range(2):
        log(folder, f"e{number}", feature_rows(COUNT // 2, seed=number), goal=1 + number)
    return folder


@pytest.fixture
def critic(tmp_path: Path) -> Path:
    return make_critic().save(tmp_path / "critic")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy().save(tmp_path_factory.mktemp("made") / "policy")


def settings(critic: Path, policy: Path, store: Path, **entries: object) -> CalibrationSettings:
    given = {"modes": ("qgf",), "sampler": Sampler(4), **entries}
    return CalibrationSettings(str(critic), str(policy), store, **given)  # type: ignore[arg-type]


def run(critic: Path, policy: Path, store: Path, *more: str) -> int:
    parts = ["--critic", str(critic), "--policy", str(policy), "--episodes", str(store)]
    return cli.main(["calibrate", *parts, "--denoising-steps", "4", *more])


def load(critic: Path, policy: Path) -> Calibration:
    hashes = (Critic.load(critic).hash, FlowPolicy.load(policy).hash)
    return Calibration.load(critic, critic=hashes[0], policy=hashes[1])


def test_the_command_writes_file_and_picture_and_prints_the_curve(
    critic: Path,
    policy: Path,
    store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["qsteer", "calibrate", "--ratio", "0.1"])
    assert run(critic, policy, store, "--modes", "qgf,qpilots_u", "--ratio", "0.1") == 0
    said = capsys.readouterr().out
    assert f"{COUNT} observations of 2 episodes" in said
    made = load(critic, policy)
    for mode in ("qgf", "qpilots_u"):
        entry = made.mode(mode)
        assert entry.found.ratio == pytest.approx(0.1, rel=0.01)
        assert len(entry.curve) == len(FACTORS)
        assert entry.sampler["denoising_steps"] == 4
        assert entry.command == "qsteer calibrate --ratio 0.1"
        assert (entry.observations.episodes, entry.observations.count) == (2, COUNT)
        assert f"{mode}: weight {entry.weight:g} gives ratio {entry.found.ratio:.3g}" in said
        assert said.count(f">{entry.weight:9.4g}") == 1
    assert "the critic's own opinion" in said
    assert (critic / FIGURE).read_text() == "qgf qpilots_u"
    assert not list(critic.glob("*.partial"))


def test_the_ratio_is_the_one_a_policy_reports_when_it_acts(
    critic: Path, policy: Path, store: Path
) -> None:
    """One decision at a time, by the code that moves the arm, instead of one batch."""
    found = calibrate(settings(critic, policy, store))
    entry = found.made.mode("qgf")
    steering = SteeringSettings(mode="qgf", weight=entry.weight)
    acting = SteeredPolicy(
        None, FlowPolicy.load(policy), Critic.load(critic), steering, sampler=Sampler(4)
    )
    ratios = [
        acting.act(row.unsqueeze(0), seed=seed).record.meta["ratio"]
        for row in found.observed.features
        for seed in range(10)
    ]
    assert torch.tensor(ratios).median().item() == pytest.approx(DEFAULT_RATIO, rel=0.25)


def test_values_are_those_of_the_frozen_policys_chunks(
    critic: Path, policy: Path, store: Path
) -> None:
    found = calibrate(settings(critic, policy, store, steering={"rho": 0.7}, seed=3))
    rows, shape = found.observed.features, (COUNT, INTERFACE.horizon, INTERFACE.action_dim)
    noise = sample_noise(shape, seed=3, device=torch.device("cpu"))
    field = FlowPolicy.load(policy).condition(rows)
    chunks = Sampler(4).denoise(field, noise).clamp(-1, 1)
    members = Critic.load(critic).condition(rows)(chunks)
    for reduction, rho, q in (
        ("min", 0.0, members.amin(dim=0)),
        ("mean", 0.0, members.mean(dim=0)),
        ("pessimistic", 0.7, members.mean(dim=0) - 0.7 * members.std(dim=0, unbiased=False)),
    ):
        entry = found.made.statistics(reduction, rho=rho)
        assert entry.q_mean == pytest.approx(float(q.mean()), rel=1e-4)
        assert entry.q_std == pytest.approx(float(q.std(unbiased=False)), rel=1e-4)
        assert entry.q_count == COUNT


@pytest.mark.parametrize("mode", FIELD_MODES)
def test_every_mode_gets_its_weight_and_its_default_ratio(
    mode: str, critic: Path, policy: Path, store: Path
) -> None:
    entry = calibrate(settings(critic, policy, store, modes=(mode,))).made.mode(mode)
    wanted = DRIFT_MATCHED_RATIO if mode in ("qpilots_u", "qpilots_m") else DEFAULT_RATIO
    assert entry.target_ratio == wanted
    assert entry.found.ratio == pytest.approx(wanted, rel=0.01)
    if mode in ("qpilots_u", "qpilots_m"):
        assert entry.weight == pytest.approx(wanted, rel=0.01)


def test_the_same_command_gives_the_same_file(critic: Path, policy: Path, store: Path) -> None:
    first = calibrate(settings(critic, policy, store)).saved.read_text()
    assert calibrate(settings(critic, policy, store)).saved.read_text() == first
    assert calibrate(settings(critic, policy, store, seed=1)).saved.read_text() != first


def test_a_second_mode_joins_the_first(critic: Path, policy: Path, store: Path) -> None:
    first = calibrate(settings(critic, policy, store)).made.mode("qgf")
    calibrate(settings(critic, policy, store, modes=("qpilots_u",), ratio=0.3))
    both = load(critic, policy)
    assert both.mode("qgf") == first
    assert both.mode("qpilots_u").weight == pytest.approx(0.3, rel=0.01)


def test_settings_reach_the_mode_and_the_record(critic: Path, policy: Path, store: Path) -> None:
    plain = calibrate(settings(critic, policy, store)).made.mode("qgf")
    changed = {"reduction": "mean", "estimate": "noisy"}
    entry = calibrate(settings(critic, policy, store, steering=changed)).made.mode("qgf")
    assert (entry.settings["reduction"], entry.settings["estimate"]) == ("mean", "noisy")
    assert not {"mode", "weight", "ratio"} & set(entry.settings)
    assert abs(entry.weight / plain.weight - 1.0) > 0.02


def test_options_become_settings(store: Path) -> None:
    line = (
        "calibrate --critic c --episodes e --modes qgf,bptt --goal 2 --observations 9 "
        "--integrator heun --time-power 2 --rho 0.9 --set estimate=chain "
        "--set keep_jacobian=false --set max_ratio=0.5"
    )
    found = from_options(vars(cli.parser().parse_args(line.split())))
    assert (found.critic, found.policy, found.episodes) == ("c", "checkpoints/policy", Path("e"))
    assert (found.modes, found.goal, found.observations) == (("qgf", "bptt"), 2, 9)
    assert found.sampler == Sampler(10, "heun", 2.0)
    of = found.of("bptt")
    assert (of.rho, of.estimate, of.keep_jacobian, of.max_ratio) == (0.9, "chain", False, 0.5)
    assert found.ratio is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--modes", "best_of_n"], "must bend the field"),
        (["--modes", ""], "must bend the field"),
        (["--ratio", "0"], "'ratio' must be finite and above 0"),
        (["--seed", "-1"], "'seed' must be at least 0"),
        (["--set", "weight=3"], "'--set' must give NAME=VALUE"),
        (["--set", "rho=0.9"], "'--set' must give NAME=VALUE"),
        (["--set", "keep_jacobian"], "'--set' must give NAME=VALUE"),
        (["--set", "sharpness=3"], "'--set' must give NAME=VALUE"),
        (["--set", "keep_jacobian=False"], "'--set keep_jacobian' must be true or false"),
        (["--set", "posterior_samples=2.5"], "'--set posterior_samples' must be a whole number"),
        (["--reduction", "median"], "'reduction' must be one of"),
        (["--play", "data"], "got both"),
        (["--goal", "7"], "must hold episodes of goal 7"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(
    more: list[str],
    message: str,
    critic: Path,
    policy: Path,
    store: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(critic, policy, store, *more) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("qsteer calibrate: ")
    assert message in said
    assert not (critic / FILE).exists()


def test_a_critic_made_for_another_policy_is_refused(
    tmp_path: Path, policy: Path, store: Path
) -> None:
    foreign = make_critic(interface=other(horizon=4)).save(tmp_path / "foreign")
    with pytest.raises(ConfigError, match="the critic and the policy must have the same horizon"):
        calibrate(settings(foreign, policy, store))


@pytest.mark.parametrize("of_policy", [None, "f" * 64])
def test_features_must_come_from_the_encoder_that_either_part_names(
    of_policy: str | None, tmp_path: Path, store: Path
) -> None:
    of_critic = "f" * 64 if of_policy is None else None
    critic = make_critic(interface=other(encoder_hash=of_critic)).save(tmp_path / "c")
    policy = make_policy(interface=other(encoder_hash=of_policy)).save(tmp_path / "p")
    with pytest.raises(ConfigError, match="logged features must come from the encoder"):
        calibrate(settings(critic, policy, store))


def test_a_flat_critic_is_refused_and_nothing_is_written(
    tmp_path: Path, policy: Path, store: Path
) -> None:
    flat = make_critic()
    for parameter in flat.network.parameters():
        parameter.zero_()
    folder = flat.save(tmp_path / "flat")
    with pytest.raises(ConfigError, match="must have a slope at the policy's chunks"):
        calibrate(settings(folder, policy, store))
    assert not (folder / FILE).exists()


@pytest.mark.parametrize("part", ["critic", "policy"])
def test_a_file_about_other_parts_is_kept_until_its_renewal_is_asked_for(
    part: str, critic: Path, policy: Path, store: Path
) -> None:
    calibrate(settings(critic, policy, store))
    path = critic / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: "f" * 64}))
    foreign = path.read_text()
    with pytest.raises(ConfigError, match=f"made with the {part} .*--renew"):
        calibrate(settings(critic, policy, store, modes=("qpilots_u",)))
    assert path.read_text() == foreign
    calibrate(settings(critic, policy, store, modes=("qpilots_u",), renew=True))
    assert set(load(critic, policy).modes) == {"qpilots_u"}


def entry_with(**changes: float) -> ModeCalibration:
    point = replace(Point(1.0, 0.1, 0.5, 0.1, 0.9, 0.0, 0.05), **changes)
    curve = tuple(replace(point, weight=factor) for factor in FACTORS)
    return ModeCalibration(1.0, 0.1, {}, {}, 0, Observations("demo", 2, 100, ""), "", curve)


def test_the_picture_is_an_image_with_every_mode_and_the_same_every_time() -> None:
    modes = {f"mode_{number}": entry_with(ratio=0.1 * (1 + number)) for number in range(10)}
    text = calibration_figure(modes)
    assert ET.fromstring(text).tag.endswith("svg")
    assert all(name in text for name in modes)
    assert calibration_figure(modes) == text


def test_a_weight_that_works_raises_no_doubts() -> None:
    assert doubts(entry_with()) == []


@pytest.mark.parametrize("improved", [0.0, 0.45, 0.59])
def test_guidance_that_chance_could_match_is_doubted(improved: float) -> None:
    (sentence,) = doubts(entry_with(improved=improved))
    assert "does nothing that this critic can tell from chance" in sentence
    assert doubts(entry_with(improved=0.61)) == []


def test_other_doubts_say_what_is_wrong() -> None:
    (silent, jump) = doubts(entry_with(ratio=0.0019))
    assert "has no effect on an arm" in silent
    assert "the ratio jumps over 0.1" in jump
    short = replace(entry_with(), curve=entry_with().curve[:6])
    assert doubts(short) == ["chunks are not finite any more beyond weight 2."]
