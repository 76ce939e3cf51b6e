"""The first-order form of the wires: its order, its signs, its error, and the published approximation it replaces."""

import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.wire_first_order import FirstOrderWires, first_order_transfer
from labrig_surrogates.wire_sums import LineSums
from labrig_surrogates.wires import transfer_matrix


def random_cells(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 10.0 ** (torch.rand(shape, generator=generator, dtype=torch.float64) - 5.0)


def worst(approximate: Tensor, exact: Tensor) -> float:
    """Largest error over the largest value."""
    return float((approximate - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(("word", "bit"), [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)])
def test_what_is_left_out_is_of_second_order(word: float, bit: float) -> None:
    conductance_s = random_cells(24, 33)

    def error(scale: float) -> float:
        exact = transfer_matrix(conductance_s, scale * word, scale * bit)
        return float((first_order_transfer(conductance_s, scale * word, scale * bit) - exact).abs().max())

    assert error(0.02) / error(0.01) == pytest.approx(4.0, rel=0.05)


def test_a_single_cell_is_exact() -> None:
    cell = torch.tensor([[1e-3]], dtype=torch.float64)
    assert float(first_order_transfer(cell, 400.0, 900.0)) == pytest.approx(1.0 / (1e3 + 1300.0), rel=1e-14)


def test_without_wire_resistance_it_is_the_conductance() -> None:
    conductance_s = random_cells(7, 9)
    assert torch.equal(first_order_transfer(conductance_s, 0.0, 0.0), conductance_s)


def test_bit_lines_take_most_from_the_row_far_from_ground() -> None:
    uniform = torch.full((64, 3), 1e-5, dtype=torch.float64)
    loss = 1.0 - first_order_transfer(uniform, 0.0, 1e-3)[:, 0] / 1e-5
    assert bool((loss.diff() < 0).all())
    # A ladder with n equal currents: (n^2 / 2) (1 - (1 - j / n)^2) segments' worth, j counted from the grounded end.
    from_ground = torch.arange(64, 0, -1).double()
    closed = 1e-5 * 1e-3 * (64.0**2 / 2.0) * (1.0 - (1.0 - from_ground / 64.0) ** 2)
    torch.testing.assert_close(loss, closed, rtol=0.03, atol=0.0)


def test_word_lines_take_most_from_the_column_far_from_the_driver() -> None:
    uniform = torch.full((3, 64), 1e-5, dtype=torch.float64)
    loss = 1.0 - first_order_transfer(uniform, 1e-3, 0.0)[0] / 1e-5
    assert bool((loss.diff() > 0).all())
    exact = 1.0 - transfer_matrix(uniform, 1e-3, 0.0)[0] / 1e-5
    torch.testing.assert_close(loss, exact, rtol=1e-4, atol=0.0)


def cubic(conductance_s: Tensor, voltage_v: Tensor, bit_ohm: float, *, from_ground: bool, gamma_ratio: float) -> Tensor:
    """The per-column approximation that aihwkit documents, in SI units; `gamma_ratio` is a wrong unit's factor."""
    rows = conductance_s.shape[0]
    load = bit_ohm * gamma_ratio * rows * (voltage_v.abs() / voltage_v.abs().max() @ conductance_s)
    factor = load * (load * (0.05 * load - 0.2) + 0.5)
    place = torch.arange(rows - 1, -1, -1) if from_ground else torch.arange(rows)
    profile = 1.0 - (1.0 - place.double() / rows) ** 2
    return voltage_v @ conductance_s - factor * ((voltage_v * profile) @ conductance_s)


def test_orientation_and_unit_of_the_published_column_formula() -> None:
    # More voltage far from ground, so that the orientation matters.
    conductance_s, voltage_v = random_cells(64, 16), torch.linspace(0.3, 0.0, 64).double()[None]
    exact = voltage_v @ transfer_matrix(conductance_s, 0.0, 1.0)
    ours = worst(voltage_v @ first_order_transfer(conductance_s, 0.0, 1.0), exact)
    right = worst(cubic(conductance_s, voltage_v, 1.0, from_ground=True, gamma_ratio=1.0), exact)
    turned = worst(cubic(conductance_s, voltage_v, 1.0, from_ground=False, gamma_ratio=1.0), exact)
    wrong_unit = worst(cubic(conductance_s, voltage_v, 1.0, from_ground=True, gamma_ratio=1e-3), exact)
    ideal = worst(voltage_v @ conductance_s, exact)
    assert ours < right < turned
    assert ours < 0.01 < ideal
    assert wrong_unit == pytest.approx(ideal, rel=0.01)


@pytest.mark.parametrize(("size", "ohm"), [(64, 0.45), (128, 0.12), (256, 0.03)])
def test_within_a_percent_while_lines_drop_less_than_five(size: int, ohm: float) -> None:
    # Voltages from a seed: over all draws the drop is that of the case to 1 %, which may lie beyond the bounds below.
    drawn = torch.Generator().manual_seed(0)
    conductance_s, voltage_v = random_cells(size, size), torch.rand(32, size, generator=drawn, dtype=torch.float64)
    exact = voltage_v @ transfer_matrix(conductance_s, ohm, ohm)
    drop = float(1.0 - exact.sum() / (voltage_v @ conductance_s).sum())
    assert 0.04 < drop < 0.05
    assert worst(voltage_v @ first_order_transfer(conductance_s, ohm, ohm), exact) < 0.002


def test_the_quotient_errs_less_than_the_plain_series() -> None:
    conductance_s = random_cells(64, 64)
    exact = transfer_matrix(conductance_s, 1.0, 1.0)
    quotient = first_order_transfer(conductance_s, 1.0, 1.0)
    series = conductance_s * (2.0 - conductance_s / quotient)
    assert 5.0 * worst(quotient.sum(0), exact.sum(0)) < worst(series.sum(0), exact.sum(0))


def test_gradients() -> None:
    conductance_s = (random_cells(5, 7) * 1e4).requires_grad_()
    ohms = [torch.tensor(ohm, dtype=torch.float64, requires_grad=True) for ohm in (0.0, 0.7)]
    assert torch.autograd.gradcheck(first_order_transfer, (conductance_s, *ohms))


def test_the_module_is_the_function_with_its_constants() -> None:
    wires = FirstOrderWires(6, 9, word_line_ohm=2.0, bit_line_ohm=3.0)
    conductance_s = random_cells(4, 6, 9)
    torch.testing.assert_close(wires(conductance_s.float()), first_order_transfer(conductance_s.float(), 2.0, 3.0))
    torch.testing.assert_close(wires.double()(conductance_s), first_order_transfer(conductance_s, 2.0, 3.0))
    assert wires.state_dict() == {}


def test_a_batch_with_a_resistance_for_each_array() -> None:
    conductance_s, ohm = random_cells(3, 5, 4), torch.tensor([0.0, 1.0, 5.0]).double()
    together = first_order_transfer(conductance_s, ohm, 2.0)
    for index in range(3):
        alone = first_order_transfer(conductance_s[index], float(ohm[index]), 2.0)
        torch.testing.assert_close(together[index], alone)


def test_compiled_and_under_autocast() -> None:
    wires = FirstOrderWires(8, 8, word_line_ohm=50.0, bit_line_ohm=50.0)
    model = nn.Sequential(wires)
    conductance_s = random_cells(8, 8).float()
    plain = model(conductance_s)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(conductance_s), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(conductance_s), plain)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SurrogateError, match="shape"):
        first_order_transfer(torch.ones(3), 1.0, 1.0)
    with pytest.raises(SurrogateError, match="bit_line_ohm is -1"):
        first_order_transfer(torch.ones(3, 3), 1.0, -1.0)
    with pytest.raises(SurrogateError, match="0 x 3"):
        FirstOrderWires(0, 3, word_line_ohm=1.0, bit_line_ohm=1.0)
    with pytest.raises(SurrogateError, match="2 x 3"):
        FirstOrderWires(2, 3, word_line_ohm=1.0, bit_line_ohm=1.0)(torch.ones(3, 2))


@pytest.mark.parametrize("cells", [1, 128, 129, 131, 144, 256, 300])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_sums_along_lines_are_products_with_the_weights(cells: int, batch: tuple[int, ...]) -> None:
    # Lines of more than 128 cells are summed in pieces; 131 is prime and has none.
    place = torch.arange(1, cells + 1).double()
    weights = torch.minimum(place[:, None], place)
    values, onto = random_cells(*batch, 7, cells), torch.ones((), dtype=torch.float64)
    sums = LineSums.of(cells, values)
    torch.testing.assert_close(sums.along(values, onto), onto + values @ weights)
    torch.testing.assert_close(sums.down(values.mT, values.mT), values.mT + weights @ values.mT)
    turned = weights.flip(0, 1)
    torch.testing.assert_close(sums.turned().along(values, values), values + values @ turned)
    torch.testing.assert_close(sums.turned().times(onto * 3.0).down(values.mT, onto), onto + 3.0 * turned @ values.mT)
