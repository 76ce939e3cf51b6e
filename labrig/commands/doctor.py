"""`labrig doctor`: what is installed, and what would have to be?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labrig.extras import EXTRAS, missing_modules

if TYPE_CHECKING:
    from rich.table import Table

# Distributions, whose names differ from those of the modules that an extra is known by.
PACKAGES = {
    "base": (
        "labrig",
        "aiomqtt",
        "numpy",
        "h5py",
        "pydantic",
        "pyserial",
        "pyvisa",
        "pyvisa-py",
        "rich",
        "safetensors",
        "typer",
    ),
    "extra train": ("torch", "scipy", "scikit-learn"),
    "extra report": ("jinja2", "plotly"),
    "extra export": ("h5netcdf", "pyarrow"),
}


def doctor() -> None:
    """Print versions, extras and drivers, and the line to run for what is missing.

    Example: labrig doctor
    """
    import platform

    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.print(f"Python {platform.python_version()} on {platform.platform()}", soft_wrap=True)
    for table in (_packages(), _drivers()):
        console.print(table)
    for extra in EXTRAS:
        missing = missing_modules(extra)
        if missing:
            console.print(
                f"extra {extra}: {', '.join(missing)} missing; run: pip install 'labrig[{extra}]'",
                soft_wrap=True,
            )
        else:
            console.print(f"extra {extra}: installed")


def _packages() -> Table:
    from rich.table import Table

    table = Table("package", "version", "for")
    for purpose, names in PACKAGES.items():
        for name in names:
            table.add_row(name, _version(name) or "missing", purpose)
    return table


def _drivers() -> Table:
    from rich.table import Table

    from labrig.config import installed_drivers

    table = Table("driver", "from", "state")
    for name, point in installed_drivers().items():
        try:
            point.load()
            state = "loads"
        except Exception as error:  # a third party's module may fail in any way, and the others still count
            state = f"fails: {type(error).__name__}: {error}"
        table.add_row(name, point.value, state)
    return table


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
