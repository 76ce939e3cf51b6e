"""What the four packages promise: every name resolves, says all that it takes and raises, and nothing leaks."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "labrig": ROOT / "labrig",
    "labrig_drivers": ROOT / "drivers" / "labrig_drivers",
    "labrig_surrogates": ROOT / "surrogates" / "labrig_surrogates",
    "labrig_calibration": ROOT / "calibration" / "labrig_calibration",
}
PAGE = ROOT / "docs" / "reference" / "public-api.md"

# What a program that imports a package may not wait for, nor have installed.
HEAVY = {"torch", "scipy", "sklearn", "h5py", "plotly", "jinja2", "aiohttp", "aiomqtt", "pandas", "pyarrow", "pydantic"}

# Nobody calls these constructors: the class method makes the object.
MADE_BY = {"Recording": "open", "RecordingWriter": "create"}

# Contracts that others implement: their methods are documented like functions.
CONTRACTS = {
    "Axis",
    "CellSweep",
    "CrossbarBoard",
    "Dialect",
    "FloatingLines",
    "Framing",
    "Link",
    "SourceMeter",
    "SwitchMatrix",
    "TransposedMvm",
}


@dataclass(frozen=True)
class Documented:
    """A docstring in the parts that matter here."""

    summary: str
    names: frozenset[str]
    raises: str

    @classmethod
    def read(cls, text: str) -> Documented:
        """Takes a Google docstring apart: names under `Args:` and `Attributes:`, the text under `Raises:`."""
        parts: dict[str, list[str]] = {}
        part = ""
        for line in inspect.cleandoc(text).splitlines():
            if title := re.fullmatch(r"(\w+):", line):
                part = title[1]
            elif line and not line.startswith(" "):
                part = ""
            parts.setdefault(part, []).append(line)
        entries = [line for title in ("Args", "Attributes") for line in parts.get(title, [])]
        heads = [found[1] for line in entries if (found := re.match(r" {4}([\w*, ]+)(?: \(.*\))?:", line))]
        names = frozenset(name for head in heads for name in re.findall(r"\w+", head))
        first = "\n".join(parts.get("", [])).split("\n\n", 1)[0].strip()
        return cls(first, names, "\n".join(parts.get("Raises", [])))


def raised_by(function: Callable[..., object]) -> set[str]:
    """Names of the errors that a function raises itself, not those of what it calls."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
                continue
            if (
                isinstance(child, ast.Raise)
                and isinstance(child.exc, ast.Call)
                and isinstance(child.exc.func, ast.Name)
            ):
                found.add(child.exc.func.id)
            walk(child)

    walk(tree.body[0])
    return found


def contract_of(text: str) -> str:
    """The docstring of the contract that a docstring refers to by "see `Contract.method`"."""
    found = re.search(r"see `(\w+)\.(\w+)`", text)
    made = found and getattr(importlib.import_module("labrig_drivers"), found[1], None)
    return (inspect.getdoc(getattr(made, found[2])) or "") if found and made else ""


def call_faults(where: str, function: Callable[..., object], text: str | None, *, strict: bool) -> Iterator[str]:
    """What a docstring leaves out of a call; only a strict one has to have `Args:` for everything."""
    if not text:
        yield f"{where}: no docstring"
        return
    said = Documented.read(text)
    if not said.summary.endswith((".", "`", ":")):
        yield f"{where}: the first paragraph is not a sentence"
    parameters = [one for one in inspect.signature(function).parameters.values() if one.name not in {"self", "cls"}]
    missing = [one.name for one in parameters if one.name not in said.names]
    if strict and missing:
        yield f"{where}: does not say what {missing} are"
    errors = constructor_errors(function) if inspect.isclass(function) else raised_by(function)
    place = said.raises if strict else text + contract_of(text)
    if unsaid := sorted(error for error in errors if error not in place):
        yield f"{where}: raises {unsaid} without saying so"


def constructor_errors(made: type) -> set[str]:
    """Errors that making an object raises: in `__init__` where the class writes one, or in `__post_init__`."""
    own = vars(made).get("__post_init__") or (
        None if "__dataclass_fields__" in vars(made) else vars(made).get("__init__")
    )
    return raised_by(own) if inspect.isfunction(own) else set()


def annotation_faults(where: str, function: Callable[..., object]) -> Iterator[str]:
    """Annotations that say nothing."""
    signature = inspect.signature(function)
    texts = {name: str(one.annotation) for name, one in signature.parameters.items()}
    texts["return"] = str(signature.return_annotation)
    yield from (f"{where}: {name} is {text}" for name, text in texts.items() if re.search(r"\bAny\b", text))


def methods_of(made: type) -> Iterator[tuple[str, Callable[..., object], str | None]]:
    """The public methods that a class has of its own, with their docstrings."""
    for name, value in vars(made).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function, inspect.getdoc(getattr(made, name))


def class_faults(name: str, made: type) -> Iterator[str]:
    """What the docstrings and annotations of a public class and its methods leave out."""
    # A dataclass without a docstring is given its signature.
    if not made.__doc__ or made.__doc__.startswith(f"{name}("):
        yield f"{name}: no docstring"
        return
    protocol = getattr(made, "_is_protocol", False)
    plain = issubclass(made, BaseException) or hasattr(made, "__members__") or hasattr(made, "model_fields")
    if not protocol and not plain and name not in MADE_BY:
        yield from call_faults(name, made, made.__doc__, strict=True)
        yield from annotation_faults(name, made)
    for method, function, text in methods_of(made):
        strict = name in CONTRACTS or MADE_BY.get(name) == method
        yield from call_faults(f"{name}.{method}", function, text, strict=strict)
        yield from annotation_faults(f"{name}.{method}", function)


def faults_of(name: str, thing: object, page: str) -> list[str]:
    """Everything that is wrong with one public name."""
    if inspect.isclass(thing):
        return list(class_faults(name, thing))
    if inspect.isfunction(thing):
        return [*call_faults(name, thing, thing.__doc__, strict=True), *annotation_faults(name, thing)]
    if isinstance(thing, ModuleType):
        return [f"{name}: a module, not a name of ours"]
    # A type alias has no docstring of its own: the page of the public API says what it is.
    return [] if re.search(rf"^\| `{name}` \|", page, re.MULTILINE) else [f"{name}: not explained in {PAGE.name}"]


def typing_imports(tree: ast.Module) -> dict[str, str]:
    """What type checkers see, as `module:name` by public name: the imports under `if TYPE_CHECKING:`."""
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def run(program: str) -> str:
    """What a program prints in a fresh interpreter."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", FOLDERS)
def test_every_public_name_is_documented_and_typed(package: str) -> None:
    module, page = importlib.import_module(package), PAGE.read_text()
    assert len(module.__all__) > 20
    assert [fault for name in module.__all__ for fault in faults_of(name, getattr(module, name), page)] == []


def only_paths(where: str, function: Callable[..., object]) -> Iterator[str]:
    """Arguments that take a `Path` and not its text."""
    for one in inspect.signature(function).parameters.values():
        text = str(one.annotation)
        if "Path" in text and "str" not in text and not text.startswith("Callable"):
            yield f"{where}: {one.name} is {text}"


@pytest.mark.parametrize("package", FOLDERS)
def test_whoever_takes_a_path_takes_its_text(package: str) -> None:
    module = importlib.import_module(package)
    faults: list[str] = []
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isfunction(thing):
            faults += only_paths(name, thing)
        elif inspect.isclass(thing):
            for method, function, _ in methods_of(thing):
                faults += only_paths(f"{name}.{method}", function)
    assert faults == []


@pytest.mark.parametrize("package", FOLDERS)
def test_nothing_leaks(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == module.__all__ == sorted(set(module.__all__))
    assert [name for name in module.__all__ if name.startswith("_")] == []
    # A name that is also a module's would be that module as soon as anybody imports it.
    modules = {path.stem for path in FOLDERS[package].iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(module.__all__) == set()
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing_like_it'"):
        _ = module.nothing_like_it


@pytest.mark.parametrize("package", FOLDERS)
def test_type_checkers_and_the_interpreter_see_the_same_names(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse((FOLDERS[package] / "__init__.py").read_text())
    assert typing_imports(tree) == vars(module)["_HOMES"]
    assert sorted(vars(module)["_HOMES"]) == module.__all__


def test_names_load_lazily_by_the_same_code_everywhere() -> None:
    # Written once in each package, since none of them may import another only for this.
    functions = {
        tuple(ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef))
        for tree in (ast.parse((folder / "__init__.py").read_text()) for folder in FOLDERS.values())
    }
    (shared,) = functions
    assert [text.partition("(")[0] for text in shared] == ["def __getattr__", "def __dir__"]


def loaded_after(statements: str) -> set[str]:
    """Top-level packages in memory after some statements in a fresh interpreter."""
    program = f"{statements}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(run(program).splitlines()[-1].split())


@pytest.mark.parametrize("package", FOLDERS)
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    assert loaded_after(f"import {package}; dir({package})") & (HEAVY | {"numpy"}) == set()


def test_a_name_loads_what_it_needs_and_no_more() -> None:
    assert loaded_after("from labrig_drivers import MockBoard, Keithley2400") & (HEAVY | {"labrig"}) == set()
    assert loaded_after("from labrig_surrogates import load_chip") & {"torch", "scipy", "labrig_calibration"} == set()
    assert loaded_after("from labrig_calibration import MvmDataset") & {"torch", "scipy", "h5py"} == set()
    assert loaded_after("from labrig import load_rig, open_rig, run_sweep") & {"torch", "scipy", "plotly"} == set()
    # The check can fail: layers are torch modules.
    assert "torch" in loaded_after("from labrig_surrogates import AnalogLinear")


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from labrig.cli import main\n"
        "sys.argv = ['labrig', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
    )
    text = run(f"{program}print(*sorted({{name.partition('.')[0] for name in sys.modules}}))")
    assert "calibrate" in text
    assert set(text.splitlines()[-1].split()) & (HEAVY | {"numpy"}) == set()


def test_faults_are_found() -> None:
    def undocumented(level_v: float) -> float:
        return level_v

    def forgets(level_v: float, other: object) -> float:
        """Does something.

        Args:
            level_v: In V.
        """
        if level_v < 0.0:
            raise ValueError("negative")
        return level_v

    class Bare:
        def run(self) -> None: ...

    def found(thing: object) -> str:
        return "\n".join(faults_of("thing", thing, ""))

    assert "no docstring" in found(undocumented)
    assert "does not say what ['other'] are" in found(forgets)
    assert "raises ['ValueError'] without saying so" in found(forgets)
    assert "no docstring" in found(Bare)
    assert "not explained" in found(int | str)
    assert "a module" in found(ast)
    vague = type("Vague", (), {"__doc__": "Says little.", "__init__": lambda self: None})
    assert found(vague) == ""
    undocumented.__annotations__["level_v"] = "Any"
    assert list(annotation_faults("thing", undocumented)) == ["thing: level_v is Any"]
