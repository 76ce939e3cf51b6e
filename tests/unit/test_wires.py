"""Wire resistance solved exactly: against Kirchhoff's equations written out, closed forms, and other programs."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from labrig_drivers.mock import nodal
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.wire_operator import crossbar_admittance
from labrig_surrogates.wires import crossbar_currents, terminal_admittance, transfer_matrix

FloatArray = NDArray[np.float64]
# Below a tenth of an ohm the node equations themselves, solved as a dense system, lose too many digits.
OHM = st.one_of(st.just(0.0), st.floats(0.1, 300.0))


def kirchhoff(conductance_s: FloatArray, word_ohm: float, bit_ohm: float) -> FloatArray:
    """Admittance of the line ends, resistor by resistor; a wire without resistance makes its nodes one."""
    rows, columns = conductance_s.shape
    count = rows + columns
    inner = iter(range(count, count + 2 * conductance_s.size))
    word = np.array([[i if word_ohm == 0 else next(inner) for _ in range(columns)] for i in range(rows)])
    bit = np.array([[rows + j if bit_ohm == 0 else next(inner) for j in range(columns)] for _ in range(rows)])
    nodes = np.zeros((count + 2 * conductance_s.size,) * 2)

    def resistor(a: int, b: int, siemens: float) -> None:
        nodes[a, a] += siemens
        nodes[b, b] += siemens
        nodes[a, b] -= siemens
        nodes[b, a] -= siemens

    for i, j in product(range(rows), range(columns)):
        resistor(word[i, j], bit[i, j], conductance_s[i, j])
        if word_ohm:
            resistor(word[i, j], word[i, j - 1] if j else i, 1.0 / word_ohm)
        if bit_ohm:
            resistor(bit[i, j], bit[i + 1, j] if i < rows - 1 else rows + j, 1.0 / bit_ohm)
    used = next(inner, nodes.shape[0])
    ends, own, between = nodes[:count, :count], nodes[count:used, count:used], nodes[count:used, :count]
    return np.asarray(ends - between.T @ np.linalg.solve(own, between))


def random_cells(*shape: int, seed: int = 0) -> Tensor:
    """Conductances of 10 to 100 microsiemens, log-uniform."""
    generator = torch.Generator().manual_seed(seed)
    return 10.0 ** (torch.rand(shape, generator=generator, dtype=torch.float64) - 5.0)


def pattern(rows: int, columns: int) -> Tensor:
    """Conductances that need no generator: 10 to 100 microsiemens."""
    i, j = torch.arange(rows)[:, None], torch.arange(columns)
    return 10.0 ** (((7 * i + 11 * j + 3 * i * j) % 17).double() / 16.0 - 5.0)


class Recorded(NamedTuple):
    """Output currents in A that badcrossbar 1.1.0 gave for `pattern` at 0.1 to 0.3 V: first, middle, last, sum."""

    rows: int
    columns: int
    word_ohm: float
    bit_ohm: float
    current_a: tuple[float, float, float]
    sum_a: float


RECORDED = [
    Recorded(
        8, 8, 1.0, 1.0, (6.924339203238572e-05, 6.50581340653416e-05, 6.0342783086881316e-05), 0.0005503939407577574
    ),
    Recorded(
        12, 20, 5.0, 0.5, (9.170100064594541e-05, 8.222463745880756e-05, 0.00010329446359419194), 0.0020028589520617395
    ),
    Recorded(
        33, 17, 0.0, 2.0, (0.00025248502315490084, 0.0002537096301665943, 0.00027614687492945864), 0.004577890629110884
    ),
    Recorded(
        17, 33, 2.0, 0.0, (0.00013915832854832517, 0.00013471821535629173, 0.00012137703644935604), 0.004498101202933659
    ),
    Recorded(
        64, 64, 3.0, 1.0, (0.00048512235385098274, 0.0003976488427384282, 0.0003850626617463499), 0.028079957540590544
    ),
    Recorded(
        128, 128, 1.0, 1.0, (0.0008555291897514004, 0.0006912121695336769, 0.0006568246044528457), 0.09489083358788347
    ),
]


@given(rows=st.integers(1, 17), columns=st.integers(1, 17), word_ohm=OHM, bit_ohm=OHM, seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_admittance_solves_kirchhoff(rows: int, columns: int, word_ohm: float, bit_ohm: float, seed: int) -> None:
    conductance_s = random_cells(rows, columns, seed=seed)
    exact = kirchhoff(conductance_s.numpy(), word_ohm, bit_ohm)
    ours = terminal_admittance(conductance_s, word_ohm, bit_ohm).numpy()
    np.testing.assert_allclose(ours, exact, rtol=1e-8, atol=1e-8 * np.abs(exact).max())


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda r: f"{r.rows}x{r.columns}")
def test_badcrossbar_found_the_same_currents(recorded: Recorded) -> None:
    rows, columns, word_ohm, bit_ohm, current_a, sum_a = recorded
    voltage_v = 0.1 + 0.2 * ((5 * torch.arange(rows)) % 13).double() / 12.0
    ours = crossbar_currents(pattern(rows, columns), voltage_v, word_ohm, bit_ohm)
    np.testing.assert_allclose(ours[[0, columns // 2, -1]], current_a, rtol=1e-8)
    np.testing.assert_allclose(float(ours.sum()), sum_a, rtol=1e-8)


@pytest.mark.parametrize(("rows", "columns"), [(40, 56), (100, 10), (10, 70)])
def test_the_simulated_chip_solves_the_same_circuit(rows: int, columns: int) -> None:
    conductance_s = random_cells(rows, columns)
    truth = nodal.transfer_matrix(conductance_s.numpy(), 2.0, 3.0)
    np.testing.assert_allclose(transfer_matrix(conductance_s, 2.0, 3.0).numpy(), truth, rtol=1e-9)


def test_one_cell_is_three_resistors_in_series() -> None:
    transfer = transfer_matrix(torch.tensor([[1e-4]], dtype=torch.float64), 30.0, 70.0)
    assert float(transfer) == pytest.approx(1.0 / (1e4 + 100.0), rel=1e-15)


@pytest.mark.parametrize("ohm", [1e-6, 1.0, 1e4, 1e9])
def test_one_word_line_is_a_ladder(ohm: float) -> None:
    cells = random_cells(1, 50)
    behind = 0.0
    for siemens in reversed(cells[0].tolist()):
        # The line from here on: the cell beside the rest, behind one segment.
        behind = 1.0 / (ohm + 1.0 / (siemens + behind))
    assert float(transfer_matrix(cells, ohm, 0.0).sum()) == pytest.approx(behind, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_wire_resistance_the_transfer_is_the_conductance(dtype: torch.dtype) -> None:
    conductance_s = random_cells(30, 45).to(dtype)
    torch.testing.assert_close(transfer_matrix(conductance_s, 0.0, 0.0), conductance_s, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize(("word_ohm", "bit_ohm"), [(1e-9, 1e-9), (0.0, 1e-9), (1e-9, 0.0)])
def test_small_resistances_are_not_lost_in_rounding(word_ohm: float, bit_ohm: float) -> None:
    # The node matrix would hold 1e9 S beside 1e-5 S: its solution has no correct digit of the effect.
    conductance_s = random_cells(24, 24)
    effect = 1.0 - transfer_matrix(conductance_s, word_ohm, bit_ohm) / conductance_s
    scaled = 1.0 - transfer_matrix(conductance_s, word_ohm * 1e6, bit_ohm * 1e6) / conductance_s
    torch.testing.assert_close(effect * 1e6, scaled, rtol=2e-2, atol=0.0)


def test_single_precision_holds_six_digits() -> None:
    conductance_s = random_cells(128, 128)
    exact = transfer_matrix(conductance_s, 1.0, 1.0)
    single = transfer_matrix(conductance_s.float(), 1.0, 1.0)
    assert single.dtype == torch.float32
    assert float((single / exact - 1.0).abs().max()) < 1e-5


def test_far_too_resistive_wires_leave_the_nearest_cell() -> None:
    conductance_s = random_cells(9, 9)
    transfer = transfer_matrix(conductance_s, 1e12, 0.0)
    torch.testing.assert_close(transfer[:, 0], torch.full((9,), 1e-12, dtype=torch.float64), rtol=1e-6, atol=0.0)
    assert float(transfer[:, 1:].abs().max()) < 1e-16


@given(rows=st.integers(1, 20), columns=st.integers(1, 20), word_ohm=OHM, bit_ohm=OHM)
@settings(max_examples=20, deadline=None)
def test_admittance_is_reciprocal_passive_and_conserves_charge(
    rows: int, columns: int, word_ohm: float, bit_ohm: float
) -> None:
    admittance = terminal_admittance(random_cells(rows, columns), word_ohm, bit_ohm)
    scale = float(admittance.abs().max())
    torch.testing.assert_close(admittance, admittance.mT, rtol=0.0, atol=1e-13 * scale)
    assert float(admittance.sum(dim=-1).abs().max()) < 1e-12 * scale
    assert float(torch.linalg.eigvalsh(admittance).min()) > -1e-12 * scale


def test_driven_from_the_other_side_the_transfer_is_transposed() -> None:
    conductance_s = random_cells(13, 21)
    # Turned by half a turn about the anti-diagonal, bit lines are driven and word lines are read.
    turned = transfer_matrix(conductance_s.flip(0, 1).mT, 3.0, 5.0)
    torch.testing.assert_close(turned.flip(0, 1).mT, transfer_matrix(conductance_s, 5.0, 3.0), rtol=1e-12, atol=0.0)


def test_more_resistance_anywhere_never_conducts_more() -> None:
    # Rayleigh's monotonicity law, for all voltages at once: the difference has no negative eigenvalue.
    conductance_s = random_cells(12, 15)
    base = terminal_admittance(conductance_s, 5.0, 5.0)
    better = conductance_s.clone()
    better[3, 4] *= 2.0
    for more in (
        terminal_admittance(conductance_s, 4.0, 5.0),
        terminal_admittance(conductance_s, 5.0, 4.0),
        terminal_admittance(better, 5.0, 5.0),
    ):
        assert float(torch.linalg.eigvalsh(more - base).min()) > -1e-15
        assert float(torch.trace(more - base)) > 1e-7


def test_the_cell_far_from_driver_and_ground_loses_most() -> None:
    ratio = transfer_matrix(torch.full((16, 16), 1e-4, dtype=torch.float64), 5.0, 5.0) / 1e-4
    assert int(ratio.argmin()) == 15
    assert int(ratio.argmax()) == 15 * 16


def test_a_batch_of_arrays_equals_a_loop() -> None:
    conductance_s = random_cells(2, 3, 10, 12)
    word_ohm, bit_ohm = torch.tensor([1.0, 2.0]).double()[:, None], torch.tensor([0.0, 3.0, 9.0]).double()
    together = transfer_matrix(conductance_s, word_ohm, bit_ohm)
    assert together.shape == conductance_s.shape
    for i, j in product(range(2), range(3)):
        alone = transfer_matrix(conductance_s[i, j], float(word_ohm[i]), float(bit_ohm[j]))
        torch.testing.assert_close(together[i, j], alone, rtol=1e-13, atol=0.0)


def test_one_array_with_many_resistances() -> None:
    conductance_s = random_cells(9, 5)
    ohm = torch.tensor([0.0, 1.0, 10.0], dtype=torch.float64)
    together = transfer_matrix(conductance_s, ohm, 2.0)
    assert together.shape == (3, 9, 5)
    torch.testing.assert_close(together[2], transfer_matrix(conductance_s, 10.0, 2.0), rtol=1e-13, atol=0.0)


def test_currents_are_products_with_the_transfer() -> None:
    conductance_s, voltage_v = random_cells(2, 9, 5), torch.rand(7, 9, dtype=torch.float64)
    transfer = transfer_matrix(conductance_s, 1.0, 1.0)
    torch.testing.assert_close(crossbar_currents(conductance_s, voltage_v, 1.0, 1.0), voltage_v @ transfer)
    torch.testing.assert_close(crossbar_currents(conductance_s[0], voltage_v[0], 1.0, 1.0), voltage_v[0] @ transfer[0])


def test_the_wider_precision_wins_and_half_becomes_single() -> None:
    cells, voltage_v = random_cells(4, 4).float(), torch.ones(4, dtype=torch.float64)
    assert crossbar_currents(cells, voltage_v, 1.0, 1.0).dtype == torch.float64
    assert crossbar_currents(cells.bfloat16(), voltage_v.bfloat16(), 1.0, 1.0).dtype == torch.float32


def test_sneak_path_around_the_cell_that_is_read() -> None:
    # The other word line and the other bit line float: three cells in series beside the one that is meant.
    g = random_cells(2, 2)
    away = torch.tensor([False, True])
    read = transfer_matrix(g, 0.0, 0.0, open_word_lines=away, open_bit_lines=away)
    sneak = 1.0 / (1.0 / g[0, 1] + 1.0 / g[1, 1] + 1.0 / g[1, 0])
    torch.testing.assert_close(read, torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double() * (g[0, 0] + sneak))


@pytest.mark.parametrize(("word_ohm", "bit_ohm"), [(4.0, 7.0), (0.0, 7.0), (0.0, 0.0)])
def test_open_lines_carry_no_current(word_ohm: float, bit_ohm: float) -> None:
    conductance_s = random_cells(6, 7)
    conductance_s[4] = 0.0  # an open line that no cell connects
    open_word, open_bit = torch.zeros(6, dtype=torch.bool), torch.zeros(7, dtype=torch.bool)
    open_word[[1, 4]] = True
    open_bit[[0, 5, 6]] = True
    voltage_v = torch.rand(3, 6, dtype=torch.float64)
    admittance = kirchhoff(conductance_s.numpy(), word_ohm, bit_ohm)
    ends = torch.cat([open_word, open_bit]).numpy()
    floats = ends & (np.abs(admittance).sum(axis=1) > 1e-20)
    known = np.zeros((13, 3))
    known[:6] = np.where(ends[:6, None], 0.0, voltage_v.numpy().T)
    known[floats] = -np.linalg.solve(
        admittance[np.ix_(floats, floats)], admittance[np.ix_(floats, ~floats)] @ known[~floats]
    )
    current_a = -(admittance @ known)[6:].T
    ours = crossbar_currents(
        conductance_s, voltage_v, word_ohm, bit_ohm, open_word_lines=open_word, open_bit_lines=open_bit
    )
    np.testing.assert_allclose(ours, current_a, rtol=1e-9, atol=1e-18)
    assert bool((ours[:, open_bit] == 0.0).all())


def test_one_array_with_a_mask_for_each_vector() -> None:
    # Every cell of a column read alone: one word line driven, the others left open.
    conductance_s = random_cells(5, 4)
    masks = ~torch.eye(5, dtype=torch.bool)
    together = crossbar_currents(conductance_s, torch.ones(5, 1, 5).double(), 2.0, 2.0, open_word_lines=masks)
    assert together.shape == (5, 1, 4)
    for row in range(5):
        alone = crossbar_currents(conductance_s, torch.ones(5).double(), 2.0, 2.0, open_word_lines=masks[row])
        torch.testing.assert_close(together[row, 0], alone)
    # With every bit line held at ground by a wire without resistance nothing sneaks.
    ideal = transfer_matrix(conductance_s, 0.0, 0.0, open_word_lines=masks)
    torch.testing.assert_close(ideal, torch.diag_embed(torch.eye(5).double()) @ conductance_s)


GOOD = torch.full((4, 5), 1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: transfer_matrix(torch.ones(4), 1.0, 1.0), "shape"),
        (lambda: transfer_matrix(torch.ones(4, 0), 1.0, 1.0), "shape"),
        (lambda: transfer_matrix(torch.ones(4, 5, dtype=torch.int64), 1.0, 1.0), "floating point"),
        (lambda: transfer_matrix(GOOD, -1.0, 1.0), "word_line_ohm is -1.0"),
        (lambda: transfer_matrix(GOOD, 1.0, float("nan")), "bit_line_ohm is nan"),
        (lambda: transfer_matrix(GOOD, torch.tensor(-1.0), 1.0), "word-line"),
        (lambda: transfer_matrix(GOOD, 1.0, torch.tensor([1.0, float("inf")])), "bit-line"),
        (lambda: transfer_matrix(torch.ones(3, 4, 5), torch.ones(2), 1.0), "broadcast"),
        (lambda: crossbar_currents(GOOD, torch.ones(3, 5), 1.0, 1.0), "4 word lines"),
        (lambda: crossbar_currents(GOOD, torch.ones(4, dtype=torch.int64), 1.0, 1.0), "4 word lines"),
        (lambda: transfer_matrix(GOOD, 1.0, 1.0, open_word_lines=torch.ones(5, dtype=torch.bool)), "open_word_lines"),
        (lambda: transfer_matrix(GOOD, 1.0, 1.0, open_bit_lines=torch.ones(5)), "open_bit_lines"),
    ],
)
def test_what_cannot_be_solved_is_refused(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SurrogateError, match=words):
        call()


def test_autocast_keeps_single_precision() -> None:
    conductance_s, voltage_v = random_cells(20, 20).float(), torch.rand(3, 20)
    plain = crossbar_currents(conductance_s, voltage_v, 2.0, 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = crossbar_currents(conductance_s, voltage_v, 2.0, 2.0)
    assert torch.equal(cast, plain)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_nothing_that_can_be_seen() -> None:
    conductance_s = random_cells(60, 60)
    found = []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        found.append(transfer_matrix(conductance_s, 1.0, 1.0))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0.0)
    assert torch.equal(found[2], found[1])


def test_compiled_models_keep_it_whole() -> None:
    def model(conductance_s: Tensor, voltage_v: Tensor) -> Tensor:
        return torch.sin(crossbar_currents(conductance_s * 1.1, voltage_v, 3.0, 1.0) * 1e4)

    conductance_s, voltage_v = random_cells(11, 9).requires_grad_(), torch.rand(2, 11, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, current = model(conductance_s, voltage_v), compiled(conductance_s, voltage_v)
    torch.testing.assert_close(current, expected)
    (gradient,) = torch.autograd.grad(current.sum(), conductance_s)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), conductance_s)[0])


def test_torch_finds_the_operator_well_made() -> None:
    arrays, ohm = random_cells(2, 9, 4).requires_grad_(), torch.ones(2, dtype=torch.float64, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(crossbar_admittance, (arrays, ohm, ohm, True), test_utils=checks)


COMPILED = """
import torch
from labrig_surrogates.wires import crossbar_currents

conductance_s = (10.0 ** (torch.rand((11, 9), dtype=torch.float64) - 5.0)).requires_grad_()

def loss(cells):
    return (crossbar_currents(cells, torch.ones(2, 11).double(), 3.0, 1.0) * 1e4).pow(2).sum()

(compiled,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(conductance_s), conductance_s)
torch.testing.assert_close(compiled, torch.autograd.grad(loss(conductance_s), conductance_s)[0])
"""


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_inductor_compiles_a_training_step_with_it() -> None:
    # In a process of its own: the compiler leaves its workers behind.
    run = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, timeout=580)
    assert run.returncode == 0, run.stderr


@pytest.mark.nightly
def test_torch_finds_the_operator_well_made_with_any_size() -> None:
    ohm = torch.ones(2, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(crossbar_admittance, (random_cells(2, 9, 4).requires_grad_(), ohm, ohm, True))
