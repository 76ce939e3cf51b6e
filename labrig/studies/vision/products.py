"""The type in which products of image networks are computed: bfloat16 where that is fast, else float32.

oneDNN has kernels for such products from AVX-512 on; with matrix units they are several times as fast as float32. Below
that a reference computes them, 15 to 80 times as slow as float32 (measured with torch 2.13 on an EPYC with AVX2).
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
