"""Nothing in labrig turns bytes into code: no pickle, no eval, no shell, in no module that is installed."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("labrig", "drivers/labrig_drivers", "surrogates/labrig_surrogates", "calibration/labrig_calibration")
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "pandas", "yaml"}
"""Modules whose loaders build objects, or that have such loaders."""
RUNNERS = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
LOADERS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
"""Calls that are safe only with this argument; some defaults were others once."""
NEVER = {"shell": True, "allow_pickle": True, "weights_only": False}

FILES_OF_PYTHON = {"labrig/own_files.py"}
"""Where a file of the user's is run as Python, since the user names it: plans, models, data sets of one's own."""


def faults_of(source: str) -> Iterator[str]:
    """What is unsafe in a module, by line."""
    # A collection while Python 3.11 builds the tree can end in "AST constructor recursion depth mismatch".
    gc.disable()
    try:
        tree = ast.parse(source)
    finally:
        gc.enable()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            unsafe = [name for name in names if name.partition(".")[0] in UNPICKLERS]
            yield from (f"{node.lineno}: imports {name}" for name in unsafe)
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {fault}" for fault in call_faults(node))
        if isinstance(node, ast.Attribute) and node.attr in {"exec_module", "load_module"}:
            yield f"{node.lineno}: runs a module"


def call_faults(call: ast.Call) -> Iterator[str]:
    """What is unsafe in a call."""
    name = ast.unparse(call.func)
    given = {one.arg: one.value.value for one in call.keywords if isinstance(one.value, ast.Constant)}
    if name in RUNNERS or name in SHELLS:
        yield f"calls {name}"
    if name in LOADERS:
        argument, safe = LOADERS[name]
        if given.get(argument) is not safe:
            yield f"calls {name} without {argument}={safe}"
    yield from (f"{name} with {argument}={value}" for argument, value in NEVER.items() if given.get(argument) is value)


def test_no_module_turns_bytes_into_code() -> None:
    assert len(MODULES) > 400
    found = {str(path.relative_to(ROOT)): faults for path in MODULES if (faults := list(faults_of(path.read_text())))}
    assert {name: faults for name, faults in found.items() if name not in FILES_OF_PYTHON} == {}
    assert {name: [fault.partition(": ")[2] for fault in found.get(name, [])] for name in FILES_OF_PYTHON} == {
        name: ["runs a module"] for name in FILES_OF_PYTHON
    }


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import yaml",
        "eval('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "os.system('ls')",
        "spec.loader.exec_module(module)",
    ],
)
def test_what_is_unsafe_is_found(source: str) -> None:
    assert list(faults_of(source)) != []


def test_what_is_safe_is_not() -> None:
    safe = "model.eval()\ntorch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)\nre.compile('a')"
    assert list(faults_of(safe)) == []
