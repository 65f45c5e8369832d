"""The specification and the code say the same thing."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from qsteer_ros.replay import bag, decision, episode
from qsteer_ros.replay.steps import LAYOUT

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "episode_format.md").read_text()


@pytest.mark.parametrize(
    "name", [f.name for kind in (episode.Episode, episode.TopicCount) for f in fields(kind)]
)
def test_every_key_of_episode_json_is_specified(name):
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("name", decision.REQUIRED_TENSORS + decision.REQUIRED_META)
def test_every_required_name_of_a_decision_is_in_bold(name):
    assert f"**`{name}`**" in TEXT


@pytest.mark.parametrize(
    "words",
    [
        *(f"`{outcome}`" for outcome in episode.OUTCOMES),
        *(f"`{key}`" for key in episode.REQUIRED_PROVENANCE + LAYOUT),
        f"`{episode.FORMAT}`, {episode.VERSION}",
        f"`version` ({decision.VERSION})",
        f"format version {bag.BAG_VERSION} (Jazzy)",
        f"{bag.CHUNK_BYTES // 1024} kB",
        f"`<episode>{episode.RECOVERED_SUFFIX}`",
    ],
)
def test_the_specification_names_what_the_code_uses(words):
    assert words in TEXT
