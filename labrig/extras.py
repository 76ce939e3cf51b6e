"""What of labrig is installed: the extras that some verbs need."""

from __future__ import annotations

from importlib.util import find_spec

from labrig_drivers.errors import LabrigError

# Modules that prove an extra to be there.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "scipy", "sklearn"),
    "report": ("jinja2", "plotly"),
    "export": ("h5netcdf", "pyarrow"),
    "images": ("PIL",),
    "cluster": ("submitit",),
    "live": ("aiohttp",),
    "remote": ("amqtt", "aiohttp"),
}


class MissingExtraError(LabrigError):
    """A verb needs an extra that is not installed; the message is the line to run."""


def missing_modules(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def demand_extra(verb: str, *extras: str) -> None:
    """Refuses a verb whose extras are not installed.

    Raises:
        MissingExtraError: With the pip line that installs all of them.
    """
    absent = [extra for extra in extras if missing_modules(extra)]
    if absent:
        modules = ", ".join(module for extra in absent for module in missing_modules(extra))
        raise MissingExtraError(
            f"`labrig {verb}` needs {modules}, not installed here; run: pip install 'labrig[{','.join(absent)}]'"
        )
