"""Checks that need environments of their own: `nox -s NAME`; `.ci/run` is what every change has to pass."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

# The extras that the extra `test` asks for.
INSTALLED_BY_TEST = ("train", "report", "export", "images", "live", "remote", "simulated-tsp")


@nox.session(python="3.11")
def tests(session: nox.Session) -> None:
    """The default tests; arguments after `--` go to pytest."""
    session.install("-c", "constraints.txt", "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Style, format, and the arrows between the packages."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session(python="3.11")
def types(session: nox.Session) -> None:
    """Both type checkers."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    session.run("mypy")
    session.run("basedpyright", "--pythonpath", str(Path(session.bin) / "python"))


# What these compare belongs to one version: the schema as pydantic words it, a type that later versions write, the
# names of numpy's types on the site. And what torch 2.6 cannot do: compile a cell effect into one graph, and export a
# batch norm with the onnxscript of today.
NOT_WITH_LOWEST = (
    "tests/unit/test_config.py::test_committed_schema_is_the_current_one",
    "tests/integration/test_sweep_cli.py::test_doctor_and_schema_on_the_command_line",
    "tests/unit/test_remote_envelope.py::test_versions_and_sizes_are_checked",
    "tests/docs/test_site.py::test_the_site_has_every_public_name_and_no_private_one_and_every_page",
    "tests/unit/test_cell_effects.py::test_effects_on_cells_compile_as_one_graph_and_draw_what_eager_mode_draws",
    "tests/unit/test_analog_layers.py::test_the_digital_twin_is_exported_to_onnx",
)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The default tests with the oldest versions that pyproject.toml allows; arguments after `--` go to pytest."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(need for name in (*INSTALLED_BY_TEST, "test") for need in extras[name])]
    floors = [f"{found[1]}=={found[2]}" for need in wanted if (found := re.match(r"([\w-]+)>=([\w.]+)", need))]
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("\n".join(dict.fromkeys(floors)) + "\n")
    session.install("-c", str(constraints), "-e", ".[test]")
    # Old versions warn of what newer ones of others have changed; that is no fault of labrig's.
    left_out = [f"--deselect={name}" for name in NOT_WITH_LOWEST]
    # With more threads torch 2.6 leaves its compiling process behind, which the tests take for a leak.
    one_thread = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    session.run("pytest", "-W", "default", *left_out, *session.posargs, env=one_thread)


@nox.session(python="3.11")
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of the versions in constraints.txt; needs the databases of the package index or of OSV."""
    session.install("pip-audit")
    session.run("pip-audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip", *session.posargs)


@nox.session(python="3.11")
def fuzz(session: nox.Session) -> None:
    """100,000 damaged inputs for each reader of what comes from outside; takes hours."""
    session.install("-c", "constraints.txt", "-e", ".[test]")
    session.run("pytest", "tests/fuzz", "-m", "nightly", *session.posargs)


@nox.session(python="3.11")
def no_torch(session: nox.Session) -> None:
    """The walk of a bench PC: the base install, no extra."""
    session.install("-c", "constraints.txt", ".")
    session.run("python", "-c", "import importlib.util as u; assert u.find_spec('torch') is None")
    folder = Path(session.create_tmp()) / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run = str(folder / "run.h5")
    session.run("labrig", "doctor")
    session.run("labrig", "check", "rig_configs/mock.toml")
    plan = str(folder / "plan.toml")
    session.run("labrig", "plan", "rig_configs/mock.toml", "--precision", "5%", "--max-writes", "4", "-o", plan)
    session.run("labrig", "sweep", "rig_configs/mock.toml", "--plan", "mvm", "--writes", "1", "-o", run)
    session.run("labrig", "show", run, "--plot", "terminal")
    session.run("labrig", "compact", run)
    session.run("labrig", "export", run, "-o", str(folder / "run.csv"))
    session.run("labrig", "export", run, "-o", str(folder / "run.npz"))


@nox.session(python="3.11")
def qcodes(session: nox.Session) -> None:
    """Our drivers against the simulated instruments of QCoDeS; only its data files are used, hence no dependencies."""
    session.install("-c", "constraints.txt", "-e", ".[test]", "pyvisa-sim")
    session.install("--no-deps", "qcodes")
    session.run("pytest", "tests/integration/test_qcodes_simulators.py", *session.posargs)


@nox.session(python="3.11")
def viewers(session: nox.Session) -> None:
    """Recordings in programs that never heard of labrig: silx, and the checker of the NeXus committee's definitions."""
    session.install("-c", "constraints.txt", "-e", ".[test]", "silx>=3", "nexusformat>=2")
    session.run("pytest", "tests/integration/test_recording_viewers.py", *session.posargs)


@nox.session(python="3.11")
def badcrossbar(session: nox.Session) -> None:
    """Exact wires against badcrossbar; it asks for pycairo, which has to be compiled and only draws, so without it."""
    session.install("-c", "constraints.txt", "-e", ".[test]", "pathvalidate")
    session.install("--no-deps", "badcrossbar")
    session.run("pytest", "tests/integration/test_wires_against_badcrossbar.py", *session.posargs)


@nox.session(python="3.12")
def aihwkit(session: nox.Session) -> None:
    """The aihwkit board on the real toolkit; its wheels start at Python 3.12, so the constraints are left out."""
    session.install("-e", ".[test,aihwkit]")
    session.run("pytest", "tests/integration/test_aihwkit_board.py", *session.posargs)
