"""The stream of normal numbers: reproducible, independent, and a registered operator."""

import copy

import torch
from torch.library import opcheck

from labrig_surrogates.normal_stream import NormalStream


def stream(seed: int = 0) -> NormalStream:
    return NormalStream(torch.Generator().manual_seed(seed))


def test_numbers_are_standard_normal_and_those_of_neighbours_unrelated() -> None:
    numbers = stream()
    draws = torch.stack([numbers.normal(torch.empty(100, 50)) for _ in range(40)]).double()
    count = draws.numel()
    assert abs(float(draws.mean())) < 5 / count**0.5
    assert abs(float(draws.var()) - 1) < 5 * (2 / count) ** 0.5
    assert abs(float((draws**3).mean())) < 5 * (15 / count) ** 0.5
    assert abs(float((draws**4).mean()) - 3) < 5 * (96 / count) ** 0.5
    flat = draws.flatten(1)
    correlation = (flat[:-1] * flat[1:]).mean(dim=1)
    assert float(correlation.abs().max()) < 5 / flat.shape[1] ** 0.5


def test_equal_seeds_give_equal_numbers_whatever_others_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = NormalStream(generator), NormalStream(generator)
    like = torch.empty(7)
    alone = [stream().normal(like)]
    second.normal(like)
    torch.randn(3)
    assert torch.equal(first.normal(like), alone[0])
    assert not torch.equal(first.normal(like), second.normal(like))
    assert not torch.equal(stream(1).normal(like), alone[0])


def test_a_copy_continues_and_a_stored_state_comes_back() -> None:
    numbers = stream()
    like = torch.empty(4, dtype=torch.bfloat16)
    numbers.normal(like)
    copied, stored = copy.deepcopy(numbers), numbers.state.clone()
    expected = numbers.normal(like)
    assert expected.dtype == torch.float32
    assert torch.equal(copied.normal(like), expected)
    restored = stream(5)
    restored.state.copy_(stored)
    assert torch.equal(restored.normal(like), expected)


def test_the_operator_is_registered_correctly() -> None:
    # Drawing twice from one state differs on purpose: only what does not compare values is checked.
    opcheck(
        torch.ops.labrig_surrogates.normal.default,
        (torch.empty(3, 4), torch.tensor([5, 0])),
        test_utils=("test_schema", "test_faketensor"),
    )
