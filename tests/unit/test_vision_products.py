"""Image networks compute in bfloat16 on processors that have it, and in float32 on those that only imitate it."""

from __future__ import annotations

import pytest
import torch

from labrig.studies.vision.networks import outputs_of
from labrig.studies.vision.optimiser import semi_orthogonal
from labrig.studies.vision.products import fast_products, product_type


@pytest.mark.parametrize(
    ("capability", "kind"),
    [
        ("AVX2", torch.float32),
        ("DEFAULT", torch.float32),
        ("AVX512", torch.bfloat16),
        ("AVX512_VNNI", torch.bfloat16),
    ],
)
def test_products_have_the_type_that_the_processor_is_fast_in(
    capability: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert product_type("cpu") is kind
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    seen: list[torch.dtype] = []
    network = torch.nn.Linear(4, 2)
    network.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs.dtype))
    with fast_products("cpu"):
        network(x)
    assert outputs_of(network, x).dtype is torch.float32
    assert seen == [kind, kind]
    assert semi_orthogonal(x).dtype is kind


def test_accelerators_are_fast_in_bfloat16() -> None:
    assert product_type("cuda") is torch.bfloat16
