"""The critic asked about the noisy chunk itself: the baselines that clean predictions replace."""

from __future__ import annotations

from qsteer_ros.ensemble import Aggregate, QFunction, minimum
from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.gradient import check_weight, slope_at
from qsteer_ros.steering.guide import Look, Push, Rule
from qsteer_ros.steering.qgf import qgf

FORMS = ("cgql", "qfql")


def noisy_gradient(
    q: QFunction,
    *,
    weight: float,
    aggregate: Aggregate = minimum,
    form: str = "cgql",
    inverse_temperature: float = 10.0,
) -> Rule:
    r"""Add the critic's gradient at the noisy chunk to a frozen velocity field.

    ==== ========================================================================================
    cgql :math:`v + \tfrac w\tau \big[x + (1 - \tau) \, \beta \, \nabla_x \bar Q(x)\big]`, and v
         at flow time 0: a share w of the velocity that density :math:`e^{\beta Q}` would have
    qfql :math:`v + w \, \nabla_x \bar Q(x)`
    ==== ========================================================================================

    The chunk is not clipped. The critic was trained on clean actions: what it says of a noisy
    one is outside its data, which is what the other rules avoid.

    Args:
        q: Critic for the same observation, (B, H, A) -> (E, B).
        weight: w >= 0; dimensionless in ``cgql``, (normalised action)^2 per unit of return in
            ``qfql``. 0 leaves the field alone.
        aggregate: How members become one value. The QAM code's CGQL takes the mean.
        form: ``cgql`` or ``qfql``.
        inverse_temperature: beta >= 0 of ``cgql``, per unit of return.

    Returns:
        A rule for `guide`.

    Raises:
        ConfigError: A value is out of range, or no form has this name.

    Source:
        CGQL: github.com/ColinQiyangLi/qam, ``agents/cgql.py``, mode ``simple`` (arXiv:2601.14234).
        QFQL: the QGF code with ``denoised_action_approx = "noisy"`` (arXiv:2606.11087).
    """
    check_weight(weight)
    match form:
        case "qfql":
            return qgf(q, weight=weight, aggregate=aggregate, estimate="noisy")
        case "cgql":
            check_weight(inverse_temperature, name="inverse_temperature")
        case _:
            raise ConfigError(f"'form' must be one of {', '.join(FORMS)}: got '{form}'.")

    def push(look: Look) -> Push:
        slope = slope_at(q, look.noisy_chunk, aggregate=aggregate, bounds=None)
        critics_share = (1.0 - look.tau) * inverse_temperature * slope.gradient
        return Push((weight / look.tau) * (critics_share + look.noisy_chunk), slope)

    return Rule(push, after=0.0, idle=weight == 0.0)
