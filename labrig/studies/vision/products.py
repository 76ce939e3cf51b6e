"""The type in which products of image networks are computed: bfloat16 where that is fast, else float32.

Processors with AVX-512 compute products in bfloat16 as fast as in float32 or faster, those with matrix units several
times. All others go through a reference that is 15 to 80 times slower (measured on an EPYC with AVX2).
"""

from __future__ import annotations

import torch


def product_type(device: str) -> torch.dtype:
    """What products are computed in.

    Args:
        device: Kind of device, as torch names it.
    """
    slow = device == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.float32 if slow else torch.bfloat16


def fast_products(device: str) -> torch.autocast:
    """A context in which torch computes products in `product_type`.

    Args:
        device: Kind of device, as torch names it.
    """
    kind = product_type(device)
    return torch.autocast(device, dtype=torch.bfloat16, enabled=kind is torch.bfloat16)
