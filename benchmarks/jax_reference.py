"""The steered loop in JAX, for comparison: the same weights, jit-compiled as one function.

Written for itself, with nothing of the package but the weights: modes ``off``, ``qgf`` (minimum of
the members) and ``qpilots_u`` (mean less half their spread, gradient through the clean
prediction), Euler steps on a uniform grid. JAX is optional; products are in full float32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_default_matmul_precision", "highest")  # a GPU would use TF32

MODES = ("off", "qgf", "qpilots_u")
EPSILON = 1e-6


def weights_of(policy, critic):
    """Arrays of a `FlowPolicy` and a `Critic` as trees that jit takes as arguments."""

    def array(tensor):
        return jnp.asarray(np.asarray(tensor.detach().cpu()))

    field, ensemble = policy.network, critic.network
    layers = [*field.layers, field.head]
    return {
        "field": {
            "kernels": [array(layer.weight.T.contiguous()) for layer in layers],
            "biases": [array(layer.bias) for layer in layers],
            "scales": [array(norm.weight) for norm in field.norms],
            "shifts": [array(norm.bias) for norm in field.norms],
            "statistics": (array(policy.feature_mean), array(policy.feature_std)),
        },
        "critic": {
            "kernels": [array(kernel) for kernel in ensemble.kernels],
            "biases": [array(bias[:, 0]) for bias in ensemble.biases],
            "scales": [array(scale[:, 0]) for scale in ensemble.scales],
            "shifts": [array(shift[:, 0]) for shift in ensemble.shifts],
        },
        "statistics": (array(critic.feature_mean), array(critic.feature_std)),
    }


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


def embedding(flow_time):
    """Cosines, then sines, at 8 frequencies from 1 to 30: ``log16``."""
    angle = flow_time * jnp.logspace(0.0, math.log10(30.0), 8, dtype=jnp.float32)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)])


def velocity(weights, features, x, flow_time):
    """Of flattened chunks (B, D), features standardised, (1, F)."""
    rows = jnp.broadcast_to(features, (x.shape[0], features.shape[1]))
    time = jnp.broadcast_to(embedding(flow_time), (x.shape[0], 16))
    return perceptron(weights, jnp.concatenate([rows, x, time], axis=1))


def value(weights, features, chunk, rho):
    """Sum over the batch of the members' minimum; with ``rho`` their mean less rho spreads."""
    rows = jnp.broadcast_to(features, (chunk.shape[0], features.shape[1]))
    signal = jnp.concatenate([rows, chunk], axis=1)
    values = jax.vmap(perceptron, in_axes=(0, None))(weights, signal)[..., 0]
    if rho is None:  # not min(): its gradient compares values that XLA may compute twice
        lowest = jnp.arange(len(values))[:, None] == values.argmin(axis=0)
        return jnp.where(lowest, values, 0.0).sum()
    return (values.mean(axis=0) - rho * jnp.sqrt(values.var(axis=0) + 1e-8)).sum()


def loop(mode, *, weight, steps, unroll=True):
    """A jitted function (weights, features (1, F), noise (B, H, A)) -> x at flow time 1.

    Args:
        mode: One of `MODES`.
        weight: As in the package.
        steps: Of flow time.
        unroll: One long program, or a loop inside it.
    """
    rho = {"off": None, "qgf": None, "qpilots_u": 0.5}[mode]

    def step(weights, seen, judged, x, tau):
        def field(x):
            return velocity(weights["field"], seen, x, tau)

        def slope(v):
            clean = jnp.clip(x + (1.0 - tau) * v, -1.0, 1.0)
            return jax.grad(value, argnums=2)(weights["critic"], judged, clean, rho)

        if mode == "off":
            return x + field(x) / steps
        if mode == "qgf":
            v = field(x)
            return x + (v + weight * slope(v)) / steps
        v, pull = jax.vjp(field, x)
        gradient = slope(v)
        gradient = gradient + (1.0 - tau) * pull(gradient)[0]
        lengths = [jnp.linalg.norm(rows, axis=1, keepdims=True) for rows in (v, gradient)]
        return x + (v + weight * lengths[0] / (lengths[1] + 1e-8) * gradient) / steps

    @jax.jit
    def run(weights, features, noise):
        mean, deviation = weights["field"]["statistics"]
        seen = (features - mean) / deviation
        mean, deviation = weights["statistics"]
        judged, x, first = (features - mean) / deviation, noise.reshape(noise.shape[0], -1), 0
        if mode == "qpilots_u":  # silent at flow time 0
            x, first = x + velocity(weights["field"], seen, x, 0.0) / steps, 1
        if unroll:
            for index in range(first, steps):
                x = step(weights, seen, judged, x, index / steps)
        else:
            x = jax.lax.fori_loop(
                first, steps, lambda index, x: step(weights, seen, judged, x, index / steps), x
            )
        return x.reshape(noise.shape)

    return run
