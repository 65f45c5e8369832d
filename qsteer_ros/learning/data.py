"""Generating the data that everything is trained on: play episodes and camera frames.

::

    OUT/dataset.json                settings and counts
    OUT/play/episode_00000.npz      training play (see PlayEpisode)
    OUT/play_test/episode_...       play of other seeds, for test frames only
    OUT/frames/train_0000.npz       100 frames each, as JPEG, with the truth beside them
    OUT/frames/test_0000.npz

Every file depends on the seed and its own number only, and is written under a temporary name and
renamed. A run that was stopped is continued by the same command: what exists is not made again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.generation import claim, do_jobs, written_whole
from qsteer_ros.learning.npz import Arrays, check_rows, read_npz
from qsteer_ros.learning.play import GRIPPER_CLOSED_RAD, REMEDY, Play, load_play, yaw_of
from qsteer_ros.learning.settings_data import DataSettings
from qsteer_ros.policies.features import Float32
from qsteer_ros.replay.images import decode_jpeg, encode_jpeg
from qsteer_ros.types import Image

EPISODE_STEPS = 1001
FRAMES_PER_SHARD = 100
TEST_EPISODES = 12
CUBE_HALF_M = 0.02
CAMERAS = ("front", "wrist")
FRAME_SHAPES: dict[str, tuple[int | None, ...]] = {
    "proprio": (19,),
    "cube_xyz": (3,),
    "cube_yaw": (),
    "random_cube": (),
    "moved_camera": (),
    "front_sizes": (),
    "wrist_sizes": (),
}
"""Of a row of every array that a shard holds, beside the pictures."""

TABLE_M = ((0.28, 0.57), (-0.32, 0.32))
"""Where a cube is put at random: a little more than where the expert puts it."""


@dataclass(frozen=True)
class Frames:
    """Camera frames with the truth beside them.

    Attributes:
        images: Camera name -> (N, height, width, 3) uint8 RGB, as decoded from JPEG.
        proprio: (N, 19).
        cube_xyz: (N, 3), m.
        cube_yaw: (N,), rad.
        random_cube: The cube was put at a random place, (N,) bool.
        moved_camera: The front camera was off its nominal pose, (N,) bool.
    """

    images: dict[str, Image]
    proprio: Float32
    cube_xyz: Float32
    cube_yaw: Float32
    random_cube: NDArray[np.bool_]
    moved_camera: NDArray[np.bool_]


def generate(out: Path, settings: DataSettings) -> None:
    """Generate a data set, or what is still missing of one.

    Raises:
        ConfigError: ``out`` holds a data set made with other settings.
    """
    mine = {k: v for k, v in asdict(settings).items() if k != "workers"}
    claim(out, mine, grown=("transitions", "frames", "test_frames"))
    do = partial(do_jobs, workers=settings.workers)
    episodes = -(-settings.transitions // EPISODE_STEPS)
    tests = TEST_EPISODES if settings.test_frames else 0
    play_jobs = [("play", i) for i in range(episodes)] + [("play_test", i) for i in range(tests)]
    missing = [job for job in play_jobs if not _episode_path(out, *job).exists()]
    do(missing, partial(_make_episode, out, settings), what="play", unit="episode")
    frame_jobs = [
        (split, i)
        for split, count in (("train", settings.frames), ("test", settings.test_frames))
        for i in range(-(-count // FRAMES_PER_SHARD))
    ]
    missing = [job for job in frame_jobs if not _shard_path(out, *job).exists()]
    do(missing, partial(_make_shard, out, settings), what="frames", unit="shard")


def load_frames(folder: Path, split: str, *, limit: int | None = None) -> Frames:
    """Read and decode the frames of one split.

    Args:
        folder: The data set's folder.
        split: ``train`` or ``test``.
        limit: Read no more than this many shards.

    Raises:
        ConfigError: There are none.
        DataError: A shard is damaged, lacks an array, or holds a number that is not finite.
    """
    paths = sorted((folder / "frames").glob(f"{split}_*.npz"))[:limit]
    if not paths:
        raise ConfigError(
            f"'{folder}' must hold {split} frames: none found. Generate them with: qsteer data"
        )
    images: dict[str, list[Image]] = {}
    rest: dict[str, list[NDArray[Any]]] = {}
    for path in tqdm(paths, desc=f"{split} frames", unit="shard", leave=False):
        arrays = read_npz(path, remedy=REMEDY)
        check_rows(path, arrays, FRAME_SHAPES, remedy=REMEDY)
        for camera in CAMERAS:
            images.setdefault(camera, []).extend(_pictures(path, arrays, camera))
        for name in FRAME_SHAPES:
            if not name.endswith("_sizes"):
                rest.setdefault(name, []).append(arrays[name])
    whole = {name: np.concatenate(arrays) for name, arrays in rest.items()}
    return Frames(images={name: np.stack(frames) for name, frames in images.items()}, **whole)


def _pictures(path: Path, arrays: Arrays, camera: str) -> list[Image]:
    """One camera's frames of a shard."""
    joined, sizes = arrays.get(f"{camera}_jpeg"), arrays[f"{camera}_sizes"]
    if joined is None or joined.dtype != np.uint8 or joined.shape != (int(sizes.sum()),):
        found = "none" if joined is None else f"{joined.shape} {joined.dtype}"
        raise DataError(
            f"'{path}' must hold {int(sizes.sum())} bytes of pictures as '{camera}_jpeg': found "
            f"{found}. {REMEDY}"
        )
    try:
        return [decode_jpeg(p.tobytes()) for p in np.split(joined, np.cumsum(sizes)[:-1])]
    except DataError as error:
        raise DataError(f"'{path}' is damaged: {error} {REMEDY}") from error


def _episode_path(out: Path, split: str, index: int) -> Path:
    return out / split / f"episode_{index:05d}.npz"


def _shard_path(out: Path, split: str, index: int) -> Path:
    return out / "frames" / f"{split}_{index:04d}.npz"


_cache: dict[Any, Any] = {}
"""Per process: the simulator's models and the play that frames are taken from."""


def _scene(mode: str) -> Any:
    from qsteer_ros.sim.scene import Scene

    if mode not in _cache:
        _cache[mode] = Scene(mode=mode)
    return _cache[mode]


def _seed(settings: DataSettings, split: str, index: int) -> int:
    """A seed of its own for every file."""
    tag = ("play", "play_test", "train", "test").index(split)
    return int(np.random.SeedSequence((settings.seed, tag, index)).generate_state(1)[0])


def _make_episode(out: Path, settings: DataSettings, job: tuple[str, int]) -> None:
    from qsteer_ros.sim.expert import play_episode

    episode = play_episode(
        _scene("data_collection"),
        seed=_seed(settings, *job),
        steps=EPISODE_STEPS,
        noise=settings.noise,
        smoothing=settings.smoothing,
    )
    arrays = {k: v for k, v in vars(episode).items() if isinstance(v, np.ndarray)}
    with written_whole(_episode_path(out, *job)) as path:
        np.savez(path, allow_pickle=False, **arrays)


def _play(out: Path, split: str) -> Play:
    key = (out, split)
    if key not in _cache:
        _cache[key] = load_play(out / ("play" if split == "train" else "play_test"))
    play: Play = _cache[key]
    return play


def _make_shard(out: Path, settings: DataSettings, job: tuple[str, int]) -> None:
    """Render one shard: play states, some with the cube moved, the front camera a little off."""
    split, _ = job
    play, scene = _play(out, split), _scene("data_collection")
    rng = np.random.default_rng(_seed(settings, *job))
    rows: dict[str, list[Any]] = {camera: [] for camera in CAMERAS}
    picked, poses, moved_cube, moved_camera = [], [], [], []
    for _ in range(FRAMES_PER_SHARD):
        put = bool(rng.random() < settings.random_cube)
        row = int(rng.integers(len(play.qpos)))
        while put and not _empty_handed(play, row):
            row = int(rng.integers(len(play.qpos)))
        qpos = play.qpos[row].astype(np.float64)
        if put:
            tool_xyz, _ = scene.pinch(qpos)
            qpos[scene.cube_qpos] = _random_cube(rng, tool_xyz)
        off = split == "train" or bool(rng.random() < 0.5)
        limit_rad = np.radians(settings.camera_turn_deg)
        scene.move_camera(
            "front",
            offset_m=off * rng.uniform(-settings.camera_shift_m, settings.camera_shift_m, 3),
            turn_rad=off * rng.uniform(-limit_rad, limit_rad, 3),
        )
        for camera, frames in rows.items():
            frames.append(np.frombuffer(encode_jpeg(scene.render(camera, qpos)), dtype=np.uint8))
        picked.append(row)
        poses.append(qpos[scene.cube_qpos])
        moved_cube.append(put)
        moved_camera.append(off)
    pose = np.stack(poses)
    with written_whole(_shard_path(out, *job)) as path:
        np.savez(
            path,
            allow_pickle=False,
            **{f"{camera}_jpeg": np.concatenate(frames) for camera, frames in rows.items()},
            **{f"{camera}_sizes": np.array([len(f) for f in fs]) for camera, fs in rows.items()},
            proprio=play.proprio[picked],
            cube_xyz=pose[:, :3].astype(np.float32),
            cube_yaw=yaw_of(pose[:, 3:]),
            random_cube=np.array(moved_cube),
            moved_camera=np.array(moved_camera),
        )


def _empty_handed(play: Play, row: int) -> bool:
    """The gripper is open and the cube is not between its fingers."""
    tool = play.proprio[row, 12:15] / 10.0 + np.array([0.425, 0.0, 0.0])
    apart = float(np.linalg.norm(tool - play.cube_xyz[row]))
    return bool(play.qpos[row, 6] / GRIPPER_CLOSED_RAD < 0.1 and apart > 0.06)


def _random_cube(rng: np.random.Generator, tool_xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """A cube on the table, (7,): half of the time near the gripper, never inside a finger."""
    near = bool(rng.random() < 0.5)
    while True:
        xy = np.array([rng.uniform(*TABLE_M[0]), rng.uniform(*TABLE_M[1])])
        if near:
            xy = tool_xyz[:2] + rng.normal(0.0, 0.05, 2)
        on_table = all(low <= v <= high for v, (low, high) in zip(xy, TABLE_M, strict=True))
        free = tool_xyz[2] > 0.07 or float(np.linalg.norm(xy - tool_xyz[:2])) > 0.12
        if on_table and free:
            break
        near = near and bool(rng.random() < 0.9)
    half_yaw = rng.uniform(-np.pi, np.pi) / 2
    return np.array([*xy, CUBE_HALF_M, np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw)])
