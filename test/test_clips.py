"""Clips that steering caused, told from the policy's own."""

from __future__ import annotations

import torch

from qsteer_ros.steering.clips import clips, share

# (chunk, twin) -> which masks are set, with bounds -1 and 1
CASES = [
    (0.5, 0.2, ""),
    (1.0, 0.2, ""),  # on the bound is not clipped
    (1.2, 0.2, "steering"),
    (-1.2, 0.2, "steering"),
    (1.2, 1.0, "steering"),
    (1.2, 1.2, "policy"),
    (1.1, 1.2, "policy"),
    (1.3, 1.2, "policy further"),
    (-1.1, -1.2, "policy"),
    (-1.3, -1.2, "policy further"),
    (1.3, -1.2, "steering relieved"),
    (-1.3, 1.2, "steering relieved"),
    (0.9, 1.2, "relieved"),
    (-1.0, -1.2, "relieved"),
]


def test_every_case_has_its_mask() -> None:
    chunk = torch.tensor([[[now for now, _, _ in CASES]]])
    twin = torch.tensor([[[then for _, then, _ in CASES]]])
    found = clips(chunk, twin)
    for name, mask in found._asdict().items():
        assert mask.flatten().tolist() == [name in names.split() for _, _, names in CASES], name


def test_steering_and_policy_are_all_that_is_clipped_and_exclude_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    chunk, twin = torch.randn(2, 64, 5, 3, generator=generator)
    low, high = -0.5, 1.1
    found = clips(chunk, twin, (low, high))
    assert not (found.steering & found.policy).any()
    assert torch.equal(found.steering | found.policy, (chunk < low) | (chunk > high))
    assert (found.further <= found.policy).all()
    clipped_before = (twin < low) | (twin > high)
    assert torch.equal(clipped_before, found.policy | found.relieved)
    changes = chunk.clamp(low, high) != twin.clamp(low, high)
    assert not (changes & found.policy).any()
    assert (changes[found.steering & (twin != low) & (twin != high)]).all()


def test_a_chunk_that_is_its_twin_has_no_clips_of_steering() -> None:
    chunk = 2 * torch.randn(16, 5, 3, generator=torch.Generator().manual_seed(1))
    found = clips(chunk, chunk)
    assert found.policy.any()
    assert not (found.steering | found.further | found.relieved).any()


def test_the_share_is_per_sample() -> None:
    mask = torch.zeros(2, 5, 4, dtype=torch.bool)
    mask[1, :, :2] = True
    torch.testing.assert_close(share(mask), torch.tensor([0.0, 0.5]))
