"""The ways to make a chunk that ``benchmarks/steering.py`` compares; one entry each in `ENGINES`.

An entry is a function (task) -> call, or None where it has nothing to offer. A call makes one
batch of chunks and returns it as a tensor or array.
"""

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch._dynamo
from cuda_rows import FEATURE_DIM, finished, make_parts

from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, sample_noise
from qsteer_ros.policies.engines import make_engine
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.rtc import rtc
from qsteer_ros.steering.settings import MODES, SteeringSettings

CPU = torch.device("cpu")
STEPS = 10
METHODS = (*(mode for mode in MODES if mode != "dsrl"), "rtc+qgf")
"""Mode dsrl is the loop of off, from other noise."""
WEIGHTS = {"qpilots_u": 0.3, "qpilots_m": 0.3, "noisy_gradient": 0.05, "gradient_step": 0.05}


@dataclass(frozen=True)
class Task:
    """One method on one policy and critic.

    Attributes:
        method: One of `METHODS`.
        chunk: (H, A).
        members: E.
        batch: Chunks from one observation; ``best_of_n`` chooses among them, or among 16.
    """

    method: str
    chunk: tuple[int, int]
    members: int
    batch: int

    @property
    def mode(self):
        """The steering mode behind the method."""
        return self.method.removeprefix("rtc+")

    @cached_property
    def parts(self):
        """Policy and critic, four layers of 512."""
        return _parts(self.chunk, self.members)

    @property
    def settings(self):
        """Each method as published, three steps for ``gradient_step``."""
        return SteeringSettings(
            self.mode,
            weight=WEIGHTS.get(self.mode, 0.3),
            reduction="pessimistic" if self.mode.startswith("qpilots") else "min",
            num_samples=max(16, self.batch),
            ascent_steps=3,
            tilt_mean=0.0,
            tilt_std=1.0,
        )

    @property
    def features(self):
        """Of one observation, (1, F)."""
        return torch.randn(1, FEATURE_DIM, generator=torch.Generator().manual_seed(1))

    @property
    def noise(self):
        """(B, H, A)."""
        rows = self.settings.num_samples if self.mode == "best_of_n" else self.batch
        return sample_noise((rows, *self.chunk), seed=2, device=CPU)

    @property
    def others(self):
        """Real-time chunking, where the method has it: 1 row held, most others guided."""
        if self.mode == self.method:
            return ()
        horizon = self.chunk[0]
        previous = torch.linspace(-0.9, 0.9, horizon * self.chunk[1]).view(self.chunk)
        return (rtc(previous, committed=1, overlap=max(2, horizon * 4 // 5)),)


_KEPT = {}


def _parts(chunk, members):
    if (chunk, members) not in _KEPT:
        _KEPT.clear()  # weights of one size at a time
        _KEPT[chunk, members] = make_parts(*chunk, members, device=CPU)
    return _KEPT[chunk, members]


def readable(task, policy, critic):
    """The readable loop, once."""
    field, q = policy.condition(task.features), critic.condition(task.features)
    sampler = Sampler(STEPS)
    steered = steer(field, q, task.settings, others=task.others, sampler=sampler, seed=0)
    return finished(task.settings, q, sampler.denoise(steered, task.noise))


def eager(task):
    """The readable loop in PyTorch."""
    (policy, critic), settings, others = task.parts, task.settings, task.others
    features, noise, sampler = task.features, task.noise, Sampler(STEPS)

    def call():
        field, q = policy.condition(features), critic.condition(features)
        steered = steer(field, q, settings, others=others, sampler=sampler, seed=0)
        return finished(settings, q, sampler.denoise(steered, noise))

    return call


def compiled(task):
    """The package's compiled loop; gradient steps and choices follow it as in a policy."""
    if task.others:
        return None
    (policy, critic), settings, noise = task.parts, task.settings, task.noise
    try:
        engine = make_engine("compiled", policy, critic, settings, Sampler(STEPS), CPU)
    except ConfigError:
        return None
    features = task.features

    def call():
        chunk = engine.denoise(features, noise, seed=0)
        if settings.mode not in ("best_of_n", "gradient_step"):
            return chunk
        return finished(settings, critic.condition(features), chunk)

    return call


def jax(task):
    """A loop inside one jit-compiled function, weights as constants: JAX's fastest form here."""
    try:
        import jax as library
        import jax_reference
    except ImportError:
        return None
    if task.method not in jax_reference.MODES:
        return None
    weights = jax_reference.weights_of(*task.parts)
    features, noise = (np.asarray(tensor) for tensor in (task.features, task.noise))
    run = jax_reference.loop(task.mode, weight=task.settings.weight, steps=STEPS, unroll=False)
    fixed = library.jit(lambda start: run(weights, features, start))
    return lambda: np.asarray(fixed(noise))


def torch_compile(task):
    """PyTorch's own compiler on the whole readable loop, unrolled; it needs a minute each."""
    small = task.chunk == (5, 5) and task.members == 2 and task.batch == 1
    if task.method not in ("off", "qgf") or not small or torch.get_num_threads() > 1:
        return None
    torch._dynamo.config.trace_autograd_ops = True
    torch._dynamo.config.recompile_limit = 64
    (policy, critic), settings, sampler = task.parts, task.settings, Sampler(STEPS)
    features, noise = task.features, task.noise
    field, q = policy.condition(features), critic.condition(features)
    steered = steer(field, q, settings, sampler=sampler, seed=0)
    run = torch.compile(lambda start: sampler.denoise(steered, start), fullgraph=True)
    return lambda: run(noise)


ENGINES = {"eager": eager, "torch.compile": torch_compile, "compiled": compiled, "jax": jax}


def prepared(task, names):
    """Engine -> (call, seconds until its first chunk was there, that), for those that have one."""
    found = {}
    for name in names:
        start = time.perf_counter()
        with torch.no_grad():
            call = ENGINES[name](task)
            if call is None:
                continue
            chunk = np.asarray(call())
        found[name] = (call, time.perf_counter() - start, chunk)
    return found
