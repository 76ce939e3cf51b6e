"""Reads what `labrig plan` was given: every fault at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from labrig.commands.outputs import PLAN, output_faults
from labrig.config import RigConfig, load_rig
from labrig.plans import plan_by_name
from labrig.plans.calibration_design import DesignRequest
from labrig.plans.mvm import MvmCalibrationPlan, board_converters
from labrig_calibration.assumptions import ASSUMABLE, AssumedChip
from labrig_calibration.predictions import GOALS
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ConfigError, LabrigError
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.io import load_chip
from labrig_surrogates.parameters import ChipParameters

T = TypeVar("T")


@dataclass(frozen=True)
class Given:
    """The options of `labrig plan` as they were typed."""

    rig: Path
    precision: str | None
    budget: int | None
    goals: Sequence[str] | None
    design: Path | None
    writes: int | None
    max_writes: int
    arrays: Sequence[int] | None
    chip: Path | None
    assume: Sequence[str]
    mvm_s: float | None
    seed: int
    output: Path | None


@dataclass(frozen=True)
class PlanOptions:
    """What they mean.

    Attributes:
        config: The rig file.
        request: What is to be designed.
        earlier: An earlier fit, and its file.
        assumed: Numbers of the chip that were given.
    """

    config: RigConfig
    request: DesignRequest
    earlier: tuple[Path, ChipParameters] | None
    assumed: Mapping[str, float]

    def chip_on(self, info: BoardInfo) -> AssumedChip:
        """What the chip on a board is taken to be.

        Raises:
            AssumptionError: The numbers cannot be.
        """
        chip = AssumedChip.from_data_sheet(board_converters(info))
        if self.earlier is not None:
            path, fitted = self.earlier
            first = 0 if not self.request.arrays else self.request.arrays[0]
            array = first if first in fitted.arrays else min(fitted.arrays)
            other = "" if fitted.chip_id == info.chip_id else f", another chip than {info.chip_id}"
            source = f"array {array} of chip {fitted.chip_id} in {path}{other}"
            chip = AssumedChip.from_parameters(fitted.arrays[array], chip, source)
        return chip.with_values(self.assumed)


def read_options(given: Given) -> PlanOptions:
    """Reads the options and the files that they name.

    Raises:
        ConfigError: Something is wrong; every fault is listed.
    """
    faults: list[str] = []

    def tried(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (LabrigError, SurrogateError) as error:
            faults.append(str(error))
            return None

    assumed = _assumed(given.assume, faults)
    precision = None if given.precision is None else tried(lambda: _precision(given.precision or ""))
    if given.design is not None and (given.precision, given.budget, given.writes) != (None, None, None):
        faults.append("--design judges a plan file that there is; --precision, --budget and --writes make a new design")
    if given.output is not None and given.output.suffix != ".toml":
        faults.append(f"--output {given.output}: a plan file ends in .toml")
    faults += output_faults([(given.output, PLAN)])
    config = tried(lambda: load_rig(given.rig))
    chip_file = given.chip
    earlier = None if chip_file is None else tried(lambda: (chip_file, load_chip(chip_file)))
    limit_v = None if config is None else config.max_read_voltage_v
    plan = None if given.design is None else tried(lambda: _plan(str(given.design), given.seed, limit_v))
    arrays = given.arrays or (None if plan is None else plan.arrays)
    request = DesignRequest(
        precision=precision,
        budget=given.budget,
        goals=tuple(dict.fromkeys(given.goals or GOALS)),
        writes=given.writes,
        max_writes=given.max_writes,
        arrays=None if arrays is None else tuple(arrays),
        max_voltage_v=limit_v,
        mvm_s=given.mvm_s,
        seed=given.seed,
        plan=plan,
    )
    faults += request.faults()
    if faults or config is None:
        raise ConfigError("; ".join(faults))
    return PlanOptions(config, request, earlier, assumed)


def _precision(text: str) -> float:
    number, percent = text.removesuffix("%").strip(), text.endswith("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    value = value / 100.0 if percent else value
    if not 0.0 < value < 1.0:
        raise ConfigError(f"--precision {text}: expected a part of each parameter such as 1% or 0.01")
    return value


def _assumed(texts: Sequence[str], faults: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            faults.append(f"--assume {text}: expected NAME=VALUE with a number in SI units")
            continue
        if name not in ASSUMABLE:
            faults.append(f"--assume {text}: there is no {name!r} to assume; there are: {', '.join(ASSUMABLE)}")
        elif name in found:
            faults.append(f"--assume {text}: {name} was given twice")
        else:
            found[name] = number
    return found


def _plan(file: str, seed: int, limit_v: float | None) -> MvmCalibrationPlan:
    plan = plan_by_name(file, seed=seed, max_voltage_v=limit_v)
    if not isinstance(plan, MvmCalibrationPlan):
        raise ConfigError(f"--design {file}: is a plan {plan.name!r}; only plans mvm can be judged")
    return plan
