from __future__ import annotations

import numpy as np
import pytest

from qsteer_ros.errors import DataError
from qsteer_ros.replay import decision
from qsteer_ros.replay.decision import DecisionRecord


def record(**meta) -> DecisionRecord:
    rng = np.random.default_rng(3)
    tensors = {
        "noise": rng.standard_normal((5, 5)).astype(np.float32),
        "chunk": rng.uniform(-1, 1, (5, 5)).astype(np.float32),
        "velocity_norm": rng.random(10),
        "clipped": rng.random((5, 5)) > 0.5,
        "empty": np.zeros((0, 7)),
    }
    base = {
        "stamp_ns": 1_700_000_000_050_000_001,
        "control_dt_ns": 50_000_000,
        "execute_steps": 5,
        "mode": "qgf",
        "hashes": {"policy": "ab"},
    }
    return DecisionRecord(tensors, {**base, **meta})


def test_a_record_comes_back_equal_bit_for_bit():
    sent = record(q_before=None, timings_ms={"encode": np.float32(1.5)}, names=["a", "ü"])
    back = DecisionRecord.decode(sent.encode())
    assert set(back.tensors) == set(sent.tensors)
    for name, tensor in sent.tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert np.array_equal(back.tensors[name], tensor)
    assert back.meta["stamp_ns"] == sent.stamp_ns
    assert back.meta["timings_ms"] == {"encode": 1.5}
    assert back.meta["names"] == ["a", "ü"]
    assert back.encode() == sent.encode()


def test_every_flipped_bit_of_the_blob_is_found():
    blob = record().encode()
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 1 << (position % 8)
        try:
            back = DecisionRecord.decode(damaged)
        except DataError:
            continue
        assert back.encode() == blob, f"byte {position}"


def test_a_tensor_declared_as_another_type_or_shape_of_the_same_size_is_found():
    blob = record().encode()
    old, new = b'"dtype":"F64","shape":[10]', b'"dtype":"I64","shape":[10]'
    assert old in blob
    with pytest.raises(DataError, match="checksum does not match"):
        DecisionRecord.decode(blob.replace(old, new))
    whole = DecisionRecord({**record().tensors, "flat": np.zeros((2, 3))}, record().meta).encode()
    with pytest.raises(DataError, match="checksum does not match"):
        DecisionRecord.decode(whole.replace(b'"shape":[2,3]', b'"shape":[3,2]'))


def test_a_truncated_blob_is_refused_at_every_length():
    blob = record().encode()
    for length in range(0, len(blob), 13):
        with pytest.raises(DataError, match="decision record"):
            DecisionRecord.decode(blob[:length])


def test_a_record_without_what_training_needs_is_neither_written_nor_read():
    whole = record()
    for name in decision.REQUIRED_META:
        rest = {k: v for k, v in whole.meta.items() if k != name}
        with pytest.raises(DataError, match=f"must be complete: it lacks meta '{name}'"):
            DecisionRecord(whole.tensors, rest).encode()
    with pytest.raises(DataError, match="it lacks tensor 'noise'"):
        DecisionRecord({"chunk": whole.chunk}, whole.meta).encode()


def test_a_chunk_that_is_not_finite_and_metadata_that_is_not_json_are_refused():
    with pytest.raises(DataError, match="'chunk' must be finite"):
        record().extended({"chunk": np.full((5, 5), np.nan)}).encode()
    with pytest.raises(DataError, match="both have shape"):
        record().extended({"chunk": np.zeros((4, 5))}).encode()
    with pytest.raises(DataError, match="must be JSON"):
        record(cosine=float("nan")).encode()
    with pytest.raises(DataError, match="must be JSON: set is not JSON"):
        record(names={1}).encode()


def test_a_newer_version_is_refused_by_number(monkeypatch):
    monkeypatch.setattr(decision, "VERSION", 2)
    blob = record().encode()
    monkeypatch.undo()
    with pytest.raises(DataError, match="must have version 1: found 2"):
        DecisionRecord.decode(blob)


def test_extending_a_record_leaves_the_first_as_it_was():
    first = record()
    second = first.extended({"path_times_s": np.arange(3.0)}, {"mode": "off"})
    assert "path_times_s" not in first.tensors
    assert first.meta["mode"] == "qgf"
    assert second.meta["mode"] == "off"
