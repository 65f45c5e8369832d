"""Rows of ``benchmarks/steering.py --device cuda``: readable loop, CUDA graph and JAX, in turns.

A time is what a robot waits: from the call, with features and noise on the GPU, until the chunk is
there, by wall clock. ``gpu`` is what of it the GPU works, from events around replays that follow
one another without the host waiting.
"""

import itertools
import json
import os
import time

import numpy as np
import torch

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.networks import EnsembleMLP
from qsteer_ros.flow import Sampler, sample_noise
from qsteer_ros.interface import Interface
from qsteer_ros.policies.cuda_graph import CudaGraph
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.steering.best_of_n import best_of_n
from qsteer_ros.steering.gradient_step import gradient_step
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import CHUNK_MODES, MODES, SteeringSettings

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

HIDDEN = (512, 512, 512, 512)
FEATURE_DIM = 46
STEPS = 10
CHUNKS = ((5, 5), (50, 14))
MEMBERS = (2, 10)
BATCHES = (1, 256)
WEIGHT = 0.3


def make_parts(horizon, action_dim, members, *, device):
    """A policy and a critic as wide as the papers', weights from a seed."""
    interface = Interface(
        horizon=horizon,
        action_names=tuple(f"a{i}" for i in range(action_dim)),
        action_scale=(1.0,) * action_dim,
        feature_names=tuple(f"f{i}" for i in range(FEATURE_DIM)),
        control_dt_s=0.05,
        encoder_hash="e" * 64,
    )
    torch.manual_seed(0)
    field = FlowMLP(FEATURE_DIM, interface.chunk_dim, HIDDEN)
    ensemble = EnsembleMLP(members, FEATURE_DIM + interface.chunk_dim, HIDDEN)
    for network in (field, ensemble):
        network.to(device).requires_grad_(False)
    statistics = torch.zeros(FEATURE_DIM, device=device), torch.ones(FEATURE_DIM, device=device)
    return FlowPolicy(field, *statistics, interface), Critic(ensemble, *statistics, interface)


def settings_of(mode, batch):
    """Each method as published; best_of_n chooses among the batch, or 16."""
    return SteeringSettings(
        mode,
        weight=0.05 if mode in ("noisy_gradient", "gradient_step") else WEIGHT,
        reduction="pessimistic" if mode.startswith("qpilots") else "min",
        num_samples=max(16, batch),
        tilt_mean=0.0,
        tilt_std=1.0,
    )


def finished(settings, q, chunk):
    """What the modes that work on finished chunks do with them."""
    if settings.mode == "best_of_n":
        return best_of_n(chunk.clamp(-1, 1), q, aggregate=settings.aggregate)[0]
    if settings.mode == "gradient_step":
        return gradient_step(
            chunk.clamp(-1, 1),
            q,
            step_size=settings.weight,
            steps=settings.ascent_steps,
            aggregate=settings.aggregate,
            direction="unit",
            keep="ascending",
            bounds=(-1.0, 1.0),
        ).chunk
    return chunk


def contenders(policy, critic, mode, batch, *, device):
    """Backend -> call that makes chunks of another seed; and the features and noise it takes."""
    settings, sampler = settings_of(mode, batch), Sampler(STEPS)
    rows = settings.num_samples if mode == "best_of_n" else batch
    features = torch.randn(1, FEATURE_DIM, generator=torch.Generator().manual_seed(1)).to(device)
    noise = sample_noise((rows, policy.horizon, policy.action_dim), seed=2, device=device)
    seeds = itertools.count()

    def eager():
        field, q = policy.condition(features), critic.condition(features)
        steered = steer(field, q, settings, sampler=sampler, seed=next(seeds))
        return finished(settings, q, sampler.denoise(steered, noise))

    engine = CudaGraph(policy, critic, settings, sampler, device)

    def replayed():
        chunk = engine.denoise(features, noise, seed=next(seeds))
        q = critic.condition(features) if mode in CHUNK_MODES else None
        return finished(settings, q, chunk)

    return {"eager": eager, "cuda_graph": replayed}, features, noise


def jax_contenders(policy, critic, mode, features, noise):
    """JAX's calls for the modes it has: one long program, and a loop inside the program."""
    import jax
    import jax_reference

    if mode not in jax_reference.MODES:
        return {}
    weights = jax_reference.weights_of(policy, critic)
    inputs = [jax.numpy.asarray(np.asarray(tensor.cpu())) for tensor in (features, noise)]

    def call_of(unroll):
        run = jax_reference.loop(mode, weight=WEIGHT, steps=STEPS, unroll=unroll)
        return lambda: run(weights, *inputs).block_until_ready()

    return {"jax": call_of(True), "jax loop": call_of(False)}


def timed(call, *, on_gpu):
    """Wall time of one call until its result is there, ms."""
    start_ns = time.perf_counter_ns()
    call()
    if on_gpu:
        torch.cuda.current_stream().synchronize()
    return (time.perf_counter_ns() - start_ns) * 1e-6


def gpu_ms(call, count=20):
    """Time of the GPU per call, calls following one another, ms."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / count


def in_turns(calls, *, rounds, eager_s):
    """Name -> wall times, ms: each call once per round, eager ones while their time lasts."""
    found = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    spent_ms = 0.0
    for done in range(rounds):
        for name, call in calls.items():
            eager = name[1] == "eager"
            if eager and done >= 20 and spent_ms > 1e3 * eager_s:
                continue
            found[name].append(timed(call, on_gpu=not name[1].startswith("jax")))
            spent_ms += found[name][-1] if eager else 0.0
    return found


def measure(*, configurations=None, modes=MODES, rounds=150, eager_s=9.0, jax=True):
    """Every row, as dictionaries; prints them as they come.

    Args:
        configurations: ((H, A), E, batch) of each; None is all the published ones.
        modes: Of the package; JAX has three of them.
        rounds: Calls that are measured of each contender.
        eager_s: Seconds after which the readable loop, the slowest, is left out of a
            configuration's rounds; at least 20 are measured.
        jax: Whether JAX takes part.
    """
    if not torch.cuda.is_available():
        raise SystemExit("these rows need a CUDA device: torch finds none.")
    if configurations is None:
        configurations = itertools.product(CHUNKS, MEMBERS, BATCHES)
    device, rows = torch.device("cuda", 0), []
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}; 4x512, {STEPS} steps")
    print("chunk  members batch method backend  p50 p95 p99 ms, times off, gpu ms, calls")
    for (horizon, action_dim), count, batch in configurations:
        policy, critic = make_parts(horizon, action_dim, count, device=device)
        calls, deviations = {}, {}
        for mode in modes:
            with torch.no_grad():
                ours, features, noise = contenders(policy, critic, mode, batch, device=device)
                reference = ours["eager"]()
            others = jax_contenders(policy, critic, mode, features, noise) if jax else {}
            for name, call in others.items():
                found = torch.from_numpy(np.array(call())).to(device)
                deviations[mode, name] = float((found - reference).abs().max())
            calls |= {(mode, name): call for name, call in (ours | others).items()}
        with torch.no_grad():
            times = in_turns(calls, rounds=rounds, eager_s=eager_s)
            for key in times:
                kind = f"{horizon}x{action_dim}", count, batch
                rows.append(row_of(kind, key, times, calls[key], deviations.get(key)))
                print(as_text(rows[-1]), flush=True)
    return rows


def row_of(kind, key, times, call, deviation):
    """A line of the table as a dictionary; p99 from 100 calls on."""
    (chunk, members, batch), (mode, backend) = kind, key
    p50, p95, p99 = (float(np.percentile(times[key], share)) for share in (50, 95, 99))
    return {
        "chunk": chunk,
        "members": members,
        "batch": max(16, batch) if mode == "best_of_n" else batch,
        "method": mode,
        "backend": backend,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99 if len(times[key]) >= 100 else None,
        "ratio": p50 / float(np.median(times["off", backend])),
        "gpu_ms": gpu_ms(call) if backend == "cuda_graph" else None,
        "deviation": deviation,
        "calls": len(times[key]),
    }


def as_text(row):
    """One line of the table."""
    p99, gpu = (
        "      -" if row[name] is None else f"{row[name]:7.3f}" for name in ("p99_ms", "gpu_ms")
    )
    deviation = "" if row["deviation"] is None else f"  differs {row['deviation']:.1e}"
    return (
        f"{row['chunk']:6} {row['members']:2} {row['batch']:3} {row['method']:14} "
        f"{row['backend']:10} {row['p50_ms']:7.3f} {row['p95_ms']:7.3f} {p99} "
        f"{row['ratio']:6.2f} {gpu} {row['calls']:4}{deviation}"
    )


def decisions(*, rounds=150, modes=("off", "qgf", "qpilots_u")):
    """Wall time of a whole decision, checks and record included: batch 1, 5x5, two members."""
    device, calls = torch.device("cuda", 0), {}
    policy, critic = make_parts(5, 5, 2, device=device)
    features = torch.randn(1, FEATURE_DIM, generator=torch.Generator().manual_seed(1))
    for mode, backend in itertools.product(modes, ("eager", "cuda_graph")):
        steered = SteeredPolicy(
            None, policy, critic, settings_of(mode, 1), device=device, backend=backend
        )
        calls[mode, backend] = lambda steered=steered: steered.act(features, seed=1)
    for (mode, backend), times in in_turns(calls, rounds=rounds, eager_s=30.0).items():
        p50, p95, p99 = np.percentile(times, [50, 95, 99])
        print(f"decision {mode:14} {backend:10} {p50:7.3f} {p95:7.3f} {p99:7.3f}", flush=True)


if __name__ == "__main__":
    table = measure()
    decisions()
    print(json.dumps(table))
