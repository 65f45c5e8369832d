r"""Whether a decoder uses the RL token it is given.

A teacher-forced decoder can rebuild a prefix well from what stands before each token alone. So it
is asked three times: with the right token, with zeros, and with the token of another sample. Where
the wrong ones serve as well, the token says nothing, however small the error:

.. math:: \text{passed} \iff \min(e_{zeroed}, e_{shuffled}) \ge m \, e_{true}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from qsteer_ros.errors import DataError
from qsteer_ros.policies.rl_token_network import RLTokenAutoencoder, reconstruction_errors

Prefixes = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Batches of prefix (B, L, D) and mask (B, L), the same ones each time it is called."""


@dataclass(frozen=True)
class TokenTest:
    """What came of it.

    Attributes:
        true: Mean squared error with the right token.
        zeroed: With zeros in its place.
        shuffled: With the token of another sample.
        cosine: Mean cosine between rebuilt and true tokens of the prefix, with the right token.
        margin: m, how many times the error with the right token the other two must reach.
    """

    true: float
    zeroed: float
    shuffled: float
    cosine: float
    margin: float

    @property
    def passed(self) -> bool:
        """Whether both wrong tokens are clearly worse."""
        return min(self.zeroed, self.shuffled) >= self.margin * self.true

    def to_metrics(self) -> dict[str, float]:
        """For a checkpoint's metrics."""
        return {
            "error_true_token": self.true,
            "error_zeroed_token": self.zeroed,
            "error_shuffled_token": self.shuffled,
            "cosine": self.cosine,
            "token_margin": self.margin,
            "token_test_passed": float(self.passed),
        }


@torch.no_grad()
def token_test(
    network: RLTokenAutoencoder,
    prefixes: Prefixes,
    *,
    context_dropout: float,
    margin: float,
    seed: int = 0,
) -> TokenTest:
    """Examine an autoencoder on prefixes it was not trained on.

    Args:
        network: In evaluation mode.
        prefixes: Two samples or more.
        context_dropout: Share of the prefix hidden from the decoder, as in training; which part
            is the same for all three tokens.
        margin: m > 1.
        seed: Decides what is hidden and who gets whose token.

    Raises:
        DataError: There are fewer than two samples.
    """
    source = torch.Generator().manual_seed(seed)
    tokens = torch.cat([network.encoder(prefix, mask) for prefix, mask in prefixes()])
    if len(tokens) < 2:
        raise DataError(
            f"the token test needs at least 2 samples that were held out: got {len(tokens)}. "
            "Record more prefixes, or raise held_out."
        )
    given = {"true": tokens, "zeroed": torch.zeros_like(tokens)}
    given["shuffled"] = tokens[derangement(len(tokens), source).to(tokens.device)]
    sums = dict.fromkeys(given, 0.0)
    cosines, first = 0.0, 0
    for prefix, mask in prefixes():
        rows = slice(first, first + len(prefix))
        keep = draw_keep(tuple(mask.shape), context_dropout, source).to(mask.device)
        for name, token in given.items():
            rebuilt = network.decoder(token[rows], prefix, mask, keep)
            sums[name] += float(reconstruction_errors(rebuilt, prefix, mask).sum())
            if name == "true":
                cosines += float(_cosines(rebuilt, prefix, mask).sum())
        first += len(prefix)
    means = {name: total / len(tokens) for name, total in sums.items()}
    return TokenTest(**means, cosine=cosines / len(tokens), margin=margin)


def draw_keep(shape: tuple[int, ...], context_dropout: float, source: torch.Generator) -> Tensor:
    """Which tokens of the prefix the decoder is shown, (B, L) bool."""
    return torch.rand(shape, generator=source) >= context_dropout


def derangement(count: int, source: torch.Generator) -> Tensor:
    """A random order in which nobody keeps its place, (count,): one cycle through all."""
    cycle = torch.randperm(count, generator=source)
    partner = torch.empty_like(cycle)
    partner[cycle] = cycle.roll(1)
    return partner


def _cosines(rebuilt: Tensor, prefix: Tensor, mask: Tensor) -> Tensor:
    found = functional.cosine_similarity(rebuilt, torch.where(mask[..., None], prefix, 0.0), dim=2)
    return (found * mask).sum(dim=1) / mask.sum(dim=1)
