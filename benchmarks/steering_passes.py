"""Network passes of a chunk, counted while the readable loop makes it.

One pass is one evaluation, or one way back, of one network for one row of the batch; an ensemble
of E members counts E. A method's arithmetic bound is its passes over those of ``off``: what it
would cost relative to ``off`` if every network were as large as the field and nothing else took
time.
"""

import copy
from dataclasses import dataclass, replace

import torch


@dataclass
class Passes:
    """How many passes there were, in rows.

    Attributes:
        field_forward: Of the velocity network.
        field_backward: Of it.
        critic_forward: Of the critic, times its members.
        critic_backward: Of the critic, times its members.
    """

    field_forward: float = 0
    field_backward: float = 0
    critic_forward: float = 0
    critic_backward: float = 0

    @property
    def total(self):
        """All of them."""
        return (
            self.field_forward + self.field_backward + self.critic_forward + self.critic_backward
        )


def counted(policy, critic, make, batch):
    """Passes per chunk of ``make(policy, critic)``, which makes ``batch`` chunks."""
    passes = Passes()

    def count(name, rows, output):
        setattr(passes, f"{name}_forward", getattr(passes, f"{name}_forward") + rows / batch)
        if output.requires_grad:

            def back(gradient):
                so_far = getattr(passes, f"{name}_backward")
                setattr(passes, f"{name}_backward", so_far + rows / batch)

            output.register_hook(back)

    def field_hook(module, inputs, output):
        count("field", output.shape[0], output)

    def critic_hook(module, inputs, output):
        count("critic", output.numel(), output)

    parts = []
    for part, hook in ((policy, field_hook), (critic, critic_hook)):
        network = copy.deepcopy(part.network)
        network.register_forward_hook(hook)
        parts.append(replace(part, network=network))
    with torch.no_grad():
        make(*parts)
    return passes
