"""The decision record: everything needed to reproduce one action chunk, as one block of bytes.

A record is a set of named tensors and a JSON object. On the wire and in the log it is a
safetensors blob whose metadata carries the object, the format's version and a CRC-32 over all of
it, so that a damaged record is found, never used. The names are listed in
``docs/episode_format.md``; those without which a log cannot be used for training are checked here.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from qsteer_ros.errors import DataError

FORMAT = "qsteer_decision"
VERSION = 1

REQUIRED_TENSORS = ("noise", "chunk")
REQUIRED_META = ("stamp_ns", "control_dt_ns", "execute_steps", "mode", "hashes")


@dataclass(frozen=True)
class DecisionRecord:
    """What went into one action chunk and what came out.

    Attributes:
        tensors: Name -> array. Always ``noise`` and ``chunk``, both (H, A), normalised; the others
            (per-step norms, unguided chunk, path, masks) are there when they were computed.
        meta: JSON object. Always ``stamp_ns`` (stamp of the observation), ``control_dt_ns``,
            ``execute_steps``, ``mode`` and ``hashes``. What was not computed is absent or null.
    """

    tensors: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def extended(
        self,
        tensors: Mapping[str, NDArray[Any]] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> DecisionRecord:
        """Return a record with more tensors and metadata; given names replace those present."""
        return DecisionRecord({**self.tensors, **(tensors or {})}, {**self.meta, **(meta or {})})

    @property
    def stamp_ns(self) -> int:
        """ROS time of the observation that was acted on."""
        return int(self.meta["stamp_ns"])

    @property
    def chunk(self) -> NDArray[Any]:
        """The chunk that was sent to the decoder, (H, A), normalised."""
        return self.tensors["chunk"]

    def encode(self) -> bytes:
        """Write the record as a safetensors blob; equal records give equal bytes.

        Raises:
            DataError: A required name is missing, the chunk is not finite, or the metadata is not
                JSON (non-finite numbers are not: leave them out or use null).
        """
        _check(self)
        tensors = {k: np.ascontiguousarray(v) for k, v in self.tensors.items()}
        try:
            meta = json.dumps(self.meta, sort_keys=True, allow_nan=False, default=_plain)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"DecisionRecord.meta must be JSON: {error}. Use null for what was not computed."
            ) from error
        header = {
            "format": FORMAT,
            "version": VERSION,
            "meta": meta,
            "crc32": _checksum(tensors, meta),
        }
        blob: bytes = save(tensors, {FORMAT: json.dumps(header, sort_keys=True)})
        return blob

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> DecisionRecord:
        """Read what `encode` wrote.

        Raises:
            DataError: The bytes are damaged, of another format or of a newer version.
        """
        raw = bytes(data)
        try:
            size = int.from_bytes(raw[:8], "little")
            outer = json.loads(raw[8 : 8 + size])
            header = json.loads(outer["__metadata__"][FORMAT])
            version, meta, crc32 = header["version"], header["meta"], header["crc32"]
        except Exception as error:
            raise DataError(
                f"a decision record must be a '{FORMAT}' safetensors blob: {len(raw)} bytes that "
                f"are not ({type(error).__name__}). Run 'qsteer verify' on the episode."
            ) from error
        if version != VERSION:
            raise DataError(
                f"a decision record must have version {VERSION}: found {version}. "
                "Read it with the release of qsteer_ros that wrote it."
            )
        try:
            tensors = load(raw)
            intact = _checksum(tensors, meta) == crc32
        except Exception as error:
            raise DataError(f"a decision record is damaged: {error}.") from error
        if not intact:
            raise DataError(
                "a decision record is damaged: its checksum does not match its contents."
            )
        record = cls(tensors, json.loads(meta))
        _check(record)
        return record


def _check(record: DecisionRecord) -> None:
    missing = [f"tensor '{k}'" for k in REQUIRED_TENSORS if k not in record.tensors]
    missing += [f"meta '{k}'" for k in REQUIRED_META if k not in record.meta]
    if missing:
        raise DataError(f"a decision record must be complete: it lacks {', '.join(missing)}.")
    chunk, noise = record.tensors["chunk"], record.tensors["noise"]
    if chunk.ndim != 2 or chunk.shape != noise.shape:
        raise DataError(
            "DecisionRecord 'chunk' and 'noise' must both have shape (horizon, action_dim): got "
            f"{chunk.shape} and {noise.shape}."
        )
    if not np.all(np.isfinite(chunk)):
        raise DataError(
            "DecisionRecord 'chunk' must be finite; a chunk that is not is never sent."
        )


def _checksum(tensors: Mapping[str, NDArray[Any]], meta: str) -> int:
    """CRC-32 over names, types, shapes and bytes of all tensors, and over the metadata."""
    crc = zlib.crc32(meta.encode())
    for name in sorted(tensors):
        array = tensors[name]
        crc = zlib.crc32(f"{name}:{array.dtype.str}:{array.shape}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return crc


def _plain(value: object) -> object:
    """Numpy scalars and arrays as JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
