"""The cost control: compute the guidance of a rule, add nothing."""

from __future__ import annotations

from dataclasses import replace

from qsteer_ros.steering.guide import Rule


def zero(rule: Rule) -> Rule:
    """Compute what a rule computes and leave the frozen velocity as it is.

    The chunk is the frozen policy's bit for bit; the latency is the steered policy's. With a trace
    this also tells what a weight would do before anything is steered.

    Args:
        rule: Whose guidance is withheld. It is computed even at weight 0.
    """
    return replace(rule, withheld=True, idle=False)
