"""The policy node with a noise policy and a posterior map, over DDS."""

import json

import numpy as np
import pytest

pytest.importorskip("rclpy")

from parts import make_noise_policy, make_posterior_map
from test_policy_node import newest_with, running

from qsteer_ros import resources
from qsteer_ros.errors import ConfigError
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.noise_policy import NoisePolicy
from qsteer_ros.policies.posterior_map import MetaFlowMap

pytestmark = pytest.mark.ros


@pytest.fixture
def folders(tmp_path):
    """Parts with drawn weights for the shipped policy, and a noise policy for another one."""
    policy = FlowPolicy.load(resources.find("checkpoints/policy"))
    foreign = make_noise_policy(policy).save(tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    config["training"]["policy_hash"] = "f" * 64
    (foreign / "config.json").write_text(json.dumps(config))
    return {
        "noise_policy": str(make_noise_policy(policy).save(tmp_path / "noise")),
        "posterior_map": str(make_posterior_map(policy).save(tmp_path / "map")),
        "foreign": str(foreign),
    }


def test_noise_is_chosen_live_and_the_record_says_by_whom(context, folders):
    with running(context, steering="off", compare_rate=1.0) as arm:
        arm.drive_to("active")
        arm.set(noise_policy=folders["noise_policy"], steering="dsrl")
        record = newest_with(arm, lambda meta: meta["mode"] == "dsrl")
        made = NoisePolicy.load(folders["noise_policy"])
        assert record.meta["hashes"]["noise_policy"] == made.hash
        assert record.meta["displacement"] > 0.0
        features = made.feature_mean.new_tensor(record.tensors["features"])[None]
        expected = made.condition(features).draw(seed=record.meta["seed"])[0].numpy()
        np.testing.assert_array_equal(record.tensors["noise"], expected)
        arm.set(noise_draw="median")
        record = newest_with(arm, lambda meta: meta["steering"]["noise_draw"] == "median")
        features = made.feature_mean.new_tensor(record.tensors["features"])[None]
        expected = made.condition(features).median()[0].numpy()
        np.testing.assert_array_equal(record.tensors["noise"], expected)
        arm.set(steering="off", noise_policy="")
        assert newest_with(arm, lambda meta: meta["hashes"]["noise_policy"] is None)


def test_a_posterior_map_is_taken_live_and_the_record_says_so(context, folders):
    cheap = {"denoising_steps": 2, "posterior_samples": 1, "compare_rate": 0.0}
    with running(context, steering="off", allow_ungated_critic=True, **cheap) as arm:
        arm.drive_to("active")
        arm.set(steering="qpilots_m")
        record = newest_with(arm, lambda meta: meta["mode"] == "qpilots_m")
        assert (record.meta["posterior"], record.meta["hashes"]["posterior_map"]) == (
            "glass",
            None,
        )
        arm.set(posterior_map=folders["posterior_map"])
        record = newest_with(arm, lambda meta: meta.get("posterior") == "map")
        made = MetaFlowMap.load(folders["posterior_map"])
        assert record.meta["hashes"]["posterior_map"] == made.hash


def test_parts_that_do_not_fit_are_refused_and_nothing_changes(context, folders):
    with running(context, steering="off") as arm:
        arm.drive_to("inactive")
        before = arm.node._settings, arm.node._parts
        for changes, reason in (
            ({"steering": "dsrl"}, "'dsrl' needs a noise policy: none is loaded"),
            ({"noise_policy": "checkpoints/policy"}, "must be a noise_policy checkpoint"),
            ({"noise_policy": folders["foreign"]}, "noise policy must be used with the policy it"),
            ({"posterior_map": folders["noise_policy"]}, "must be a posterior_map checkpoint"),
            ({"noise_draw": "mean"}, "'noise_draw' must be one of sampled, median"),
        ):
            with pytest.raises(ConfigError, match=reason):
                arm.set(**changes)
            assert (arm.node._settings, arm.node._parts) == before
