r"""The network of a meta flow map: average velocities of the posterior flow.

Given a noisy chunk x at flow time t, the posterior flow carries noise (inner time 0) to samples of
the clean chunk (inner time 1). Its average velocity u from inner time r to q takes any of its
states there in one evaluation,

.. math:: X_{r,q}(y) = y + (q - r)\, u(r, q, y; t, x), \qquad X_{0,1}(\epsilon) \sim p_{1|t}(a|x),

and at r = q it is the velocity itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qsteer_ros.policies.networks import EMBEDDING_DIM, FlowMLP


class AverageVelocity(nn.Module):
    r"""A Gaussian's answer in closed form, plus what a network adds to it.

    Were the components of the data independent Gaussians, of mean :math:`\mu` and standard
    deviation s, their posterior would have mean m and standard deviation :math:`\sigma`,

    .. math:: d^2 = t^2 s^2 + (1-t)^2, \quad m = \mu + \frac{t s^2}{d^2} (x - t \mu), \quad
              \sigma = \frac{(1-t) s}{d},

    and the average velocity of its flow would be, with
    :math:`\ell_r^2 = r^2 \sigma^2 + (1-r)^2`,

    .. math:: g = m + \frac{y - r m}{\ell_r} \cdot
                      \frac{(q + r) \sigma^2 - (2 - q - r)}{\ell_r + \ell_q}.

    The network adds :math:`u = g + (\sigma / \ell_r)\, f`, where f sees features,
    :math:`(x - t\mu) / d`, :math:`(y - r m) / \ell_r` and embeddings of t, q - r and r: every
    number it reads and writes is of the order of one at all times. (What x and y together leave
    open about a has standard deviation :math:`\sigma (1-r) / \ell_r`, and a velocity is that over
    :math:`1 - r`.) Layers, activation and initial weights of f are those of `FlowMLP`.

    Attributes:
        body: f; what it calls features are the features, x, t and q - r.
        chunk_mean: mu, (D,); saved with the weights.
        chunk_std: s > 0, (D,).

    Raises:
        ConfigError: A size is below 1, there is no hidden layer, or the embedding is unknown.

    Source:
        u and X are those of Meta Flow Maps, arXiv:2601.14430. Differs: there the network gives u
        itself, from x and y as they are.
    """

    chunk_mean: Tensor
    chunk_std: Tensor

    def __init__(
        self,
        feature_dim: int,
        chunk_mean: Tensor,
        chunk_std: Tensor,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        time_embedding: str = "log16",
    ) -> None:
        """Draw the weights; the statistics are those of flattened chunks, (D,) each."""
        super().__init__()
        self.feature_dim, self.chunk_dim = feature_dim, len(chunk_mean)
        self.body = FlowMLP(
            feature_dim + self.chunk_dim + 2 * EMBEDDING_DIM,
            self.chunk_dim,
            hidden,
            time_embedding=time_embedding,
        )
        self.register_buffer("chunk_mean", chunk_mean.clone())
        self.register_buffer("chunk_std", chunk_std.clone())

    @property
    def architecture(self) -> dict[str, Any]:
        """What ``config.json`` says about this network."""
        return self.body.architecture

    def unit(self, flow_time: Tensor, start: Tensor) -> Tensor:
        """In which the network writes, sigma / l_r: flow time (B,), r (B,) -> (B, D)."""
        spread, width = self._widths(flow_time.unsqueeze(1), start.unsqueeze(1))
        return spread / width

    def forward(
        self,
        features: Tensor,
        noisy_chunk: Tensor,
        flow_time: Tensor,
        inner: Tensor,
        start: Tensor,
        end: Tensor,
    ) -> Tensor:
        """u, in normalised action units per unit of inner time.

        Args:
            features: Standardised, (B, F).
            noisy_chunk: x, flattened, (B, D).
            flow_time: t in [0, 1), (B,).
            inner: y, flattened, (B, D).
            start: r in [0, 1], (B,).
            end: q in [r, 1], (B,).

        Returns:
            (B, D).
        """
        t, r, q = flow_time.unsqueeze(1), start.unsqueeze(1), end.unsqueeze(1)
        noisy_std = self._noisy_std(t)
        outer = (noisy_chunk - t * self.chunk_mean) / noisy_std
        mean = self.chunk_mean + t * self.chunk_std.square() / noisy_std * outer
        spread, at_start = self._widths(t, r)
        _, at_end = self._widths(t, q)
        own = (inner - r * mean) / at_start
        slope = (q + r) * spread.square() - (2.0 - q - r)
        gaussian = mean + own * slope / (at_start + at_end)
        times = [self.body.embed(time).to(inner.dtype) for time in (flow_time, end - start)]
        added: Tensor = self.body(torch.cat([features, outer, *times], dim=1), own, start)
        return gaussian + spread / at_start * added

    def _widths(self, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Both sigma and l_r, (B, D) each, for times (B, 1)."""
        spread = (1.0 - t) * self.chunk_std / self._noisy_std(t)
        return spread, torch.hypot(r * spread, 1.0 - r)

    def _noisy_std(self, t: Tensor) -> Tensor:
        """d, (B, 1) -> (B, D)."""
        return torch.hypot(t * self.chunk_std, 1.0 - t)
