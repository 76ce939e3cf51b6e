"""Gradients of the exact wires: finite differences, an independent dense solve, and the laws that they must obey."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from labrig_surrogates.wire_first_order import first_order_transfer
from labrig_surrogates.wires import crossbar_currents, terminal_admittance, transfer_matrix

OHM = st.floats(0.05, 2.0)


def cells(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Conductances of 0.05 to 1.05 S: with wires of an ohm, drops of everything there is."""
    return torch.rand((rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05


def dense_currents(conductance_s: Tensor, voltage_v: Tensor, word_ohm: Tensor, bit_ohm: Tensor) -> Tensor:
    """The node equations of the whole array as one matrix, which torch differentiates by itself."""
    rows, columns = conductance_s.shape
    along = torch.diag(torch.full((columns - 1,), -1.0), 1) + torch.diag(torch.full((columns - 1,), -1.0), -1)
    along = along + torch.diag(torch.tensor([2.0] * (columns - 1) + [1.0]))
    down = torch.diag(torch.full((rows - 1,), -1.0), 1) + torch.diag(torch.full((rows - 1,), -1.0), -1)
    down = down + torch.diag(torch.tensor([1.0] + [2.0] * (rows - 1)))
    device = torch.diag(conductance_s.reshape(-1))
    word = torch.kron(torch.eye(rows).double(), along.double()) / word_ohm
    bit = torch.kron(down.double(), torch.eye(columns).double()) / bit_ohm
    nodes = torch.cat([torch.cat([word + device, -device], 1), torch.cat([-device, bit + device], 1)])
    feed = torch.zeros(rows, columns, rows, dtype=torch.float64)
    feed[torch.arange(rows), 0, torch.arange(rows)] = 1.0
    drive = torch.cat([feed.reshape(-1, rows) / word_ohm, torch.zeros(rows * columns, rows).double()])
    potential: Tensor = torch.linalg.solve(nodes, drive @ voltage_v.mT)
    return (potential[-columns:] / bit_ohm).mT


@given(rows=st.integers(1, 10), columns=st.integers(1, 10), word_ohm=OHM, bit_ohm=OHM, seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_gradients_equal_finite_differences(
    rows: int, columns: int, word_ohm: float, bit_ohm: float, seed: int
) -> None:
    conductance_s = cells(rows, columns, seed).requires_grad_()
    voltage_v = torch.rand((2, rows), generator=torch.Generator().manual_seed(seed)).double().requires_grad_()
    ohms = [torch.tensor(ohm, dtype=torch.float64, requires_grad=True) for ohm in (word_ohm, bit_ohm)]
    assert torch.autograd.gradcheck(crossbar_currents, (conductance_s, voltage_v, *ohms), fast_mode=True)


def test_every_single_derivative_equals_its_finite_difference() -> None:
    word, bit = (torch.tensor([ohm, 0.3], dtype=torch.float64, requires_grad=True) for ohm in (0.7, 1.1))
    conductance_s = torch.stack([cells(9, 4), cells(9, 4, 1)]).requires_grad_()
    assert torch.autograd.gradcheck(terminal_admittance, (conductance_s, word, bit))


@pytest.mark.parametrize(("word_ohm", "bit_ohm"), [(0.0, 0.4), (0.4, 0.0), (0.0, 0.0)])
def test_conductance_gradients_with_ideal_wires(word_ohm: float, bit_ohm: float) -> None:
    conductance_s = cells(9, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: transfer_matrix(g, word_ohm, bit_ohm), (conductance_s,))


@pytest.mark.parametrize("size", [(6, 5), (9, 8), (17, 10)])
def test_gradients_equal_those_through_one_dense_solve(size: tuple[int, int]) -> None:
    voltage_v = torch.randn((3, size[0]), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.randn((3, size[1]), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = [cells(*size), voltage_v, torch.tensor(0.3).double(), torch.tensor(0.2).double()]
    gradients = []
    for model in (crossbar_currents, dense_currents):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        gradients.append(torch.autograd.grad((model(*leaves) * weight).sum(), leaves))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10 * float(theirs.abs().max()))


def test_at_zero_resistance_the_derivative_is_the_first_order() -> None:
    # The closed form of the first order comes from sums along lines, the other from the joined blocks' adjoint.
    conductance_s, weight = cells(20, 30), torch.randn(20, 30, dtype=torch.float64)
    slopes = []
    for transfer in (transfer_matrix, first_order_transfer):
        ohms = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2)]
        slopes.append(torch.autograd.grad((transfer(conductance_s, *ohms) * weight).sum(), ohms))
    for ours, closed in zip(*slopes, strict=True):
        assert float(ours) == pytest.approx(float(closed), rel=1e-11)


def test_power_balances_over_cells_and_wires() -> None:
    # The power into the line ends is homogeneous of degree one in all conductances (Euler), and each derivative is a
    # squared voltage or current (Tellegen): so it equals what cells and wires turn into heat.
    conductance_s = cells(14, 11).requires_grad_()
    word, bit = (torch.tensor(ohm, dtype=torch.float64, requires_grad=True) for ohm in (0.3, 0.8))
    ends_v = torch.randn(25, dtype=torch.float64)
    power_w = ends_v @ terminal_admittance(conductance_s, word, bit) @ ends_v
    by_cell, by_word, by_bit = torch.autograd.grad(power_w, (conductance_s, word, bit))
    assert float(by_cell.min()) >= 0.0
    assert max(float(by_word), float(by_bit)) < 0.0
    heat_w = (conductance_s * by_cell).sum() - word * by_word - bit * by_bit
    torch.testing.assert_close(heat_w, power_w, rtol=1e-11, atol=0.0)


def test_currents_and_voltages_obey_kirchhoff_at_every_node() -> None:
    # The derivative of a power by a conductance is its squared voltage; with every word line at 1 V none is negative.
    conductance_s, word_ohm, bit_ohm = cells(12, 9).requires_grad_(), 0.02, 0.05
    ends_v = torch.cat([torch.ones(12), torch.zeros(9)]).double()
    admittance = terminal_admittance(conductance_s, word_ohm, bit_ohm)
    (squared,) = torch.autograd.grad(ends_v @ admittance @ ends_v, conductance_s)
    across_v = squared.sqrt()
    cell_a = conductance_s.detach() * across_v
    # Currents of the segments from the law of nodes, potentials from the law of meshes: both must give `across_v`.
    word_a = cell_a.flip(1).cumsum(1).flip(1)
    bit_a = cell_a.cumsum(0)
    word_v = 1.0 - word_ohm * word_a.cumsum(1)
    bit_v = bit_ohm * bit_a.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(word_v - bit_v, across_v, rtol=1e-11, atol=0.0)
    torch.testing.assert_close(bit_a[-1], -(admittance @ ends_v)[12:].detach(), rtol=1e-11, atol=0.0)


def test_single_precision_gradients() -> None:
    gradients = []
    for dtype in (torch.float64, torch.float32):
        conductance_s = (1e-4 * cells(40, 33)).to(dtype).requires_grad_()
        ohm = torch.tensor(3.0, dtype=dtype, requires_grad=True)
        loss = transfer_matrix(conductance_s, ohm, 2.0).sum()
        gradients.append([gradient.double() for gradient in torch.autograd.grad(loss, (conductance_s, ohm))])
    for exact, single in zip(*gradients, strict=True):
        torch.testing.assert_close(single, exact, rtol=2e-5, atol=0.0)


def test_open_lines_are_differentiable() -> None:
    open_word = torch.tensor([False, True, False, True, False])
    open_bit = torch.tensor([True, False, False, False])
    word = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda g, ohm: transfer_matrix(g, ohm, 0.2, open_word_lines=open_word, open_bit_lines=open_bit),
        (cells(5, 4).requires_grad_(), word),
    )


def test_the_gradient_finds_the_wires_of_an_array() -> None:
    conductance_s, voltage_v = 1e-4 * cells(16, 16), torch.rand(20, 16, dtype=torch.float64)
    measured_a = crossbar_currents(conductance_s, voltage_v, 4.0, 9.0)

    def misfit(log_ohm: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        leaf = torch.tensor(log_ohm, requires_grad=True)
        word, bit = leaf.exp().unbind()
        loss = ((crossbar_currents(conductance_s, voltage_v, word, bit) - measured_a) * 1e5).pow(2).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.item(), gradient.numpy()

    found = minimize(misfit, np.zeros(2), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-10})
    np.testing.assert_allclose(np.exp(found.x), [4.0, 9.0], rtol=1e-4)


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    frozen = transfer_matrix(cells(9, 9), 1.0, 1.0)
    assert not frozen.requires_grad
    with torch.no_grad():
        assert not transfer_matrix(cells(9, 9).requires_grad_(), 1.0, 1.0).requires_grad


def test_a_second_derivative_is_refused() -> None:
    conductance_s = cells(4, 4).requires_grad_()
    (first,) = torch.autograd.grad(transfer_matrix(conductance_s, 1.0, 1.0).sum(), conductance_s, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(first.sum(), conductance_s)
