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
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6
"""flax's default."""

FEWEST_ROWS = 32
"""Smaller batches are left to PyTorch."""

Row = NDArray[np.float32]

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
    layers, norms = _listed(kernels), _listed(scales)
    weights = (*layers, *_listed(biases), *norms, *_listed(shifts))
    back = torch.is_grad_enabled() and (
        inputs.requires_grad or any(weight.requires_grad for weight in weights)
    )
    result: Tensor = _Perceptron.apply(  # type: ignore[no-untyped-call]
        inputs, len(layers), len(norms), back, *weights
    )
    return result


def _listed(weights: Iterable[Tensor]) -> list[Tensor]:
    """The same, past the way a ``ParameterList`` goes for each."""
    if isinstance(weights, nn.ParameterList):
        return list(weights._parameters.values())  # type: ignore[arg-type]
    return list(weights)


class _Perceptron(torch.autograd.Function):
    """`perceptron`, one member after the other: what one needs stays in the fast memory."""

    @staticmethod
    def forward(
        context: Any, inputs: Tensor, layers: int, norms: int, back: bool, *weights: Tensor
    ) -> Tensor:
        members = _members(weights, layers, norms)
        memories: list[list[_Layer]] = [[] for _ in members]
        outs = [
            _forward(inputs, member, memory if back else None)
            for member, memory in zip(members, memories, strict=True)
        ]
        if back:
            context.save_for_backward(inputs, *weights)
            context.members, context.memories = members, memories
        return outs[0] if members[0].linear else torch.stack(outs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        members: list[_Member] = context.members
        inputs, *weights = context.saved_tensors  # refuses weights that were changed meanwhile
        layers, norms = len(members[0].matrices), len(members[0].scales)
        slopes = [torch.empty_like(weight) for weight in weights]
        before: Tensor | None = None
        for e, into in enumerate(_members(slopes, layers, norms)):
            after = (slope if into.linear else slope[e]).contiguous()
            wanted: bool = context.needs_input_grad[0]
            first = _backward(inputs, members[e], context.memories[e], after, into, wanted=wanted)
            if first is not None:
                before = first if before is None else before.add_(first)
            if into.linear:
                slopes[:layers] = into.matrices
        return before, None, None, None, *slopes


class _Member(NamedTuple):
    """One network's weights, or their slopes, as views.

    Attributes:
        matrices: (out, in).
        biases: (out,).
        scales: (out,), as the kernels take them.
        shifts: (out,), likewise.
        linear: Whether matrices are kept as ``nn.Linear`` does.
    """

    matrices: list[Tensor]
    biases: list[Tensor]
    scales: list[Row]
    shifts: list[Row]
    linear: bool


class _Layer(NamedTuple):
    """What a hidden layer keeps for the way back.

    Attributes:
        signal: Its result, (B, out).
        normal: Before scale and shift, (B, out); without LayerNorm nothing.
        slopes: GELU's derivative, (B, out).
        inverse: One over the rows' standard deviation, (B,); without LayerNorm nothing.
    """

    signal: Tensor
    normal: Row | None
    slopes: Row
    inverse: Row | None


def _members(weights: Sequence[Tensor], layers: int, norms: int) -> list[_Member]:
    kernels, biases = weights[:layers], weights[layers : 2 * layers]
    rows = [weight.detach().numpy() for weight in weights[2 * layers :]]
    scales, shifts = rows[:norms], rows[norms:]
    if kernels[0].dim() == 2:
        plain = [w.detach() for w in kernels], [w.detach() for w in biases]
        return [_Member(*plain, scales, shifts, linear=True)]
    matrices = [w.detach().mT.unbind() for w in kernels]
    offsets = [w.detach().squeeze(1).unbind() for w in biases]
    return [
        _Member(
            [parts[e] for parts in matrices],
            [parts[e] for parts in offsets],
            [row[e, 0] for row in scales],
            [row[e, 0] for row in shifts],
            linear=False,
        )
        for e in range(len(kernels[0]))
    ]


def _forward(inputs: Tensor, member: _Member, memory: list[_Layer] | None) -> Tensor:
    """Output, (B, out); what `_backward` needs is added to the memory, if there is one."""
    from qsteer_ros import dense_kernels as kernels

    signal, norms = inputs, len(member.scales)
    for index in range(len(member.matrices) - 1):
        out = _product(signal, member.matrices[index], member.biases[index])
        z = out.numpy()
        norm = (member.scales[index], member.shifts[index]) if index < norms else ()
        if memory is None:
            (kernels.normalise_only if norm else kernels.activate_only)(z, *norm)
            signal = out
            continue
        slopes = torch.empty_like(out).numpy()
        if norm:
            signal, inverse = torch.empty_like(out), np.empty(len(z), np.float32)
            kernels.normalise(z, *norm, signal.numpy(), slopes, inverse)
            memory.append(_Layer(signal, z, slopes, inverse))
        else:
            kernels.activate(z, slopes)
            signal = out
            memory.append(_Layer(signal, None, slopes, None))
    return _head(signal, member.matrices[-1], member.biases[-1])


def _backward(
    inputs: Tensor,
    member: _Member,
    memory: Sequence[_Layer],
    slope: Tensor,
    into: _Member,
    *,
    wanted: bool,
) -> Tensor | None:
    """Slopes of the weights go ``into`` views of theirs; that of the inputs if it is wanted."""
    from qsteer_ros import dense_kernels as kernels

    _matrix_slope(memory[-1].signal, slope, into, -1)
    torch.sum(slope, dim=0, out=into.biases[-1])
    for index in range(len(memory) - 1, -1, -1):
        above, layer = member.matrices[index + 1], memory[index]
        slope = slope * above if len(above) == 1 else _product(slope, above.t())
        g, bias = slope.numpy(), into.biases[index].numpy()
        if layer.normal is None:
            kernels.activate_back(g, layer.slopes, bias)
        else:
            kernels.normalise_back(
                g, layer.normal, member.scales[index], layer.slopes, layer.inverse,
                into.scales[index], into.shifts[index], bias,
            )  # fmt: skip
        below = memory[index - 1].signal if index else inputs
        _matrix_slope(below, slope, into, index)
    return _product(slope, member.matrices[0].t()) if wanted else None


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ matrix.T + bias`` by oneDNN, (B, in), (out, in), (out,)."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")
    return found


def _head(rows: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    if len(matrix) == 1:
        return torch.addmv(bias, rows, matrix[0]).unsqueeze(1)
    return _product(rows, matrix, bias)


def _matrix_slope(rows: Tensor, slope: Tensor, into: _Member, index: int) -> None:
    """Slope of a matrix, (out, in); what is computed has the layout of the parameter."""
    if slope.shape[1] == 1:
        into.matrices[index][0] = torch.mv(rows.t(), slope[:, 0])
    elif into.linear:
        into.matrices[index] = _product(slope.t(), rows.t())
    else:
        into.matrices[index].t().copy_(_product(rows.t(), slope.t()))
