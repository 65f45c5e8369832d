"""The ways to take training steps that ``benchmarks/training.py`` compares, see `prepared`."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qsteer_ros.interface import Interface
from qsteer_ros.learning.settings_bc import PolicySettings
from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.train_bc import PolicyLearner
from qsteer_ros.learning.train_critic import CriticLearner
from qsteer_ros.learning.trainer import Trainer, generator, run
from qsteer_ros.learning.transitions import Transitions

FEATURES, HORIZON, ACTIONS = 28, 5, 5
ROWS = 100_000
RATE = 1e-3
EMA, EXPECTILE = 0.005, 0.9
CHECKED = 20
"""Steps from the same weights on the same batches, whose losses must agree."""


def transitions():
    """Made-up data of the size that a task has."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    chunk = rng.uniform(-1, 1, size=(ROWS, HORIZON, ACTIONS)).astype(np.float32)
    solved = rng.random(ROWS) < 0.02
    return Transitions(
        features=features,
        chunk=chunk,
        interface=Interface(
            horizon=HORIZON,
            action_names=tuple(f"a{i}" for i in range(ACTIONS)),
            action_scale=(1.0,) * ACTIONS,
            feature_names=tuple(f"f{i}" for i in range(FEATURES)),
            control_dt_s=0.05,
        ),
        data_hash="0" * 64,
        reward=np.where(solved, 0.0, -4.9).astype(np.float32),
        bootstrap=np.where(solved, 0.0, 0.99**HORIZON).astype(np.float32),
        next_features=(features + 0.1 * rng.normal(size=features.shape)).astype(np.float32),
    )


def make_learner(task, data):
    """Learner and settings of a task: program, widths, members, batch."""
    common = {
        "hidden": ",".join([str(task["width"])] * task["layers"]),
        "batch": task["batch"],
        "learning_rate": RATE,
        "warmup": 0,
        "lr_floor": 1.0,
        "device": task["device"],
        "threads": torch.get_num_threads(),
    }
    if task["program"] == "bc":
        settings = PolicySettings(**common)
        return PolicyLearner(data, settings), settings
    settings = CriticSettings(**common, ensemble=task["members"], ema=EMA, expectile=EXPECTILE)
    return CriticLearner(data, settings), settings


class Ours:
    """The package's trainer, one step after another."""

    def __init__(self, learner, settings):
        self.trainer, self._taken = Trainer(learner, settings), 0
        self._settings = settings

    def time(self, count):
        """Seconds by wall and seconds of the processor for ``count`` steps."""
        start = clocks()
        for _ in range(count):
            self.trainer.step(self._taken)
            self._taken += 1
        if self._settings.device != "cpu":
            torch.cuda.synchronize()
        return since(start)

    def losses(self, batches):
        """Take a step on each batch; its loss before."""
        waiting = iter(batches)
        drawn, learner = self.trainer.learner.draw, self.trainer.learner
        learner.draw = lambda source: next(waiting)
        found = [float(self.trainer.step(number)["loss"]) for number in range(len(batches))]
        learner.draw = drawn
        return found


class Whole:
    """A run as ``qsteer train`` has it: progress bar, scalars, everything."""

    def __init__(self, learner, settings):
        self._learner, self._settings, self._drawn = learner, settings, learner.draw

    def time(self, count):
        """As `Ours.time`; from the first draw to the one after ``count`` steps."""
        stamps = []

        def draw(source):
            if len(stamps) in (0, count):
                stamps.append(clocks())
            else:
                stamps.append(None)
            return self._drawn(source)

        self._learner.draw = draw
        with tempfile.TemporaryDirectory() as folder:
            settings = replace(
                self._settings, out=str(Path(folder) / "out"), steps=count + 1,
                checkpoint_every=10**9,
            )  # fmt: skip
            run(self._learner, settings, data_hash="", description="", resume=False)
        return tuple(b - a for a, b in zip(stamps[0], stamps[count], strict=True))


class Jax:
    """A jit-compiled step that draws its batches too, from arrays on the device."""

    def __init__(self, learner, settings, data, *, unroll=False):
        import jax
        import jax_training

        names = ["features", "chunk"]
        if settings_are_of_a_critic(settings):
            names += ["next_features", "reward", "bootstrap"]
            self._state, self._step = jax_training.judging(
                learner, RATE, expectile=EXPECTILE, ema=EMA, unroll=unroll
            )
        else:
            self._state, self._step = jax_training.cloning(learner, RATE)
        arrays = {name: jax.numpy.asarray(getattr(data, name)) for name in names}
        if not settings_are_of_a_critic(settings):
            arrays["chunk"] = arrays["chunk"].reshape(ROWS, -1)
        self._run = jax_training.drawing(self._step, arrays, settings.batch)
        self._key = jax.random.key(0)
        self._split = jax.random.split

    def time(self, count):
        """As `Ours.time`."""
        keys = self._split(self._key, count + 1)
        self._key, keys = keys[0], list(keys[1:])
        start = clocks()
        for key in keys:
            self._state, loss = self._run(self._state, key)
        loss.block_until_ready()
        return since(start)

    def losses(self, batches):
        """As `Ours.losses`."""
        found = []
        for batch in batches:
            plain = {name: np.asarray(tensor.cpu()) for name, tensor in batch.items()}
            self._state, loss = self._step(self._state, plain)
            found.append(float(loss))
        return found


def settings_are_of_a_critic(settings):
    """Else of behaviour cloning."""
    return isinstance(settings, CriticSettings)


def clocks():
    """Wall time and the processor's time of this process, seconds."""
    return time.perf_counter(), time.process_time()


def since(start):
    """What has passed since ``clocks()`` said ``start``."""
    return tuple(now - before for before, now in zip(start, clocks(), strict=True))


def prepared(task, names):
    """Engines of a task by name, and how far their losses are apart: the largest, relative."""
    data = transitions()
    if task["device"] != "cpu":
        torch.set_float32_matmul_precision("high" if task["tf32"] else "highest")
    if any(name.startswith("jax") for name in names):
        import jax
        import jax_training  # noqa: F401  (sets the precision first)

        precision = "tensorfloat32" if task["tf32"] else "highest"
        jax.config.update("jax_default_matmul_precision", precision)

    def fresh():
        return make_learner(task, data)

    engines, losses = {}, {}
    learner, settings = fresh()
    batches = [learner.draw(generator(1, number)) for number in range(CHECKED)]
    for name in names:
        learner, settings = fresh()
        if name == "ours":
            engines[name] = Ours(learner, settings)
        elif name == "cuda graph":
            engines[name] = Ours(learner, replace(settings, cuda_graph=True))
        elif name == "whole run":
            engines[name] = Whole(learner, settings)
            continue  # the same steps
        elif name == "jax" or task["program"] == "critic":
            engines[name] = Jax(learner, settings, data, unroll=name == "jax unrolled")
        else:
            continue
        losses[name] = engines[name].losses(batches)
    expected = np.array(losses["ours"])
    differs = {
        name: float(np.abs(np.array(found) / expected - 1.0).max())
        for name, found in losses.items()
    }
    return engines, differs
