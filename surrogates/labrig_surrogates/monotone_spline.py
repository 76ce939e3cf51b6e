"""A smooth monotone curve through measured points: differentiable, invertible, and straight beyond its ends."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from labrig_surrogates.faults import not_finite, refuse
from labrig_surrogates.quantization import wide

Extrapolation = Literal["linear", "flat"]
"""Beyond the first and last point: on with the slope of the end, or constant."""

_INVERSE_STEPS = 50
_ROUNDING = 1e-12


class MonotoneSpline(nn.Module):
    """Piecewise cubic through points, without overshoot: the slopes of Fritsch and Butland (1984), as in SciPy's PCHIP.

    The curve has a continuous slope, and between two points it stays between their values. It is a fixed curve: points
    and slopes are buffers. Inputs and outputs have any shape; they are computed in float32 or better.

    Args:
        x: Where the curve was measured, strictly rising, `[points]`, at least two.
        y: Its values there, all rising or all falling (equal neighbours are allowed), `[points]`.
        extrapolation: What happens beyond the ends.

    Raises:
        SurrogateError: The points are too few, not finite, not in order, or not monotone; every fault is named. Or
            `extrapolation` is another word.
    """

    knots: Tensor
    values: Tensor
    slopes: Tensor

    def __init__(self, x: Tensor, y: Tensor, extrapolation: Extrapolation = "linear") -> None:
        super().__init__()
        _check_points(x, y)
        words = get_args(Extrapolation)
        faults = [] if extrapolation in words else [f"extrapolation = {extrapolation!r} is none of {', '.join(words)}"]
        refuse("monotone spline", faults)
        wide_x, wide_y = x.detach().double(), y.detach().double()
        self.extrapolation: Extrapolation = extrapolation
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        self.register_buffer("knots", wide_x.to(dtype))
        self.register_buffer("values", wide_y.to(dtype))
        self.register_buffer("slopes", pchip_slopes(wide_x, wide_y).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Values of the curve at `x`, in the dtype of `x`."""
        return spline_at(x, self.knots, self.values[None], self.slopes[None], self.extrapolation)

    def inverse(self, y: Tensor) -> Tensor:
        """Where the curve has the values `y`; its gradient is one over the slope (first derivatives only).

        Beyond the range of the values it goes on with the slope of the end, or stays at the end where that is flat.

        Raises:
            SurrogateError: Neighbouring points have equal values: the curve has no inverse there.
        """
        steps = torch.diff(self.values)
        flat = torch.nonzero(steps == 0).flatten().tolist()
        refuse("inverse of a curve", [f"it is flat between points {k} and {k + 1}" for k in flat])
        values = wide(y)
        sign = torch.sign(steps[0])
        inside = torch.where(
            sign > 0,
            torch.clamp(values, self.values[0], self.values[-1]),
            torch.clamp(values, self.values[-1], self.values[0]),
        )
        index = torch.bucketize((sign * inside).detach().contiguous(), (sign * self.values)[1:-1].contiguous())
        piece = _pieces(self.knots, self.values[None], self.slopes[None], index)
        start = _solve(piece, inside.detach(), sign)
        slope = piece.slope(start)
        inner = piece.start + piece.span * start + (inside - piece.value(start)) * _reciprocal(slope)
        if self.extrapolation == "flat":
            return inner.to(y.dtype)
        below = sign * (values - self.values[0]) < 0
        ends = torch.where(below, self.slopes[0], self.slopes[-1])
        return (inner + (values - inside) * _reciprocal(ends)).to(y.dtype)


def spline_at(
    x: Tensor,
    knots: Tensor,
    values: Tensor,
    slopes: Tensor,
    extrapolation: Extrapolation,
    row: Tensor | None = None,
) -> Tensor:
    """Values of one or several curves with the same knots, in the dtype of `x`.

    Args:
        x: Where, any shape.
        knots: Points, strictly rising, `[points]`.
        values: Of every curve at the points, `[curves, points]`.
        slopes: Likewise, from `pchip_slopes`.
        extrapolation: What happens beyond the ends.
        row: Which curve, whole numbers broadcast against `x`; None: the first.
    """
    at = wide(x)
    inside = torch.clamp(at, knots[0], knots[-1])
    piece = _pieces(knots, values, slopes, torch.bucketize(inside.detach().contiguous(), knots[1:-1].contiguous()), row)
    value = piece.value((inside - piece.start) / piece.span)
    if extrapolation == "linear":
        beyond = at - inside
        first, last = ((end[0] if row is None else end[row]) for end in (slopes[:, 0], slopes[:, -1]))
        value = value + first * torch.clamp(beyond, max=0.0) + last * torch.clamp(beyond, min=0.0)
    return value.to(x.dtype)


def _pieces(knots: Tensor, values: Tensor, slopes: Tensor, index: Tensor, row: Tensor | None = None) -> _Piece:
    """The cubics of intervals by number, of one curve or of each one's own."""
    length = torch.diff(knots)
    secant = torch.diff(values) / length
    left, right = slopes[:, :-1], slopes[:, 1:]
    square, cube = 3.0 * secant - 2.0 * left - right, left + right - 2.0 * secant
    # Several times faster than indexing with a tensor of many dimensions.
    flat = index.flatten()
    own = flat if row is None else (index + row * length.numel()).flatten()
    by_knot = [table.index_select(0, flat).reshape(index.shape) for table in (knots[:-1], length)]
    by_curve = [
        table.flatten().index_select(0, own).reshape(index.shape) for table in (values[:, :-1], left, square, cube)
    ]
    return _Piece(*by_knot, *by_curve)


class _Piece(NamedTuple):
    """The cubics that belong to some inputs, in t from zero to one along their intervals."""

    start: Tensor
    span: Tensor
    base: Tensor
    linear: Tensor
    square: Tensor
    cube: Tensor

    def value(self, t: Tensor) -> Tensor:
        return self.base + self.span * t * (self.linear + t * (self.square + t * self.cube))

    def slope(self, t: Tensor) -> Tensor:
        """Derivative by the input, not by t."""
        return self.linear + t * (2.0 * self.square + t * 3.0 * self.cube)


@torch.no_grad()
def _solve(piece: _Piece, y: Tensor, sign: Tensor) -> Tensor:
    """Where the cubics have the values y: Newton's method, halving the bracket where a step would leave it."""
    low, high = torch.zeros_like(y), torch.ones_like(y)
    t = 0.5 * (low + high)
    for _ in range(_INVERSE_STEPS):
        error = piece.value(t) - y
        above = sign * error >= 0
        low, high = torch.where(above, low, t), torch.where(above, t, high)
        newton = t - error * _reciprocal(piece.slope(t) * piece.span)
        t = torch.where((newton > low) & (newton < high), newton, 0.5 * (low + high))
    return t


def _reciprocal(slope: Tensor) -> Tensor:
    flat = slope == 0
    return torch.where(flat, torch.zeros_like(slope), 1.0 / torch.where(flat, torch.ones_like(slope), slope))


def _check_points(x: Tensor, y: Tensor) -> None:
    if x.dim() != 1 or x.shape != y.shape or x.numel() < 2:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        refuse("monotone curve", [f"it needs x and y of two points or more, both [points], not {shapes}"])
    steps, rises = torch.diff(x.detach().double()), torch.diff(y.detach().double())
    faults = []
    if bad := not_finite(x=x, y=y):
        faults += bad
    elif bool((steps <= 0).any()):
        faults.append(f"x does not rise after point {int(torch.nonzero(steps <= 0)[0])}: sort and merge the points")
    if bool((rises > 0).any()) and bool((rises < 0).any()):
        odd = rises < 0 if bool(y[-1] > y[0]) else rises > 0
        faults.append(f"y turns at point {int(torch.nonzero(odd)[0])}: average noisy points with monotone_points first")
    refuse("monotone curve", faults)


def pchip_slopes(x: Tensor, y: Tensor) -> Tensor:
    """Slopes at the points that keep a cubic monotone: weighted harmonic means of the neighbouring secants.

    F. N. Fritsch and J. Butland, SIAM J. Sci. Stat. Comput. 5, 300 (1984), with the one-sided three-point formula at
    the ends, limited to keep the shape (as in SciPy's `PchipInterpolator`).

    Args:
        x: Points, strictly rising, `[points]`.
        y: Values, `[points]`.
    """
    length = torch.diff(x)
    secant = torch.diff(y) / length
    if x.numel() == 2:
        return secant.repeat(2)
    first, second = 2.0 * length[1:] + length[:-1], length[1:] + 2.0 * length[:-1]
    same = secant[:-1] * secant[1:] > 0
    safe = torch.where(secant == 0, torch.ones_like(secant), secant)
    mean = (first + second) / (first / safe[:-1] + second / safe[1:])
    inner = torch.where(same, mean, torch.zeros_like(mean))
    ends = [_end_slope(*length[:2], *secant[:2]), _end_slope(*length.flip(0)[:2], *secant.flip(0)[:2])]
    return torch.cat([ends[0].reshape(1), inner, ends[1].reshape(1)])


def _end_slope(near: Tensor, far: Tensor, secant: Tensor, next_secant: Tensor) -> Tensor:
    slope = ((2.0 * near + far) * secant - near * next_secant) / (near + far)
    # What is left of a difference by rounding is no slope: the inverse would divide by it.
    if torch.sign(slope) != torch.sign(secant) or slope.abs() < _ROUNDING * secant.abs():
        return torch.zeros_like(slope)
    if torch.sign(secant) != torch.sign(next_secant) and slope.abs() > 3.0 * secant.abs():
        return 3.0 * secant
    return slope


def monotone_points(x: Tensor, y: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Averages noisy measurements to at most `points` monotone ones, fit for a `MonotoneSpline`.

    Neighbouring measurements are averaged in groups of equal size, then whatever still turns is pooled: the monotone
    sequence nearest in squares (pool adjacent violators; Ayer et al., Ann. Math. Stat. 26, 641 (1955)). The direction
    is that of the overall trend.

    Args:
        x: Where it was measured, in any order, `[measurements]`.
        y: What was measured, `[measurements]`.
        points: Number of groups, at least two.

    Raises:
        SurrogateError: Fewer than two groups, or fewer measurements than groups.
    """
    if points < 2 or x.numel() < points:
        refuse(
            "averaged points", [f"{points} groups of {x.numel()} measurements: two groups or more, none of them empty"]
        )
    order = torch.argsort(x)
    groups = torch.tensor_split(torch.stack([x[order], y[order]]).double(), points, dim=1)
    middle = torch.stack([group.mean(dim=1) for group in groups])
    sizes = [group.shape[1] for group in groups]
    centred = middle - middle.mean(dim=0)
    sign = 1.0 if float((centred[:, 0] * centred[:, 1]).sum()) >= 0 else -1.0
    pooled: list[list[float]] = []  # value, weight, number of groups
    for value, size in zip((sign * middle[:, 1]).tolist(), sizes, strict=True):
        pooled.append([value, float(size), 1.0])
        while len(pooled) > 1 and pooled[-2][0] > pooled[-1][0]:
            value_b, weight_b, count_b = pooled.pop()
            value_a, weight_a, count_a = pooled[-1]
            weight = weight_a + weight_b
            pooled[-1] = [(value_a * weight_a + value_b * weight_b) / weight, weight, count_a + count_b]
    level = [sign * value for value, _, count in pooled for _ in range(int(count))]
    rising = torch.cat([torch.tensor([True]), torch.diff(middle[:, 0]) > 0])
    return middle[rising, 0].to(y.dtype), torch.tensor(level, dtype=torch.float64)[rising].to(y.dtype)
