"""`labrig study energy`: joules of an inference on published analog macros, against digital machines.

The grid is printed whole, because "five times less" holds or fails by what it is compared with. Energies are counted
from published figures (`labrig_surrogates.energy_constants` has each with its source); nothing here is measured. What
a chip draws on a bench is measured by `labrig sweep --plan energy`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import torch

from labrig.studies.intervals import exactly
from labrig.studies.result import Control, Curve, Finding, Plot, StudyResult, Table, at_least
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.studies.vision.networks import build_network
from labrig_drivers.errors import ConfigError
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import Adc, Dac
from labrig_surrogates.energy import DIGITAL_MAC, MACROS, EnergyModel, EnergyReport
from labrig_surrogates.energy_loads import layer_loads
from labrig_surrogates.tilemap import ArrayGeometry

QUESTION = "Does an analog inference take a fifth of a digital one, and against which machine?"

_NETWORKS: Final = ("airbench", "resnet20", "resnet18")
_BAR: Final = 5.0
_ONE_OFF: Final = "A100 training ResNet-18"

# By hand from the published architecture: 555 million multiply-accumulates; convolutions on 193 arrays of 256 x 256,
# where a kernel may be cut anywhere.
_KNOWN_MACS: Final = 555e6
_KNOWN_ARRAYS: Final = 193


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study; it takes seconds and draws nothing.

    Args:
        settings: Only the shared ones count.
        report: Progress.

    Raises:
        ConfigError: A rig is named.
    """
    if settings.rig is not None:
        raise ConfigError("energy counts from published figures; measure a rig with labrig sweep --plan energy")
    started_s = time.monotonic()
    reports: dict[tuple[str, str], EnergyReport] = {}
    for number, network in enumerate(_NETWORKS):
        for macro in MACROS:
            reports[network, macro] = _evaluated(network, macro)
        report("networks counted", number + 1, len(_NETWORKS))
    return finished("energy", QUESTION, settings, _found(reports), started_s)


def _evaluated(network: str, macro: str) -> EnergyReport:
    known = MACROS[macro]
    built = build_network(network, 10, torch.Generator().manual_seed(0))
    # A signed output takes two lines of bits, one for each sign.
    config = AnalogConfig(
        geometry=ArrayGeometry.relative(rows=known.rows, columns=2 * known.columns),
        dac=Dac(known.input_bits),
        adc=Adc(known.output_bits),
    )
    loads = layer_loads(to_analog(built.eval(), config), torch.zeros(1, 3, 32, 32))
    return EnergyModel.of_macro(macro).evaluate(loads)


def _found(reports: Mapping[tuple[str, str], EnergyReport]) -> Found:
    findings = [
        at_least(
            f"ResNet-18 on {macro}: {_BAR:g} times less than {machine}",
            exactly(reports["resnet18", macro].ratio_to(mac), "times", "counted"),
            _BAR,
        )
        for macro in MACROS
        for machine, mac in DIGITAL_MAC.items()
    ]
    return Found(
        findings=tuple(findings),
        controls=tuple(_controls(reports, findings)),
        tables=(_energies(reports), *(_ratios(reports, network) for network in _NETWORKS)),
        plots=(_plot(reports),),
        conditions={
            "energy": "counted from published figures, typical values; no rig was measured",
            "counted": "products that arrays carry out, in use or not; converters, array and local digital units as "
            "published for the macro, movement between arrays added; no programming, no calibration",
            "digital": "multiply-accumulates in use only, at the energy stated: peaks are never reached, and "
            f"{_ONE_OFF} is a training at the rated power, not a metered inference",
            "accuracy": "not part of this: quote the accuracy of the same mode beside it; one phase is the noisier one",
        },
    )


def _controls(reports: Mapping[tuple[str, str], EnergyReport], findings: list[Finding]) -> list[Control]:
    one = reports["resnet18", "HERMES one-phase"]
    convolutions = [layer.load for layer in one.layers if layer.load.name != "head"]
    macs, arrays = one.macs / _KNOWN_MACS, sum(load.tiles for load in convolutions) / _KNOWN_ARRAYS
    verdicts = {finding.verdict for finding in findings}
    both = float(len(verdicts))
    return [
        Control(
            "multiply-accumulates of ResNet-18",
            "555 million, as published",
            exactly(macs, "times that", "counted"),
            abs(macs - 1.0) < 0.01,
        ),
        Control(
            "arrays of the convolutions of ResNet-18",
            "193 of 256 x 256 by hand, and up to a tenth more where kernels are cut between channels",
            exactly(arrays, "times that", "counted"),
            1.0 <= arrays <= 1.1,
        ),
        Control(
            "the claim can fail",
            "it holds against some machine and not against another",
            exactly(both, "verdicts", "cells of the grid"),
            verdicts == {"holds", "does not hold"},
        ),
    ]


def _energies(reports: Mapping[tuple[str, str], EnergyReport]) -> Table:
    rows = tuple(
        (
            network,
            macro,
            f"{found.macs / 1e6:.0f} M",
            str(found.tiles),
            f"{found.tile_mvms}",
            f"{1e6 * found.total_j:.1f}",
            f"{found.tops_per_watt:.2f}",
            "not published" if found.latency_s is None else f"{1e6 * found.latency_s:.0f}",
        )
        for (network, macro), found in reports.items()
    )
    columns = ("network", "macro", "MACs", "arrays", "products of arrays", "energy (uJ)", "TOPS/W", "time (us)")
    return Table("One inference of a 32 x 32 image", columns, rows)


def _ratios(reports: Mapping[tuple[str, str], EnergyReport], network: str) -> Table:
    rows = tuple(
        (macro, *(f"{reports[network, macro].ratio_to(mac):.2f}" for mac in DIGITAL_MAC.values())) for macro in MACROS
    )
    return Table(f"{network}: how many times more a digital machine takes", ("macro", *DIGITAL_MAC), rows)


def _plot(reports: Mapping[tuple[str, str], EnergyReport]) -> Plot:
    sizes = {network: reports[network, "HERMES one-phase"].macs / 1e6 for network in _NETWORKS}
    ordered = sorted(sizes, key=lambda network: sizes[network])
    curves = tuple(
        Curve(
            macro,
            tuple(sizes[network] for network in ordered),
            tuple(1e6 * reports[network, macro].total_j for network in ordered),
        )
        for macro in MACROS
    )
    return Plot(
        "Energy of one inference", "multiply-accumulates (millions)", "energy (uJ)", curves, log_x=True, log_y=True
    )
