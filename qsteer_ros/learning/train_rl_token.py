"""Training the RL token on prefixes of a frozen VLA; see ``policies.rl_token_network``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from qsteer_ros.errors import DataError
from qsteer_ros.learning import states
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.prefixes import PrefixFiles, find_prefixes
from qsteer_ros.learning.settings_rl_token import RLTokenSettings
from qsteer_ros.learning.trainer import provenance, run
from qsteer_ros.policies.rl_token import save_rl_token
from qsteer_ros.policies.rl_token_network import RLTokenAutoencoder, RLTokenShape
from qsteer_ros.policies.token_test import TokenTest, draw_keep, token_test
from qsteer_ros.weights import ema_update


class RLTokenLearner(Learner):
    """Rebuilds prefixes from one vector and what is left of the context."""

    def __init__(self, files: PrefixFiles, rows: int, settings: RLTokenSettings) -> None:
        """Train on the first ``rows`` of the files."""
        super().__init__()
        torch.manual_seed(settings.seed)
        self._files, self._rows, self._settings = files, rows, settings
        shape = RLTokenShape(
            prefix_width=files.width,
            width=settings.width or files.width,
            max_tokens=files.tokens,
            blocks=settings.blocks,
            heads=settings.heads,
        )
        self.network = RLTokenAutoencoder(shape)
        self.average = (
            copy.deepcopy(self.network).requires_grad_(False) if settings.ema > 0.0 else None
        )
        self.to(settings.device)
        self._optimisers = {
            "network": torch.optim.Adam(
                self.network.parameters(), lr=settings.learning_rate, fused=True
            )
        }

    @property
    def kept(self) -> RLTokenAutoencoder:
        """What becomes the checkpoint: the average of the weights where one is kept."""
        return self.network if self.average is None else self.average

    def draw(self, source: torch.Generator) -> Batch:
        """Prefixes, and what of them the decoder is shown."""
        rows = torch.randint(self._rows, (self._settings.batch,), generator=source)
        arrays = self._files.batch(rows.tolist())
        mask = torch.from_numpy(arrays["mask"])
        keep = draw_keep(tuple(mask.shape), self._settings.context_dropout, source)
        batch = {"prefix": torch.from_numpy(arrays["prefix"]), "mask": mask, "keep": keep}
        return {name: value.to(self._settings.device) for name, value in batch.items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The error of rebuilding."""
        kind = torch.device(self._settings.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self._settings.bfloat16):
            errors = self.network(batch["prefix"], batch["mask"], batch["keep"])
        return {"loss": errors.float().mean()}

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One."""
        return self._optimisers

    def after_step(self) -> None:
        """The average follows the weights."""
        if self.average is not None:
            ema_update(self.average, self.network, rate=self._settings.ema)


def train_rl_token(
    settings: RLTokenSettings, *, resume: bool = False, command: str = ""
) -> dict[str, float]:
    """Train an RL token, examine it on the last files, and write its checkpoint.

    A token that fails the token test is written too, and refused wherever it would be used.

    Args:
        settings: How, and from what.
        resume: Continue an interrupted run.
        command: Written into the checkpoint.

    Returns:
        The mean loss over the last tenth of the steps, and the token test.

    Raises:
        ConfigError: There are no prefixes, or the run to resume was another one.
        DataError: A file is damaged, or too few are left to train or to test on.
    """
    files = find_prefixes(settings.prefixes)
    tested = round(len(files) * settings.held_out)
    if tested < 2 or tested >= len(files):
        raise DataError(
            f"'{settings.prefixes}' must leave 2 files to test on and 1 to train on: it holds "
            f"{len(files)}, of which {tested} are held out. Record more, or raise held_out."
        )
    learner = RLTokenLearner(files, len(files) - tested, settings)
    metrics = run(learner, settings, data_hash=files.hash, description="rl-token", resume=resume)
    test = examine(learner.kept.eval(), files, tested, settings)
    training = provenance(settings, command=command, data_hash=files.hash, metrics=metrics)
    training |= {"files": len(files) - tested, "test_files": tested}
    states.finish(
        settings.out,
        lambda folder: save_rl_token(
            folder, learner.kept, proprio_dim=files.proprio_dim, training=training, test=test
        ),
    )
    return {**metrics, **test.to_metrics()}


def examine(
    network: RLTokenAutoencoder, files: PrefixFiles, tested: int, settings: RLTokenSettings
) -> TokenTest:
    """The token test on the last ``tested`` files, in their order of names.

    They are a block, not a random choice: neighbours in time are nearly the same.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(len(files) - tested, len(files), settings.batch):
            arrays = files.batch(range(first, min(first + settings.batch, len(files))))
            prefix, mask = torch.from_numpy(arrays["prefix"]), torch.from_numpy(arrays["mask"])
            yield prefix.to(settings.device), mask.to(settings.device)

    return token_test(
        network,
        batches,
        context_dropout=settings.context_dropout,
        margin=settings.token_margin,
        seed=settings.seed,
    )
