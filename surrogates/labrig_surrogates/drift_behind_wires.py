"""What drift does to currents behind wires: less than to the cells, whose smaller currents also lose less.

A cell that loses the share `d g` of its current on the way, to first order, shows `g / (1 + d g)`. Where drift leaves
`g s`, what it shows falls by `s / (1 + d g s)` instead of `s`: on a logarithmic scale by the share that gets through,
`1 / (1 + d g s)`. A fitted exponent is that of the currents. What is seen at the age of the readings, taken back to
age zero with it, therefore falls short of what the cells had there, and gains with it.
"""

from __future__ import annotations

import torch

from labrig_surrogates.parameters import ArrayParameters
from labrig_surrogates.wire_first_order import first_order_transfer


def seen_at_age_zero(array: ArrayParameters) -> float:
    """What currents taken back to age zero show of the array's own at that age, on average; 1 without wires or drift.

    Args:
        array: Its wires, drift, and the conductances and ages of its recorded writes.
    """
    lines_ohm = array.wire_ohm_when_read
    if lines_ohm is None or not array.write_conductance_s.size:
        return 1.0
    cells_s = torch.as_tensor(array.write_conductance_s.mean(axis=0)).clamp(min=0.0)
    passed = float(first_order_transfer(cells_s, *lines_ohm).sum() / cells_s.sum().clamp(min=1e-30))
    return float(array.left_when_read ** (1.0 / passed - 1.0)) if passed > 0.0 else 1.0
