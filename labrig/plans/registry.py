"""Plans by name, for the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from labrig.plans.base import Plan
from labrig.plans.mvm import MvmCalibrationPlan
from labrig_drivers.errors import ConfigError

PLANS: Mapping[str, Callable[..., Plan]] = MappingProxyType({"mvm": MvmCalibrationPlan})


def plan_by_name(name: str, **options: object) -> Plan:
    """Makes a plan.

    Raises:
        ConfigError: There is no such plan (the message lists those that exist), or it takes no such option.
    """
    make = PLANS.get(name)
    if make is None:
        raise ConfigError(f"there is no plan named {name!r}; there are: {', '.join(sorted(PLANS))}")
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(f"plan {name!r}: {error}") from error
