r"""Multilayer perceptrons with LayerNorm and GELU, one or E side by side; faster in training.

.. math:: z_l = h_l W_l + b_l, \qquad h_{l+1} = \operatorname{gelu}\big(
          s_l \odot \operatorname{norm}(z_l) + t_l\big)

The last hidden layer may go without LayerNorm; the head is linear. GELU is the tanh approximation.

Within :func:`fast`, which the trainer opens around every step, batches of float32 on a CPU are
computed another way, equal up to rounding: products by oneDNN, which PyTorch brings along but does
not ask for full float32 (what it asks takes twice as long on other than Intel's processors); what
is between two products in one compiled loop over the rows; the way back by hand. Everything else,
steering above all, is PyTorch's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

LAYER_NORM_EPSILON = 1e-6
"""flax's default."""

FEWEST_ROWS = 32
"""Smaller batches are left to PyTorch."""

_wanted: ContextVar[bool] = ContextVar("fast", default=False)


@contextmanager
def fast() -> Iterator[None]:
    """Training arithmetic: losses in here, and their gradients, are right up to rounding.

    What it computes can be differentiated once.
    """
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    token = _wanted.set(available)
    try:
        yield
    finally:
        _wanted.reset(token)


def applies(inputs: Tensor) -> bool:
    """Whether a network should ask `perceptron` about these rows, (B, in)."""
    return (
        not torch.compiler.is_compiling()
        and _wanted.get()
        and inputs.device.type == "cpu"
        and inputs.dtype == torch.float32
        and inputs.shape[0] >= FEWEST_ROWS
    )


def perceptron(
    inputs: Tensor,
    kernels: Iterable[Tensor],
    biases: Iterable[Tensor],
    scales: Iterable[Tensor],
    shifts: Iterable[Tensor],
) -> Tensor:
    """The whole network, where `applies` says so; differentiable once.

    Args:
        inputs: Same for all members, (B, in).
        kernels: Of every layer and the head, (E, in, out); or of one network as ``nn.Linear`` has
            them, (out, in).
        biases: (E, 1, out), or (out,).
        scales: Of LayerNorm, as the biases, for as many layers as have one, from the first on.
        shifts: Likewise.

    Returns:
        (E, B, out), or (B, out).
    """
    layers, norms = list(kernels), list(scales)
    result: Tensor = _Perceptron.apply(  # type: ignore[no-untyped-call]
        inputs, len(layers), len(norms), *layers, *biases, *norms, *shifts
    )
    return result


class _Perceptron(torch.autograd.Function):
    """`perceptron`, one member after the other: what one needs stays in the fast memory."""

    @staticmethod
    def forward(context: Any, inputs: Tensor, layers: int, norms: int, *weights: Tensor) -> Tensor:
        single = weights[0].dim() == 2
        members = 1 if single else len(weights[0])
        kept: list[Tensor] = []
        outs = []
        for e in range(members):
            out, memory = _forward(inputs, _Member(weights, layers, norms, e))
            outs.append(out)
            kept += memory
        context.save_for_backward(inputs, *weights, *kept)
        context.sizes = layers, norms, members
        return outs[0] if single else torch.stack(outs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        layers, norms, members = context.sizes
        inputs, *rest = context.saved_tensors
        count = 2 * (layers + norms)
        weights, kept = tuple(rest[:count]), rest[count:]
        single, each = weights[0].dim() == 2, len(kept) // members
        slopes = []
        before: Tensor | None = None
        for e in range(members):
            member = _Member(weights, layers, norms, e)
            after = slope if single else slope[e]
            own, first = _backward(
                inputs, member, kept[e * each : (e + 1) * each], after.contiguous(),
                context.needs_input_grad[0],
            )  # fmt: skip
            slopes.append(own)
            if first is not None:
                before = first if before is None else before.add_(first)
        if single:
            return before, None, None, *slopes[0]
        together = (torch.stack(parts) for parts in zip(*slopes, strict=True))
        shaped = (s.view(w.shape) for s, w in zip(together, weights, strict=True))
        return before, None, None, *shaped


class _Member:
    """One network's weights: matrices (out, in) as views, the others (out,)."""

    def __init__(self, weights: tuple[Tensor, ...], layers: int, norms: int, index: int) -> None:
        self.linear = weights[0].dim() == 2  # kept as nn.Linear does
        own = [
            w.detach() if self.linear else (w[index].t() if i < layers else w[index, 0]).detach()
            for i, w in enumerate(weights)
        ]
        self.matrices, self.biases = own[:layers], own[layers : 2 * layers]
        self.scales = own[2 * layers : 2 * layers + norms]
        self.shifts = own[2 * layers + norms :]


def _forward(inputs: Tensor, member: _Member) -> tuple[Tensor, list[Tensor]]:
    """Output (B, out), and of every hidden layer what `_backward` needs: four tensors."""
    from qsteer_ros import dense_kernels as kernels

    signal, memory = inputs, []
    for index, (matrix, bias) in enumerate(
        zip(member.matrices[:-1], member.biases[:-1], strict=True)
    ):
        z = _product(signal, matrix, bias)
        slopes = torch.empty_like(z)
        if index < len(member.scales):
            signal, inverse = torch.empty_like(z), z.new_empty(len(z))
            kernels.normalise(
                z.numpy(), member.scales[index].numpy(), member.shifts[index].numpy(),
                signal.numpy(), slopes.numpy(), inverse.numpy(),
            )  # fmt: skip
        else:
            kernels.activate(z.numpy(), slopes.numpy())
            signal, inverse = z, z
        memory += [z, slopes, inverse, signal]
    return _head(signal, member.matrices[-1], member.biases[-1]), memory


def _backward(
    inputs: Tensor, member: _Member, memory: Sequence[Tensor], slope: Tensor, wanted: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Slopes of the weights, in their order, and of the inputs where ``wanted``."""
    from qsteer_ros import dense_kernels as kernels

    norms, hidden = len(member.scales), len(member.matrices) - 1
    signals = [inputs, *memory[3::4]]
    matrices: list[Tensor] = [_matrix_slope(signals[-1], slope, member)]
    biases, scales, shifts = [slope.sum(dim=0)], list[Tensor](), list[Tensor]()
    for index in range(hidden - 1, -1, -1):
        above = member.matrices[index + 1]
        slope = slope * above if len(above) == 1 else _product(slope, above.t())
        z, slopes, inverse, _ = memory[4 * index : 4 * index + 4]
        bias = slope.new_empty(slope.shape[1])
        if index < norms:
            scale, shift = torch.empty_like(bias), torch.empty_like(bias)
            kernels.normalise_back(
                slope.numpy(), z.numpy(), member.scales[index].numpy(), slopes.numpy(),
                inverse.numpy(), scale.numpy(), shift.numpy(), bias.numpy(),
            )  # fmt: skip
            scales.append(scale)
            shifts.append(shift)
        else:
            kernels.activate_back(slope.numpy(), slopes.numpy(), bias.numpy())
        biases.append(bias)
        matrices.append(_matrix_slope(signals[index], slope, member))
    first = _product(slope, member.matrices[0].t()) if wanted else None
    return [*matrices[::-1], *biases[::-1], *scales[::-1], *shifts[::-1]], first


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ matrix.T + bias`` by oneDNN, (B, in), (out, in), (out,)."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")
    return found


def _head(rows: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    if len(matrix) == 1:
        return torch.addmv(bias, rows, matrix[0]).unsqueeze(1)
    return _product(rows, matrix, bias)


def _matrix_slope(rows: Tensor, slope: Tensor, member: _Member) -> Tensor:
    """Slope of a matrix, laid out as its parameter is: as ``nn.Linear`` does, or (in, out)."""
    if slope.shape[1] == 1:
        found = torch.mv(rows.t(), slope[:, 0])
        return found.unsqueeze(0 if member.linear else 1)
    if member.linear:
        return _product(slope.t(), rows.t())
    return _product(rows.t(), slope.t())
