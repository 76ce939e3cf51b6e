"""`labrig doctor`: what is installed, and what would have to be?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

BASE_PACKAGES = ("labrig", "numpy", "h5py", "pydantic", "pyserial", "pyvisa", "pyvisa-py", "rich", "typer")
EXTRAS = {
    "train": ("torch", "scipy", "scikit-learn", "safetensors"),
    "report": ("jinja2", "plotly"),
}


def doctor() -> None:
    """Prints versions, extras and drivers, and the line to run for what is missing.

    Example: labrig doctor
    """
    import platform

    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.print(f"Python {platform.python_version()} on {platform.platform()}", soft_wrap=True)
    for table in (_packages(), _drivers()):
        console.print(table)
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if _version(name) is None]
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
    for name in BASE_PACKAGES:
        table.add_row(name, _version(name) or "missing", "base")
    for extra, packages in EXTRAS.items():
        for name in packages:
            table.add_row(name, _version(name) or "missing", f"extra {extra}")
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
