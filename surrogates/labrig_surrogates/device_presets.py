"""Published devices, each with the constants of its fit and where they are from. One factory for each.

The constants are those of the code named in each docstring, which fitted them to the paper named with it; equations are
tested against the equations, not against that code, whose defects are known (see the page on devices in the guide).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from labrig_surrogates.device_curves import AtLeastZero, Branches, ClippedLog, InversePower, Polynomial, Saturating
from labrig_surrogates.device_laws import (
    AccumulatedFlicker,
    ErrorAt,
    LogFlicker,
    LogRelaxation,
    PowerLawDrift,
    Programmed,
    ReadLaw,
    ReplacedError,
    StateLaw,
    StateNoise,
)

_US = 1e-6
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Device:
    """One kind of device.

    Attributes:
        name: What tables call it.
        source: Where its constants are from.
        conductance_min_s: Lowest target in S.
        conductance_max_s: Highest target in S.
        state: Error of programming and what happens afterwards.
        read: Noise of a reading; None where the fit has none.
    """

    name: str
    source: str
    conductance_min_s: float
    conductance_max_s: float
    state: StateLaw
    read: ReadLaw | None = None


def pcm_like() -> Device:
    """Phase-change memory of 25 uS: programming error, drift, accumulated 1/f noise.

    aihwkit 4545f11, `noise/pcm.py`; Nandakumar et al., ICECS 2019.
    """
    largest_s = 25.0 * _US
    programming = Programmed(Polynomial((0.26348, 1.9650, -1.1731)), reference_s=largest_s)
    drift = PowerLawDrift(
        programming,
        exponent_mean=ClippedLog(-0.0155, 0.0244, 0.049, 0.1),
        exponent_sigma=ClippedLog(-0.0125, -0.0059, 0.008, 0.045),
        reference_s=largest_s,
        first_s=20.0,
    )
    read = AccumulatedFlicker(InversePower(0.0088, 0.65, 1e-3, 0.2), largest_s, read_s=250e-9, first_s=20.0)
    return Device("PCM-like", "aihwkit 4545f11; Nandakumar 2019", 0.0, largest_s, drift, read)


def hermes(devices: int = 2) -> Device:
    """The unit cells of the HERMES chip: phase-change memory, one or two devices for each polarity of a weight.

    aihwkit 4545f11, `noise/hermes.py`; Le Gallo et al., Nat. Electron. 2023; Khaddam-Aljameh et al., JSSC 2022.

    Args:
        devices: 1 or 2.

    Raises:
        KeyError: There is no such cell.
    """
    largest_s, first_s, programming, exponent_sigma, amplitude = {
        2: (
            20.7 * _US,
            300.0,
            Polynomial((0.16603222, 4.71806468, -8.48101252, 4.68961419)),
            Branches(0.3055, ClippedLog(-0.0117, -0.0057, 0.0091, 0.04), Polynomial((0.0073, 0.0093, -0.0118))),
            Branches(0.16, ClippedLog(-0.0117, -0.0069, 0.015, 0.04), Polynomial((0.0123, 0.0211, -0.0280, 0.0069))),
        ),
        1: (
            10.35 * _US,
            200.0,
            Polynomial((0.15781817, 2.32443916, -2.16310839, 0.68841818)),
            Branches(0.3039, ClippedLog(-0.0120, -0.0023, 0.0124, 0.04), Polynomial((0.0104, 0.0116, -0.0165))),
            Branches(0.1591, ClippedLog(-0.0078, 0.0038, 0.0179, 0.04), Polynomial((0.0088, 0.0768, -0.1352, 0.0664))),
        ),
    }[devices]
    mean = Branches(0.0945, ClippedLog(-0.0387, -0.0182, 0.072, 0.13), Polynomial((0.0736, -0.0126, -0.0436)))
    drift = PowerLawDrift(Programmed(programming, largest_s), mean, exponent_sigma, largest_s, first_s)
    read = AccumulatedFlicker(amplitude, largest_s, read_s=512e-9, first_s=first_s)
    name = f"HERMES, {devices} device" + ("s" if devices > 1 else "")
    return Device(name, "aihwkit 4545f11; Le Gallo 2023", 0.0, largest_s, drift, read)


def reram_wan() -> Device:
    """NeuRRAM's ReRAM, 1 s, 1 day and 2 days after programming.

    aihwkit 4545f11, `noise/reram.py`, with the scaling to 40 uS that its code forgets; Wan et al., Nature 2022.
    """
    errors = (
        ErrorAt(1.0, Polynomial((0.348, 16.030, -43.853, 45.393, -16.815))),
        ErrorAt(_DAY_S, Polynomial((0.701, 22.086, -50.773, 47.095, -16.458))),
        ErrorAt(2.0 * _DAY_S, Polynomial((0.782, 20.274, -43.507, 37.062, -11.934))),
    )
    law = ReplacedError(errors, reference_s=40.0 * _US)
    return Device("ReRAM, Wan", "aihwkit 4545f11; Wan 2022", 0.0, 40.0 * _US, law)


def reram_cmo(acceptance_percent: float = 0.2) -> Device:
    """CMO/HfOx ReRAM of 9 to 88.2 uS, programmed until it lies within a range: programming, relaxation, 1/f noise.

    aihwkit 4545f11, `noise/reram.py`.

    Args:
        acceptance_percent: 0.2 or 2.

    Raises:
        KeyError: It was not measured for this range.
    """
    slope, offset = {0.2: (0.00106879, 0.00081107), 2.0: (0.01129027418, 0.0112185391)}[acceptance_percent]
    programming = Programmed(Polynomial((offset, slope)))
    law = LogRelaxation(programming, mean_per_ln=-0.08900206, sigma_per_ln=0.04201137, sigma_start=0.41183342)
    read = LogFlicker(0.0277316483, read_s=1e-6)
    return Device(f"ReRAM, CMO {acceptance_percent:g} %", "aihwkit 4545f11", 9.0 * _US, 88.2 * _US, law, read)


def pcm_joshi() -> Device:
    """Phase-change memory of 25 uS, on/off ratio 100: programming error alone.

    CrossSim 3.2.0, `devices/custom/PCM_Joshi.py`; Joshi et al., Nat. Commun. 2020.
    """
    law = Programmed(Polynomial((0.28638599, 0.07585724, -0.00178767)))
    return Device("PCM, Joshi", "CrossSim 3.2.0; Joshi 2020", 0.25 * _US, 25.0 * _US, law)


def reram_milo() -> Device:
    """ReRAM of 50 to 225 uS: programming error alone.

    CrossSim 3.2.0, `devices/custom/RRAM_Milo.py`; Milo et al., IRPS 2021.
    """
    law = Programmed(AtLeastZero(Polynomial((4.782321, -0.009107))))
    return Device("ReRAM, Milo", "CrossSim 3.2.0; Milo 2021", 50.0 * _US, 225.0 * _US, law)


def reram_wan_one_second() -> Device:
    """NeuRRAM's ReRAM 1 s after programming: another fit of the same paper as `reram_wan`.

    CrossSim 3.2.0, `devices/custom/RRAM_Wan.py`; Wan et al., Nature 2022.
    """
    law = Programmed(Polynomial((1.053, 0.2374, -1.167e-2, 1.536e-4)))
    return Device("ReRAM, Wan at 1 s", "CrossSim 3.2.0; Wan 2022", 0.0, 39.26 * _US, law)


def sonos(read_voltage_v: float = 0.1) -> Device:
    """SONOS cells up to 5 days after programming, with a fresh read noise at each MVM.

    CrossSim 3.2.0, `devices/custom/SONOS.py`; Agrawal et al., IEDM 2022. The fit is one of cell currents, up to 1800 nA
    where they drift.

    Args:
        read_voltage_v: Makes conductances of the currents; a network only notices their ratios.
    """
    unit_s = 1e-9 / read_voltage_v
    spreads = (
        (19.88665, 176.3115),
        (25.59102, 186.85544),
        (28.72753, 193.56834),
        (31.04318, 198.90332),
        (33.76214, 204.77023),
        (34.57909, 207.34309),
    )
    errors = tuple(
        ErrorAt(day * _DAY_S, Saturating(*spread), mean)
        for day, (spread, mean) in enumerate(zip(spreads, (None, *_SONOS_SHIFTS), strict=True))
    )
    law = ReplacedError(errors, reference_s=unit_s, unit_s=unit_s, logarithmic=False)
    read = StateNoise(Saturating(12.58037, 215.36557), unit_s)
    return Device("SONOS", "CrossSim 3.2.0; Agrawal 2022", 0.0, 1800.0 * unit_s, law, read)


# Mean shift of the current in nA after 1 to 5 days, in ascending powers of the current.
_SONOS_SHIFTS = tuple(
    Polynomial(coefficients)
    for coefficients in (
        (
            *(1.72684e-1, 5.72552e-2, -6.85715e-4, 3.50271e-6, -9.37682e-9, 1.40575e-11),
            *(-1.19803e-14, 5.41293e-18, -8.85448e-22, -1.66869e-25, 5.95180e-29),
        ),
        (
            *(2.50712e-1, 6.62195e-2, -6.83218e-4, 2.99442e-6, -6.78255e-9, 7.70482e-12),
            *(-3.04983e-15, -2.15919e-18, 2.94617e-21, -1.23359e-24, 1.85329e-28),
        ),
        (
            *(-1.75300e-2, 9.76883e-2, -9.63791e-4, 4.55551e-6, -1.22391e-8, 1.93786e-11),
            *(-1.85899e-14, 1.07659e-17, -3.58211e-21, 5.96785e-25, -3.30410e-29),
        ),
        (
            *(4.03338e-2, 1.03111e-1, -1.04740e-3, 4.83961e-6, -1.28132e-8, 1.99484e-11),
            *(-1.85139e-14, 1.00008e-17, -2.84944e-21, 3.01008e-25, 1.18747e-29),
        ),
        (
            *(3.19927e-1, 1.06596e-1, -1.04054e-3, 4.50290e-6, -1.10352e-8, 1.56477e-11),
            *(-1.27592e-14, 5.45513e-18, -7.26841e-22, -2.43893e-25, 7.14608e-29),
        ),
    )
)

PRESETS: dict[str, Callable[[], Device]] = {
    "pcm-like": pcm_like,
    "hermes": hermes,
    "hermes-1": lambda: hermes(1),
    "reram-wan": reram_wan,
    "reram-wan-1s": reram_wan_one_second,
    "reram-cmo": reram_cmo,
    "pcm-joshi": pcm_joshi,
    "reram-milo": reram_milo,
    "sonos": sonos,
}
"""Every preset by a short name."""
