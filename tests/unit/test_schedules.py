"""Noise schedules against their closed forms, and as JSON."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.schedules import (
    Constant,
    Exponential,
    Linear,
    Overshoot,
    Scaled,
    Schedule,
    Then,
    Vant,
    from_json,
    to_json,
)

levels = st.floats(0.0, 10.0)
positive = st.floats(1e-6, 10.0)
counts = st.integers(1, 1000)


def simple() -> st.SearchStrategy[Schedule]:
    return st.one_of(
        st.builds(Constant, levels),
        st.builds(Linear, levels, levels, counts),
        st.builds(Exponential, positive, positive, counts),
        st.builds(Vant, levels, counts, levels, levels),
        st.builds(Overshoot, levels, counts, counts, st.floats(1.0, 3.0)),
    )


def nested() -> st.SearchStrategy[Schedule]:
    return st.recursive(
        simple(),
        lambda inner: st.one_of(st.builds(Then, inner, counts, inner), st.builds(Scaled, inner, levels)),
        max_leaves=4,
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(levels, levels, counts, st.integers(0, 2000))
def test_linear_is_its_formula(start: float, end: float, steps: int, step: int) -> None:
    expected = start + (end - start) * min(step, steps) / steps
    assert Linear(start, end, steps).level(step) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert Linear(start, end, steps).level(steps) == end


@given(positive, positive, counts, st.integers(0, 2000))
def test_exponential_is_its_formula(start: float, end: float, steps: int, step: int) -> None:
    expected = math.exp(math.log(start) + min(step, steps) / steps * (math.log(end) - math.log(start)))
    assert Exponential(start, end, steps).level(step) == pytest.approx(expected, rel=1e-9)
    assert Exponential(start, end, steps).level(steps) == end


def test_vant_is_what_its_code_computes() -> None:
    # np.linspace(0, sigma, 100), then sigma_i = mean_factor * sigma + spread * |n_i| (UniHD-CEG/VANT, main.py).
    vant = Vant(end=1.5, ramp_steps=99, mean_factor=0.45, spread=0.66)
    ramp = torch.linspace(0.0, 1.5, 100, dtype=torch.float64)
    assert [vant.level(step) for step in range(99)] == pytest.approx(ramp[:99].tolist())
    assert vant.draw(50, 3, generator()).tolist() == pytest.approx([1.5 * 50 / 99] * 3)
    drawn = vant.draw(99, 200_000, generator(1)).double()
    normal = torch.randn(200_000, generator=generator(1)).double()
    torch.testing.assert_close(drawn, 0.45 * 1.5 + 0.66 * normal.abs(), rtol=1e-5, atol=1e-6)
    error = 0.66 * math.sqrt((1 - 2 / math.pi) / 200_000)
    assert abs(float(drawn.mean()) - vant.level(99)) < 5 * error
    assert float(drawn.min()) >= 0.45 * 1.5


def test_overshoot_is_what_vant_computes() -> None:
    # linspace(0, 1.5 sigma, E - 175), linspace(1.5 sigma, sigma, 75), then sigma.
    rise, fall = 225, 75
    schedule = Overshoot(end=2.0, rise_steps=rise, fall_steps=fall)
    assert schedule.level(0) == 0.0
    assert schedule.level(rise) == 3.0
    assert schedule.level(rise + fall) == schedule.level(10_000) == 2.0
    assert schedule.level(90) == pytest.approx(3.0 * 90 / rise)
    assert schedule.level(rise + 30) == pytest.approx(3.0 - 1.0 * 30 / fall)


def test_schedules_compose() -> None:
    warm_up_later = Then(Constant(0.0), 10, Scaled(Linear(0.0, 0.1, 5), 2.0))
    assert [warm_up_later.level(step) for step in (0, 9, 10, 12, 15, 99)] == pytest.approx([0, 0, 0, 0.08, 0.2, 0.2])
    late = Then(Constant(0.5), 3, Vant(1.0, 1))
    assert late.draw(2, 2, generator()).tolist() == [0.5, 0.5]
    assert torch.equal(late.draw(9, 4, generator(3)), Vant(1.0, 1).draw(6, 4, generator(3)))
    assert torch.equal(Scaled(late, 2.0).draw(9, 4, generator(3)), 2.0 * late.draw(9, 4, generator(3)))


@given(nested(), st.integers(0, 3000))
def test_json_gives_an_equal_schedule_back(schedule: Schedule, step: int) -> None:
    again = from_json(to_json(schedule))
    assert again == schedule
    assert again.level(step) == schedule.level(step) >= 0
    assert torch.equal(again.draw(step, 3, generator(2)), schedule.draw(step, 3, generator(2)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object with a key 'kind'"),
        ('{"kind": "cosine"}', "kind 'cosine' is none of constant, linear"),
        (
            '{"kind": "linear", "start": "a", "stop": 1, "steps": 2.5}',
            "unknown key 'stop'; key 'end' is missing; start is 'a': not a number; steps is 2.5: not a whole number",
        ),
        ('{"kind": "constant", "value": true}', "value is True: not a number"),
        (
            '{"kind": "scaled", "factor": 1, "schedule": {"kind": "constant"}}',
            "schedule.schedule (constant): key 'value'",
        ),
        ('{"kind": "linear", "start": -1, "end": NaN, "steps": 0}', "start is -1.*end is nan.*steps is 0"),
    ],
)
def test_bad_json_is_refused_with_every_fault(text: str, message: str) -> None:
    with pytest.raises(SurrogateError, match=message.replace("(", r"\(").replace(")", r"\)")):
        from_json(text)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(SurrogateError, match="start is zero, where no ratio leads"):
        Exponential(0.0, 0.1, 5)
    with pytest.raises(SurrogateError, match=r"end is inf.*rise_steps is 0.*peak_factor is 0.5"):
        Overshoot(math.inf, 0, 3, 0.5)
    with pytest.raises(SurrogateError, match="steps count from zero"):
        Linear(0, 1, 2).level(-1)

    class Mine:
        def level(self, step: int) -> float:
            return 0.0

        def draw(self, step: int, samples: int, generator: torch.Generator) -> torch.Tensor:
            return torch.zeros(samples)

    with pytest.raises(SurrogateError, match="has no form in JSON"):
        to_json(Then(Mine(), 3, Constant(0.0)))


def test_json_is_plain() -> None:
    assert json.loads(to_json(Linear(0.0, 0.1, 5))) == {"kind": "linear", "start": 0.0, "end": 0.1, "steps": 5}
