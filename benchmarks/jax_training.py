"""Training steps in JAX, for comparison: the learners' arithmetic, jit-compiled as one function.

Written for itself, with nothing of the package but the first weights: flow matching, and implicit
Q-learning of an ensemble (Q, V, target networks, Adam), everything the step changes donated.
JAX is optional; products are in full float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax_reference import EPSILON, embedding

jax.config.update("jax_default_matmul_precision", "highest")  # a GPU would use TF32

DECAYS = 0.9, 0.999
FLOOR = 1e-8


def array(tensor):
    """A tensor's numbers in memory of their own: what is donated must not be shared."""
    return jnp.array(np.array(tensor.detach().cpu()))


def ensemble_of(network):
    """Weights of an `EnsembleMLP` with a leading member axis."""
    return {
        "kernels": [array(kernel) for kernel in network.kernels],
        "biases": [array(bias[:, 0]) for bias in network.biases],
        "scales": [array(scale[:, 0]) for scale in network.scales],
        "shifts": [array(shift[:, 0]) for shift in network.shifts],
    }


def field_of(network):
    """Weights of a `FlowMLP`."""
    layers = [*network.layers, network.head]
    return {
        "kernels": [array(layer.weight.T) for layer in layers],
        "biases": [array(layer.bias) for layer in layers],
        "scales": [array(norm.weight) for norm in network.norms],
        "shifts": [array(norm.bias) for norm in network.norms],
    }


def member(weights, index):
    """One member of an ensemble, or a tree like it."""
    return jax.tree.map(lambda leaf: leaf[index], weights)


def perceptron(weights, signal):
    """Dense, LayerNorm where there is a scale, GELU; a linear head."""
    *hidden, last = zip(weights["kernels"], weights["biases"], strict=True)
    for index, (kernel, bias) in enumerate(hidden):
        signal = signal @ kernel + bias
        if index < len(weights["scales"]):
            centred = signal - signal.mean(axis=-1, keepdims=True)
            variance = jnp.square(centred).mean(axis=-1, keepdims=True)
            signal = centred * jax.lax.rsqrt(variance + EPSILON)
            signal = signal * weights["scales"][index] + weights["shifts"][index]
        signal = jax.nn.gelu(signal, approximate=True)
    return signal @ last[0] + last[1]


def adam(weights, slopes, moments, rate):
    """One step of Adam; moments are (count, first, second)."""
    count, first, second = moments
    count = count + 1.0
    first = jax.tree.map(lambda m, g: DECAYS[0] * m + (1.0 - DECAYS[0]) * g, first, slopes)
    second = jax.tree.map(lambda v, g: DECAYS[1] * v + (1.0 - DECAYS[1]) * g * g, second, slopes)
    short, long = (1.0 - decay**count for decay in DECAYS)
    weights = jax.tree.map(
        lambda w, m, v: w - rate * (m / short) / (jnp.sqrt(v / long) + FLOOR),
        weights, first, second,
    )  # fmt: skip
    return weights, (count, first, second)


def moments_of(weights):
    """Adam's, before the first step."""
    return (
        jnp.float32(0.0),
        jax.tree.map(jnp.zeros_like, weights),
        jax.tree.map(jnp.zeros_like, weights),
    )


def cloning(learner, rate):
    """Flow matching: the state before the first step, and the step (state, batch) -> both."""
    mean, deviation = array(learner.mean), array(learner.std)

    def loss_of(weights, batch):
        tau = batch["flow_time"][:, None]
        noisy = (1.0 - tau) * batch["noise"] + tau * batch["chunk"]
        seen = (batch["features"] - mean) / deviation
        time = jax.vmap(embedding)(batch["flow_time"])
        velocity = perceptron(weights, jnp.concatenate([seen, noisy, time], axis=1))
        return jnp.square(velocity - (batch["chunk"] - batch["noise"])).mean()

    @partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        weights, moments = state
        loss, slopes = jax.value_and_grad(loss_of)(weights, batch)
        return adam(weights, slopes, moments, rate), loss

    weights = field_of(learner.network)
    return (weights, moments_of(weights)), step


def judging(learner, rate, *, expectile, ema, unroll):
    """Implicit Q-learning; as `cloning`. ``unroll``: one product per member, not one for all."""
    mean, deviation = array(learner.mean), array(learner.std)
    members = learner.q.members

    def ensemble(weights, inputs):
        if unroll:
            return jnp.stack([perceptron(weights[e], inputs)[:, 0] for e in range(members)])
        return jax.vmap(perceptron, in_axes=(0, None))(weights, inputs)[..., 0]

    def loss_of(weights, slow, batch):
        now = (batch["features"] - mean) / deviation
        after = (batch["next_features"] - mean) / deviation
        inputs = jnp.concatenate([now, batch["chunk"].reshape(len(now), -1)], axis=1)
        follows = jax.lax.stop_gradient(perceptron(weights["value"], after)[:, 0])
        lowest = ensemble(slow, inputs).min(axis=0)
        target = batch["reward"] + batch["bootstrap"] * follows
        q_loss = jnp.square(ensemble(weights["q"], inputs) - target).mean()
        gap = lowest - perceptron(weights["value"], now)[:, 0]
        share = jnp.where(gap > 0.0, expectile, 1.0 - expectile)
        return q_loss + (share * jnp.square(gap)).mean()

    @partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        weights, slow, moments = state
        loss, slopes = jax.value_and_grad(loss_of)(weights, slow, batch)
        slow = jax.tree.map(lambda s, w: s + ema * (w - s), slow, weights["q"])
        weights, moments = adam(weights, slopes, moments, rate)
        return (weights, slow, moments), loss

    q = ensemble_of(learner.q)
    if unroll:
        q = [member(q, e) for e in range(members)]
    weights = {"q": q, "value": member(ensemble_of(learner.value.body), 0)}
    return (weights, jax.tree.map(jnp.copy, q), moments_of(weights)), step


def drawing(step, arrays, rows):
    """A step that draws its batch itself: (state, key) -> state, loss.

    Args:
        step: Of `cloning`, which also gets noise and flow times, or of `judging`.
        arrays: The data, on the device; chunks of `cloning` are flat.
        rows: In a batch.
    """
    count, noisy = len(arrays["features"]), "reward" not in arrays

    @partial(jax.jit, donate_argnums=0)
    def draw_and_step(state, key, arrays):
        keys = jax.random.split(key, 3)
        index = jax.random.randint(keys[0], (rows,), 0, count)
        batch = {name: values[index] for name, values in arrays.items()}
        if noisy:
            batch["noise"] = jax.random.normal(keys[1], batch["chunk"].shape)
            batch["flow_time"] = jax.random.uniform(keys[2], (rows,))
        return step(state, batch)

    return lambda state, key: draw_and_step(state, key, arrays)
