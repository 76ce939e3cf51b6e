"""Products and solutions of a few hundred unknowns on the thread that asks for them.

A BLAS library hands a product of this size to all cores. Beside a run that uses them every such product then waits for
the others, a hundred times longer than it takes (measured: 128 x 128 on two busy cores), and takes them from the run.
OpenBLAS keeps small products on the calling thread; these are made of such.
"""

from __future__ import annotations

import numpy as np

from labrig_drivers.crossbar import FloatArray

# OpenBLAS computes a product of so many multiplications on the calling thread (four times 65,536). A product with one
# row is another routine there, which begins to share its work much earlier.
_ALONE = 1 << 18
_FEWEST_ROWS = 2

_MOST_ROUNDS = 40
_CLOSE = 1e-4
_TINY = 1e-300


def times(left: FloatArray, right: FloatArray) -> FloatArray:
    """The matrix product `left @ right`, some rows at a time.

    Args:
        left: `[m, k]`.
        right: `[k, n]`.
    """
    rows = max(_FEWEST_ROWS, _ALONE // max(right.size, 1))
    if left.shape[0] <= rows:
        return np.asarray(left @ right)
    out = np.empty((left.shape[0], right.shape[1]))
    for first in range(0, left.shape[0], rows):
        # The last piece reaches back, so that it does not have one row only.
        start = max(0, min(first, left.shape[0] - rows))
        out[start : start + rows] = left[start : start + rows] @ right
    return out


def solved(square: FloatArray, wanted: FloatArray, start: FloatArray) -> FloatArray:
    """The solution `x` of `square @ x = wanted` by conjugate gradients, each column by itself, to four digits.

    Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49, 409 (1952). It ends after forty rounds, also where it is not as
    close yet; for sums of noisy measurements that is as good.

    Args:
        square: Symmetric and positive definite, `[n, n]`.
        wanted: `[n, c]`.
        start: Where to begin, such as the solution of nearly the same problem, `[n, c]`.
    """
    x = start.copy()
    left = wanted - times(square, x)
    step = left.copy()
    size = np.sum(left**2, axis=0)
    goal = _CLOSE**2 * np.sum(wanted**2, axis=0)
    for _ in range(_MOST_ROUNDS):
        if np.all(size <= goal):
            break
        pushed = times(square, step)
        far = size / np.maximum(np.sum(step * pushed, axis=0), _TINY)
        x += far * step
        left -= far * pushed
        after = np.sum(left**2, axis=0)
        step = left + after / np.maximum(size, _TINY) * step
        size = after
    return x


def solved_three(square: FloatArray, wanted: FloatArray) -> FloatArray:
    """The solution of three equations, by Cramer's rule.

    Args:
        square: `[3, 3]`, far from singular.
        wanted: `[3]`.
    """
    first, second, third = square.T
    across = np.cross(second, third)
    parts = np.array([wanted @ across, first @ np.cross(wanted, third), first @ np.cross(second, wanted)])
    return np.asarray(parts / (first @ across))
