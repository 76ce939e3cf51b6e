"""Plans by name, for the command line: those of labrig, and those in a file of one's own."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from labrig.own_files import module_of_file
from labrig.plans.adaptive import AdaptiveDesign, AdaptivePlan
from labrig.plans.base import Plan
from labrig.plans.canary import CanaryDesign
from labrig.plans.energy import EnergyPlan
from labrig.plans.iv import IvPlan
from labrig.plans.mvm import MvmCalibrationPlan
from labrig.plans.option_types import type_faults
from labrig.plans.plan_file import read_plan_file
from labrig.plans.read_noise import ReadNoiseDesign
from labrig.plans.retention import RetentionPlan
from labrig.plans.schedule import ScheduleDesign, ScheduledPlan, describe_options
from labrig.plans.transfer import TransferCurveDesign
from labrig.plans.write_statistics import WriteStatisticsDesign
from labrig_drivers.errors import ConfigError

PLANS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        "canary": CanaryDesign,
        "energy": EnergyPlan,
        "iv": IvPlan,
        "mvm": MvmCalibrationPlan,
        "noise": ReadNoiseDesign,
        "retention": RetentionPlan,
        "transfer": TransferCurveDesign,
        "writes": WriteStatisticsDesign,
    }
)


def plan_by_name(name: str, **options: object) -> Plan:
    """Makes a plan.

    Args:
        name: One of labrig's, or `FILE.py:NAME`: what that file calls NAME makes the plan, or its design; or a plan
            file `FILE.toml`, which names a plan and its options.
        options: Handed on by keyword.

    Raises:
        ConfigError: There is no such plan (the message lists those that exist), it takes no such option (the message
            lists those that it takes), an option is of another kind (the message lists all of them), or the file does
            not yield it.
    """
    make = _made_by(name)
    known = inspect.signature(make).parameters
    unknown = [_unknown_option(option, known) for option in sorted(options) if option not in known]
    # Of a plan file, what stands in it, unless it was given beside it.
    in_file = make.keywords if isinstance(make, partial) else {}
    given = {key: value for key, value in {**in_file, **options}.items() if key in known}
    if faults := [*unknown, *type_faults(make, given)]:
        listed = f"; its options are: {', '.join(known)}" if unknown else ""
        raise ConfigError(f"plan {name!r}: {'; '.join(faults)}{listed}")
    try:
        made = make(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"plan {name!r}: {error}") from error
    if isinstance(made, Plan) and not isinstance(made, ScheduleDesign):
        return made
    if isinstance(made, (ScheduleDesign, AdaptiveDesign)):
        try:
            describe_options(made)
        except TypeError as error:
            raise ConfigError(f"plan {name!r}: {error}") from error
        return ScheduledPlan(made) if isinstance(made, ScheduleDesign) else AdaptivePlan(made)
    raise ConfigError(
        f"plan {name!r}: made something of type {type(made).__name__}, which has neither name and schedule(info) (a "
        "design) nor name, capacity(info) and points(info) (an adaptive design)"
    )


def _unknown_option(option: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(option, known, n=1)
    return f"has no option {option}" + (f", perhaps {close[0]}" if close else "")


def options_of(name: str) -> frozenset[str]:
    """The options that a plan takes.

    Raises:
        ConfigError: There is no such plan.
    """
    return frozenset(inspect.signature(_made_by(name)).parameters)


def _made_by(name: str) -> Callable[..., object]:
    if name.endswith(".toml"):
        file = read_plan_file(Path(name))
        if file.name.endswith(".toml"):
            raise ConfigError(f"{name}: names another plan file, {file.name!r}; name the plan itself")
        inner = _made_by(file.name)
        known = inspect.signature(inner).parameters
        unknown = sorted(set(file.options) - set(known))
        if unknown:
            raise ConfigError(
                f"{name}: plan {file.name!r} has no option {', '.join(unknown)}; its options are: {', '.join(known)}"
            )
        return partial(inner, **file.options)
    if ".py:" in name:
        return _from_file(name)
    make = PLANS.get(name)
    if make is None:
        raise ConfigError(
            f"there is no plan named {name!r}; there are: {', '.join(sorted(PLANS))}, or your own as FILE.py:NAME, "
            "or a plan file FILE.toml"
        )
    made: Callable[..., object] = make  # pyright: ignore[reportAssignmentType]
    return made


def _from_file(name: str) -> Callable[..., object]:
    file, _, attribute = name.rpartition(":")
    try:
        module = module_of_file(Path(file))
    except ConfigError as error:
        raise ConfigError(f"plan {name!r}: {error}") from error
    make = getattr(module, attribute, None)
    if not callable(make):
        named = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ConfigError(f"plan {name!r}: {file} has no class or function {attribute!r}; it has: {', '.join(named)}")
    made: Callable[..., object] = make  # pyright: ignore[reportAssignmentType]
    return made
