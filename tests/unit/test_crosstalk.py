"""Crosstalk between lines as a banded matrix, and the correction C(x) that wires and crosstalk make together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig_surrogates.crosstalk import apply_crosstalk, crosstalk_matrix
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.wires import transfer_matrix
from labrig_surrogates.wiring import Crosstalk, Wiring, wired_transfer, wiring_correction

UNIT = torch.empty(0, dtype=torch.float64)


@given(lines=st.integers(1, 9), distances=st.integers(0, 11), conserving=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_matrix_is_banded_and_symmetric(lines: int, distances: int, conserving: bool) -> None:
    coupling = [0.1 / distance for distance in range(1, distances + 1)]
    matrix = crosstalk_matrix(lines, coupling, conserving=conserving, like=UNIT)
    assert torch.equal(matrix, matrix.mT)
    for i in range(lines):
        for j in range(lines):
            apart = abs(i - j)
            if apart:
                assert float(matrix[i, j]) == (coupling[apart - 1] if apart <= distances else 0.0)
    own = matrix.sum(dim=0) if conserving else matrix.diagonal()
    torch.testing.assert_close(own, torch.ones(lines).double())


@pytest.mark.parametrize("conserving", [True, False])
def test_applying_it_is_the_product_with_the_matrix(conserving: bool) -> None:
    signal = torch.randn(3, 4, 9, dtype=torch.float64)
    matrix = crosstalk_matrix(9, [0.05, -0.01, 0.002], conserving=conserving, like=signal)
    torch.testing.assert_close(apply_crosstalk(signal, [0.05, -0.01, 0.002], conserving=conserving), signal @ matrix)


def test_a_leak_keeps_the_total_and_a_pick_up_does_not() -> None:
    signal = torch.rand(5, 12, dtype=torch.float64)
    total = signal.sum(dim=-1)
    torch.testing.assert_close(apply_crosstalk(signal, [0.1, 0.02], conserving=True).sum(dim=-1), total)
    assert bool((apply_crosstalk(signal, [0.1, 0.02], conserving=False).sum(dim=-1) > 1.1 * total).all())


def test_equal_lines_do_not_disturb_one_another_by_leaks() -> None:
    signal = torch.full((2, 6), 0.3)
    assert torch.equal(apply_crosstalk(signal, [0.2, 0.1], conserving=True), signal)


@pytest.mark.parametrize("conserving", [True, False])
def test_signal_and_coupling_have_gradients(conserving: bool) -> None:
    signal = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    coupling = torch.tensor([0.1, 0.03], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, c: apply_crosstalk(s, c, conserving=conserving), (signal, coupling))


@pytest.mark.parametrize("coupling", [[float("nan")], torch.ones(2, 2)])
def test_coupling_that_is_none_is_refused(coupling: torch.Tensor | list[float]) -> None:
    with pytest.raises(SurrogateError, match="coupling"):
        apply_crosstalk(torch.ones(4), coupling, conserving=True)
    with pytest.raises(SurrogateError, match="lines"):
        apply_crosstalk(torch.ones(()), [0.1], conserving=True)


CELLS = 10.0 ** (torch.rand(10, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 5.0)
VOLTAGE = torch.rand(4, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_ideal_lines_need_no_correction() -> None:
    assert torch.equal(wired_transfer(CELLS, Wiring(0.0, 0.0, "first-order")), CELLS)
    assert float(wiring_correction(CELLS, VOLTAGE, Wiring(0.0, 0.0)).abs().max()) < 1e-19


def test_crosstalk_acts_on_voltages_before_and_on_currents_behind_the_array() -> None:
    wiring = Wiring(
        5.0,
        8.0,
        word_line_crosstalk=Crosstalk((0.01,), conserving=False),
        bit_line_crosstalk=Crosstalk((0.02, 0.005), conserving=True),
    )
    word = crosstalk_matrix(10, [0.01], conserving=False, like=CELLS)
    bit = crosstalk_matrix(7, [0.02, 0.005], conserving=True, like=CELLS)
    current_a = ((VOLTAGE @ word) @ transfer_matrix(CELLS, 5.0, 8.0)) @ bit
    torch.testing.assert_close(VOLTAGE @ wired_transfer(CELLS, wiring), current_a)
    torch.testing.assert_close(VOLTAGE @ CELLS + wiring_correction(CELLS, VOLTAGE, wiring), current_a)


def test_the_correction_follows_the_weights_and_the_total_current() -> None:
    # Twice the conductance or twice as many driven lines: more than twice the loss.
    wiring = Wiring(2.0, 2.0)
    loss = wiring_correction(CELLS, VOLTAGE, wiring)
    assert bool((wiring_correction(2.0 * CELLS, VOLTAGE, wiring) < 2.5 * loss).all())
    quiet = VOLTAGE.clone()
    quiet[:, :5] = 0.0
    halves = wiring_correction(CELLS, quiet, wiring) / (quiet @ CELLS)
    assert bool((halves != loss / (VOLTAGE @ CELLS)).all())


def test_the_first_order_is_near_the_exact_solution_and_both_are_differentiable() -> None:
    slopes = []
    for solution in ("exact", "first-order"):
        ohm = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        cells = CELLS.clone().requires_grad_()
        correction = wiring_correction(cells, VOLTAGE, Wiring(ohm, 3.0, solution))
        slopes.append((correction, *torch.autograd.grad(correction.sum(), (cells, ohm))))
    for exact, first in zip(*slopes, strict=True):
        torch.testing.assert_close(first, exact, rtol=0.02, atol=0.01 * float(exact.detach().abs().max()))
