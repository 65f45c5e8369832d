"""Denoising against a deadline, on a clock that only the fields move."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

import pytest
import torch
from fields import noise, swirl
from torch import Tensor

from qsteer_ros import deadline
from qsteer_ros.deadline import DeadlineRecord, denoise_before, measure_costs, repeat
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import INTEGRATORS, Sampler
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.zero import zero
from qsteer_ros.step_costs import StepCosts


def bent(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
    return swirl(noisy_chunk, flow_time) + 0.5


class Machine:
    """A clock, and fields that take a known time on it: ns at a flow time."""

    def __init__(
        self,
        guided: Callable[[float], int],
        frozen: Callable[[float], int],
        start: int = 1_000_000,
    ) -> None:
        self.now, self.start = start, start
        self.guided_cost, self.frozen_cost = guided, frozen
        self.asked = list[tuple[str, float]]()
        self.steered, self.frozen = self._steered, self._frozen  # one object each

    def clock(self) -> int:
        return self.now

    def _steered(self, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        self.now += self.guided_cost(float(flow_time[0]))
        self.asked.append(("guided", float(flow_time[0])))
        return bent(noisy_chunk, flow_time)

    def _frozen(self, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        self.now += self.frozen_cost(float(flow_time[0]))
        self.asked.append(("frozen", float(flow_time[0])))
        return swirl(noisy_chunk, flow_time)

    def costs(self, sampler: Sampler) -> StepCosts:
        """What the steps really cost."""
        return measure_costs(
            self.steered, self.frozen, noise(), sampler, rounds=1, clock=self.clock
        )

    def run(
        self, sampler: Sampler, within: int, costs: StepCosts, *, off: bool = False
    ) -> tuple[Tensor, DeadlineRecord]:
        self.asked.clear()
        return denoise_before(
            self.frozen if off else self.steered,
            self.frozen,
            noise(),
            sampler,
            deadline_ns=self.now + within,
            costs=costs,
            clock=self.clock,
        )


def machine(guided: int = 50, frozen: int = 10) -> Machine:
    return Machine(lambda tau: guided, lambda tau: frozen)


def samplers(steps: int) -> list[Sampler]:
    late = (*(0.2 + 0.8 * step / steps for step in range(steps)), 1.0)
    uniform = [Sampler(steps, integrator=integrator) for integrator in INTEGRATORS]
    return [*uniform, Sampler(steps, time_power=2.0), Sampler(steps, "midpoint", times=late)]


GUIDED, FROZEN = bent, swirl


@pytest.mark.parametrize("sampler", samplers(5))
def test_with_time_enough_the_chunk_is_that_of_the_sampler_bit_for_bit(sampler: Sampler) -> None:
    for off, field in ((False, GUIDED), (True, FROZEN)):
        work = machine()
        chunk, record = work.run(sampler, 10_000, work.costs(sampler), off=off)
        assert torch.equal(chunk, sampler.denoise(field, noise()))
        assert record.guidance == ("none" if off else "kept")
        assert (record.dropped_at, record.last_resort, record.steps_dropped) == (None, False, 0)
        assert record.path == sampler.flow_times
        assert record.met


@pytest.mark.parametrize(
    ("steps", "guided", "frozen"), list(itertools.product((1, 2, 3, 5), (2, 3, 7), (1, 2, 5)))
)
def test_of_every_deadline_guidance_goes_first_then_steps(
    steps: int, guided: int, frozen: int
) -> None:
    """With constant costs g and f, what fits into D has a closed form."""
    sampler = Sampler(steps)
    for within in range(-2, steps * (guided + frozen) + 3):
        work = machine(guided, frozen)
        chunk, record = work.run(sampler, within, work.costs(sampler))
        done = max(0, (within - steps * frozen) // guided)
        if done >= steps:
            assert record.guidance == "kept"
            assert torch.equal(chunk, sampler.denoise(GUIDED, noise()))
            continue
        assert (record.guidance, record.dropped_at) == ("dropped", done)
        assert [kind for kind, _ in work.asked].count("guided") == done
        if within >= steps * frozen:
            assert record.steps_dropped == 0
            assert torch.equal(chunk, sampler.denoise(FROZEN, noise()))
        else:
            assert 1 <= record.steps <= max(1, within // frozen)
            assert record.steps < steps or steps == 1
        assert record.met == (within >= frozen)
        assert record.spent_ns == done * guided + record.steps * frozen
        assert record.left_ns == within - record.spent_ns


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
def test_without_guidance_only_steps_are_dropped(steps: int) -> None:
    sampler = Sampler(steps)
    for within in range(10 * steps + 1):
        work = machine()
        chunk, record = work.run(sampler, within, work.costs(sampler), off=True)
        assert (record.guidance, record.dropped_at) == ("none", None)
        assert (record.steps_dropped == 0) == (within >= 10 * steps or steps == 1)
        if record.steps_dropped == 0:
            assert torch.equal(chunk, sampler.denoise(FROZEN, noise()))


def test_steering_of_weight_zero_has_no_guidance_to_drop() -> None:
    field = guide(FROZEN, qgf(lambda chunk: chunk.sum(dim=(1, 2)).unsqueeze(0), weight=0.0))
    costs = StepCosts([10] * 4, [10] * 4)
    _, record = denoise_before(
        field, FROZEN, noise(), Sampler(4), deadline_ns=0, costs=costs, clock=lambda: 1
    )
    assert record.guidance == "none"


def test_a_control_that_only_computes_is_dropped_like_guidance() -> None:
    rule = zero(qgf(lambda chunk: chunk.sum(dim=(1, 2)).unsqueeze(0), weight=1.0))
    costs = StepCosts([10] * 4, [10] * 4)
    for within, guidance in ((40, "dropped"), (79, "kept")):
        chunk, record = denoise_before(
            guide(FROZEN, rule),
            FROZEN,
            noise(),
            Sampler(4),
            deadline_ns=within + 1,
            costs=costs,
            clock=lambda: 1,
        )
        assert record.guidance == guidance
        assert torch.equal(chunk, Sampler(4).denoise(FROZEN, noise()))


@pytest.mark.parametrize("sampler", samplers(10))
def test_fewer_steps_are_longer_ones_between_the_samplers_own_flow_times(sampler: Sampler) -> None:
    per_step = 20 if sampler.integrator != "euler" else 10
    for fit in range(1, 10):
        work = machine()
        chunk, record = work.run(sampler, fit * per_step, work.costs(sampler))
        assert set(record.path) <= set(sampler.flow_times)
        assert (record.path[0], record.path[-1]) == (sampler.flow_times[0], 1.0)
        assert 1 <= record.steps <= fit
        widths = [
            sampler.flow_times.index(end) - sampler.flow_times.index(start)
            for start, end in itertools.pairwise(record.path)
        ]
        assert widths == sorted(widths, reverse=True)  # the short ones near the action
        assert max(widths) == -(-10 // fit)
        own = Sampler(record.steps, integrator=sampler.integrator, times=record.path)
        torch.testing.assert_close(chunk, own.denoise(FROZEN, noise()), atol=1e-14, rtol=1e-14)
        assert record.met
        assert not record.last_resort


@pytest.mark.parametrize("sampler", samplers(10))
def test_when_no_step_fits_one_frozen_euler_step_leads_to_the_end(sampler: Sampler) -> None:
    for within in (-5, 0, 9):
        work = machine()
        chunk, record = work.run(sampler, within, work.costs(sampler))
        start = sampler.flow_times[0]
        rows = torch.full((4,), start, dtype=torch.float64)
        torch.testing.assert_close(chunk, noise() + (1.0 - start) * FROZEN(noise(), rows))
        assert work.asked == [("frozen", start)]
        assert (record.path, record.last_resort) == ((start, 1.0), True)
        assert (record.guidance, record.dropped_at, record.met) == ("dropped", 0, False)
        assert (record.spent_ns, record.left_ns) == (10, within - 10)


def test_a_last_resort_may_meet_the_deadline_that_a_whole_step_would_miss() -> None:
    sampler = Sampler(10, integrator="midpoint")
    work = machine()
    _, record = work.run(sampler, 10, work.costs(sampler))
    assert (record.last_resort, record.met) == (True, True)


def test_a_step_that_takes_longer_than_it_should_costs_the_guidance_and_no_step() -> None:
    """As long as it takes at most what is held back for the frozen chunk."""
    for slow, extra in itertools.product(range(4), (0, 1, 100, 139)):
        work = machine()
        costs = work.costs(Sampler(5))
        work.guided_cost = lambda tau, s=slow, e=extra: 50 + (e if tau == s / 5 else 0)
        within = 5 * 50 + 5 * 10 + 90
        chunk, record = work.run(Sampler(5), within, costs)
        kept = extra <= 90
        assert record.guidance == ("kept" if kept else "dropped")
        assert record.steps_dropped == 0
        assert record.met
        assert torch.equal(chunk, Sampler(5).denoise(GUIDED if kept else FROZEN, noise()))


def test_a_frozen_step_that_takes_too_long_costs_later_steps() -> None:
    work = machine()
    costs = work.costs(Sampler(10))
    work.frozen_cost = lambda tau: 60 if tau == 0.3 else 10
    chunk, record = work.run(Sampler(10), 110, costs)
    assert record.path[:5] == (0.0, 0.1, 0.2, 0.3, 0.4)
    assert record.steps < 10
    assert record.met
    own = Sampler(record.steps, times=record.path)
    torch.testing.assert_close(chunk, own.denoise(FROZEN, noise()))


@pytest.mark.parametrize(("integrator", "slow_from"), [("euler", 0.3), ("heun", 0.5)])
def test_a_last_step_of_one_evaluation_is_taken_as_it_is_however_late(
    integrator: str, slow_from: float
) -> None:
    """Nothing is cheaper, so the chunk is still the frozen policy's."""
    sampler = Sampler(3, integrator=integrator)
    work = machine()
    costs = work.costs(sampler)
    work.frozen_cost = lambda tau: 10 if tau < slow_from else 500
    chunk, record = work.run(sampler, sum(costs.frozen), costs)
    assert (record.path, record.last_resort) == (sampler.flow_times, False)
    assert torch.equal(chunk, sampler.denoise(FROZEN, noise()))
    assert not record.met


@pytest.mark.parametrize(("integrator", "within"), [("heun", 20), ("midpoint", 10), ("heun", 10)])
def test_a_step_of_one_evaluation_says_nothing_of_one_of_two(integrator: str, within: int) -> None:
    sampler = Sampler(4, integrator=integrator)
    work = machine()
    costs = work.costs(sampler)
    before = list(costs.frozen)
    for _ in range(16):
        _, record = work.run(sampler, within, costs)
        assert (record.steps, record.spent_ns) == (1, 10)
    assert costs.frozen == before


def at_random(generator: random.Random, steps: int) -> Callable[[float], int]:
    """Costs that differ from step to step."""
    table = [generator.randint(1, 30) for _ in range(2 * steps)]
    return lambda tau: table[min(int(tau * 2 * steps + 1e-9), 2 * steps - 1)]


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_with_right_estimates_the_deadline_is_met_whenever_one_frozen_step_fits(
    integrator: str,
) -> None:
    generator = random.Random(7)
    outcomes = set()
    for _ in range(200):
        steps = generator.randint(1, 8)
        sampler = Sampler(steps, integrator=integrator)
        frozen = at_random(generator, steps)
        extra = at_random(generator, steps)
        work = Machine(lambda tau, f=frozen, e=extra: f(tau) + e(tau), frozen)
        if integrator == "euler":
            costs = work.costs(sampler)
        else:  # longer steps ask at flow times that were not measured
            costs = StepCosts([120] * steps, [60] * steps)
        whole = sum(costs.frozen)
        need = sum(costs.guided) + whole
        within = generator.randint(0, need + 20)
        chunk, record = work.run(sampler, within, costs)
        check(sampler, chunk, record)
        if within >= (frozen(0.0) if integrator == "euler" else 60):
            assert record.met
        if within >= whole:
            assert record.steps_dropped == 0
        if within >= need:
            assert record.guidance == "kept"
        outcomes.add((record.guidance, record.steps_dropped > 0, record.last_resort))
    assert outcomes >= {
        ("kept", False, False),
        ("dropped", False, False),
        ("dropped", True, False),
    }


def check(sampler: Sampler, chunk: Tensor, record: DeadlineRecord) -> None:
    """What holds whatever the machine does."""
    assert chunk.isfinite().all()
    assert set(record.path) <= set(sampler.flow_times)
    assert (record.path[0], record.path[-1]) == (sampler.flow_times[0], 1.0)
    field = GUIDED if record.guidance == "kept" else FROZEN
    assert torch.equal(repeat(field, noise(), sampler, record), chunk)
    if record.guidance == "kept":
        assert (record.steps_dropped, record.dropped_at) == (0, None)
        assert torch.equal(chunk, sampler.denoise(GUIDED, noise()))
    elif record.steps_dropped == 0 and not record.last_resort:
        assert torch.equal(chunk, sampler.denoise(FROZEN, noise()))


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_with_wrong_estimates_there_is_always_a_whole_chunk_and_a_true_record(
    integrator: str,
) -> None:
    generator = random.Random(8)
    sampler = Sampler(6, integrator=integrator)
    costs = StepCosts([30] * 6, [10] * 6)
    for _ in range(200):
        slower = generator.choice((0.1, 1.0, 1.0, 5.0))
        work = Machine(
            lambda tau, s=slower: round(s * generator.randint(10, 60)),
            lambda tau, s=slower: round(s * generator.randint(5, 15)),
        )
        within = generator.randint(0, 400)
        start = work.now
        chunk, record = work.run(sampler, within, costs)
        check(sampler, chunk, record)
        assert record.spent_ns == work.now - start
        assert record.left_ns == start + within - work.now


def test_the_upper_quartile_of_the_rounds_counts_and_the_first_is_not_measured() -> None:
    rounds = iter([900, 900, 20, 21, 25, 24, 18, 19, 700, 23])
    work = Machine(lambda tau: 100, lambda tau: next(rounds))
    costs = measure_costs(
        work.frozen, work.frozen, noise(), Sampler(2), rounds=4, clock=work.clock
    )
    assert (costs.frozen, costs.guided) == ([25, 23], [25, 23])


def test_costs_are_kept_for_each_step() -> None:
    """A step near the noise may cost more than one near the action (BPTT), Heun's last is half."""
    work = Machine(lambda tau: round(100 * (1 - tau)), lambda tau: 10)
    costs = work.costs(Sampler(4))
    assert (costs.guided, costs.frozen) == ([100, 75, 50, 25], [10] * 4)
    assert work.costs(Sampler(4, integrator="heun")).frozen == [20, 20, 20, 10]


def test_a_hiccup_does_not_count_and_a_lasting_change_does() -> None:
    costs = StepCosts([100, 100], [10, 10])
    for seen, spent in enumerate([900, 900, 950, 970], start=1):
        costs.saw("guided", 1, spent)
        assert costs.guided == [100, 100], seen
    costs.saw("guided", 1, 990)
    assert costs.guided == [100, 900]
    for _ in range(16):
        costs.saw("guided", 1, 60)
    assert costs.guided == [100, 60]
    assert costs.frozen == [10, 10]


def slowed(kind: str) -> StepCosts:
    """After a time in which the second step of three was slow."""
    costs = StepCosts([100] * 3, [100] * 3)
    for _ in range(16):
        costs.saw(kind, 1, 900)
    return costs


@pytest.mark.parametrize("kind", ["guided", "frozen"])
def test_what_is_not_tried_for_its_cost_is_tried_again_after_a_while(kind: str) -> None:
    costs = slowed(kind)
    for _ in range(31):
        costs.missed(kind, [1, 2])
        assert getattr(costs, kind) == [100, 900, 100]
    costs.missed(kind, [1, 2])
    assert getattr(costs, kind) == [100, 100, 100]
    costs.saw(kind, 1, 900)  # still slow: believed at once
    assert getattr(costs, kind) == [100, 900, 100]
    costs.missed(kind, [1])
    assert getattr(costs, kind) == [100, 900, 100]


def test_a_measurement_starts_the_patience_anew() -> None:
    costs = slowed("guided")
    for _ in range(31):
        costs.missed("guided", [1])
    costs.saw("guided", 1, 900)
    costs.missed("guided", [1])
    assert costs.guided == [100, 900, 100]


def test_an_estimate_below_its_first_value_stays_there_untried() -> None:
    costs = StepCosts([100], [10])
    for _ in range(16):
        costs.saw("guided", 0, 60)
    for _ in range(100):
        costs.missed("guided", [0])
    assert costs.guided == [60]


def test_chunks_bring_the_estimates_up_to_date() -> None:
    work = machine()
    costs = work.costs(Sampler(4))
    work.guided_cost = lambda tau: 70
    for _ in range(5):
        work.run(Sampler(4), 10_000, costs)
    assert (costs.guided, costs.frozen) == ([70] * 4, [10] * 4)
    work.frozen_cost = lambda tau: 15
    for _ in range(5):
        work.run(Sampler(4), 100, costs)
    assert (costs.guided, costs.frozen) == ([70] * 4, [15] * 4)


def test_guidance_returns_at_once_after_a_hiccup_and_in_time_after_a_slow_spell() -> None:
    work, sampler = machine(), Sampler(4)
    costs, within = work.costs(sampler), 4 * 50 + 4 * 10 + 20

    def chunks(guided: int, count: int) -> list[str]:
        work.guided_cost = lambda tau: guided
        records = [work.run(sampler, within, costs)[1] for _ in range(count)]
        assert all(record.steps_dropped == 0 and record.met for record in records)
        return [record.guidance for record in records]

    assert chunks(50, 3) == ["kept"] * 3
    assert chunks(100, 1) == ["dropped"]
    assert chunks(50, 3) == ["kept"] * 3
    assert chunks(100, 200) == ["dropped"] * 200
    assert chunks(50, 200)[-100:] == ["kept"] * 100


def test_in_a_slow_spell_guidance_is_tried_rarely() -> None:
    work, sampler = machine(), Sampler(4)
    costs, within = work.costs(sampler), 4 * 50 + 4 * 10 + 20
    work.guided_cost = lambda tau: 300
    records = [work.run(sampler, within, costs)[1] for _ in range(300)]
    tried = [record.dropped_at != 0 for record in records]
    assert sum(tried[:16]) == 5
    assert sum(tried[16:]) == pytest.approx(284 / 33, abs=1)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_slow_spell_does_not_cost_steps_for_good(steps: int, integrator: str) -> None:
    work, sampler = machine(), Sampler(steps, integrator=integrator)
    costs = work.costs(sampler)
    within = sum(costs.frozen)
    work.frozen_cost = lambda tau: 2000
    for _ in range(20):
        work.run(sampler, within, costs, off=True)
    work.frozen_cost = lambda tau: 10
    after = [work.run(sampler, within, costs, off=True)[1] for _ in range(200)]
    assert all(not record.last_resort and record.steps_dropped == 0 for record in after[-5:])


def test_guidance_that_never_fitted_is_not_tried() -> None:
    """No patience brings an estimate below what was measured at first."""
    work, sampler = machine(), Sampler(4)
    costs = work.costs(sampler)
    for _ in range(100):
        _, record = work.run(sampler, 89, costs)
        assert record.dropped_at == 0
        assert record.steps_dropped == 0
        assert all(kind == "frozen" for kind, _ in work.asked)


def test_the_noise_is_left_alone_and_the_type_kept() -> None:
    for within in (0, 25, 60, 10_000):
        work, start = machine(), noise().float()
        before = start.clone()
        chunk, _ = denoise_before(
            work.steered,
            work.frozen,
            start,
            Sampler(4),
            deadline_ns=work.now + within,
            costs=work.costs(Sampler(4)),
            clock=work.clock,
        )
        assert torch.equal(start, before)
        assert (chunk.dtype, chunk.shape) == (torch.float32, start.shape)


def test_the_default_clock_is_monotonic_time() -> None:
    costs = measure_costs(GUIDED, FROZEN, noise(), Sampler(3))
    assert all(cost > 0 for cost in costs.guided + costs.frozen)
    far = time.monotonic_ns() + 3_600 * 10**9
    chunk, record = denoise_before(
        GUIDED, FROZEN, noise(), Sampler(3), deadline_ns=far, costs=costs
    )
    assert torch.equal(chunk, Sampler(3).denoise(GUIDED, noise()))
    assert 0 < record.spent_ns < 3_600 * 10**9


def test_the_clock_is_read_after_the_kernels_of_a_cuda_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = list[str]()

    class Stream:
        def synchronize(self) -> None:
            events.append("finished")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())

    def clock() -> int:
        events.append("read")
        return 3

    assert deadline._after_kernels(clock, torch.device("cuda", 0))() == 3
    assert events == ["finished", "read"]
    assert deadline._after_kernels(clock, torch.device("cpu")) is clock


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_no_step_is_decided_before_the_last_one_is_finished() -> None:
    last = list[torch.cuda.Event]()
    heavy = torch.randn(4096, 4096, device="cuda")

    def field(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        product = heavy
        for _ in range(8):
            product = product @ heavy / 4096
        velocity = 0.0 * product.sum() + swirl(noisy_chunk, flow_time)
        event = torch.cuda.Event()
        event.record()
        last.append(event)
        return velocity

    ticks = itertools.count()

    def clock() -> int:
        assert not last or last[-1].query()
        return next(ticks)

    start = noise().float().cuda()
    costs = measure_costs(field, field, start, Sampler(4), clock=clock)
    chunk, record = denoise_before(
        field, swirl, start, Sampler(4), deadline_ns=1000, costs=costs, clock=clock
    )
    assert record.guidance == "kept"
    assert torch.equal(chunk, Sampler(4).denoise(field, start))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: StepCosts([], []), "step costs must be as many guided as frozen ones"),
        (lambda: StepCosts([1, 2], [1]), "step costs must be as many guided as frozen ones"),
        (lambda: StepCosts([1, -2], [1, 1]), "none negative: got"),
        (lambda: machine().run(Sampler(4), 10, StepCosts([1], [1])), "must be of 4 steps: got 1"),
        (
            lambda: measure_costs(GUIDED, FROZEN, noise(), Sampler(2), rounds=0),
            "'rounds' must be at least 1: got 0",
        ),
    ],
)
def test_costs_that_mean_nothing_are_refused(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()
