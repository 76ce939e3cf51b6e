"""The listening side of TSP: runs lines and scripts of an instrument's Lua, in a real Lua with the doors locked.

Instruments run Lua 5.0; here it is the Lua 5.1 of the package `lupa`, from which whatever 5.0 does not have is taken
away (the operators `#` and `%`, `string.match`), so that a script that needs it fails here too. A script sees nothing
of Python and nothing of this machine: no `os`, `io`, `require` or `debug`, and no Python object, only Lua functions.

What takes time in the instrument (`delay()`, a measurement, `trigger.wait()`) yields the seconds: the script is a
coroutine, and `run()` steps it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Final, Protocol

from labrig_drivers.errors import ConfigError, InstrumentError
from labrig_drivers.mock.scpi_parser import Run
from labrig_drivers.mock.tsp_runtime import RUNTIME

Value = float | str | bool | None
"""What crosses the border between Lua and the instrument."""

_SYNTAX_ERROR = -285
_RUNTIME_ERROR = -286
_LEAST_PIECES = 8
_LONGEST_PIECE_S = 0.02
_AHEAD = re.compile(r"tsp:(\d+): (.*)", re.DOTALL)
_QUOTED = re.compile(r"--\[\[.*?\]\]|--[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|\[\[.*?\]\]", re.DOTALL)
_NOT_LUA_5_0: Final = ("#", "%")


class Errors(Protocol):
    """Where faults are noted."""

    def add(self, code: int, text: str) -> None:
        """Notes an error."""
        ...


@dataclass(frozen=True)
class Attribute:
    """One attribute of an instrument's object.

    Attributes:
        get: Reads it.
        set: Writes it; raises `InstrumentError` for what the instrument refuses; None for one that is read only.
    """

    get: Callable[[], Value]
    set: Callable[[Value], None] | None = None


@dataclass(frozen=True)
class Timed:
    """A function that takes time.

    Attributes:
        begin: Gets the arguments, returns the seconds that it takes and what `end` needs to know.
        end: Gets that, returns the function's values.
    """

    begin: Callable[..., tuple[float, object]]
    end: Callable[[object], tuple[Value, ...]]


@dataclass(frozen=True)
class Column:
    """Something that holds numbers and can be printed as a whole or asked for one: `buffer.readings`.

    Attributes:
        handle: Its own name; functions get it where a script passes the object.
        item: The number at an index from 1.
    """

    handle: str
    item: Callable[[int], float]


@dataclass(frozen=True)
class Thing:
    """One object of the instrument, such as `smua.source`.

    Attributes:
        parts: Its constants, attributes, functions and objects by name.
        handle: What functions get where a script passes the object; empty where none takes it.
    """

    parts: Mapping[str, Part]
    handle: str = ""


Part = Value | Attribute | Timed | Column | Thing | Callable[..., "Value | tuple[Value, ...]"]


class TspInterpreter:
    """Runs an instrument's lines.

    Args:
        world: What scripts find: the instrument's objects and functions by name.
        common: The common commands (`*IDN?`) by name in upper case; each returns its answer or None.
        errors: Where faults are noted.
        number: Text of a printed number.

    Raises:
        ConfigError: The package `lupa` is not installed.
    """

    def __init__(
        self,
        world: Mapping[str, Part],
        common: Mapping[str, Callable[[], str | None]],
        errors: Errors,
        number: Callable[[float], str],
    ) -> None:
        self._errors = errors
        self._common = common
        self._number = number
        self._printed = bytearray()
        self._collecting: list[str] | None = None
        self._script_name = ""
        self._runs_at_once = False
        self._operation: Run | None = None
        # Triggers: one that was noted, those seen in the queue of lines to come, and those of them already taken.
        self._triggered = False
        self._triggers_ahead = 0
        self._triggers_taken = 0
        self._lua = _new_lua()
        self._lua.keep(self._print, self._take_trigger, self._pieces)
        for name, part in world.items():
            self._lua.define(name, self._made(part))

    def run(self, line: str) -> Run:
        """Runs one line; yields the seconds that it takes and returns what it printed, None for nothing.

        A script, and a line that waits for a trigger, becomes an operation as soon as it takes time: what it prints
        later comes with the answer to a later line.
        """
        word = line.strip()
        if self._collecting is not None:
            if word != "endscript":
                self._collecting.append(line)
                return None
            source, self._collecting = "\n".join(self._collecting), None
            yield from self._script(source)
        elif word.split(" ")[0] in {"loadscript", "loadandrunscript"}:
            command, _, self._script_name = word.partition(" ")
            self._runs_at_once, self._collecting = command == "loadandrunscript", []
        elif word.startswith("*"):
            self._run_common(word.upper())
        elif word and word != "abort":
            yield from self._chunk(line, is_script=False)
        return self._take_printed()

    def take_operation(self) -> Run | None:
        """The script that the last line left running, if any."""
        operation, self._operation = self._operation, None
        return operation

    def is_abort(self, line: str) -> bool:
        """Whether this line ends a running script; also notes a `*TRG`, which a waiting script takes before its turn.

        While a script runs, a server shows each line that arrives here, as an instrument looks into its input queue.
        """
        word = line.strip().upper()
        self._triggers_ahead += word == "*TRG"
        return word == "ABORT"

    def emit(self, data: bytes) -> None:
        """Adds to what is being printed, as it is."""
        self._printed += data

    def _run_common(self, word: str) -> None:
        if word == "*TRG":
            if self._triggers_taken:
                self._triggers_taken -= 1
            else:
                self._triggers_ahead = max(0, self._triggers_ahead - 1)
                self._triggered = True
        elif word in self._common:
            answer = self._common[word]()
            if answer is not None:
                self.emit(answer.encode("ascii") + b"\n")
        else:
            self._errors.add(_SYNTAX_ERROR, f"TSP Syntax error at line 1: unexpected symbol near `{word[:1]}'")

    def _script(self, source: str) -> Iterator[float]:
        if self._script_name:
            self._lua.store(self._script_name, source)
        if self._runs_at_once:
            yield from self._chunk(source, is_script=True)

    def _chunk(self, source: str, *, is_script: bool) -> Iterator[float]:
        bare = _QUOTED.sub(" ", source)
        for operator in _NOT_LUA_5_0:
            if operator in bare:
                number = bare[: bare.index(operator)].count("\n") + 1
                self._errors.add(
                    _SYNTAX_ERROR, f"TSP Syntax error at line {number}: unexpected symbol near `{operator}'"
                )
                return
        step, fault = self._lua.compile(source)
        if step is None:
            self._note_fault(_SYNTAX_ERROR, "TSP Syntax error", fault)
            return
        steps = self._steps(step)
        for seconds, waits in steps:
            if is_script or waits:
                self._operation = self._rest(seconds, steps)
                return
            yield seconds

    def _rest(self, seconds: float, steps: Iterator[tuple[float, bool]]) -> Run:
        yield seconds
        for pause_s, _ in steps:
            yield pause_s
        return None

    def _steps(self, step: Step) -> Iterator[tuple[float, bool]]:
        """Runs a chunk from pause to pause: (seconds, whether it waits for a trigger)."""
        while True:
            state, value, waits = step()
            if state == "pauses":
                yield float(value), waits is True
                continue
            if state == "fails":
                self._note_fault(_RUNTIME_ERROR, "TSP Runtime error", str(value))
            return

    def _note_fault(self, code: int, what: str, message: str) -> None:
        found = _AHEAD.search(message)
        where, text = (found[1], found[2]) if found else ("1", message)
        self._errors.add(code, f"{what} at line {where}: {text}")

    def _take_trigger(self) -> bool:
        found = self._triggered or self._triggers_ahead > 0
        self._triggers_taken += self._triggers_ahead
        self._triggered, self._triggers_ahead = False, 0
        return found

    def _pieces(self, wait_s: float) -> int:
        """In how many pauses a wait for a trigger is looked after."""
        return max(_LEAST_PIECES, int(wait_s / _LONGEST_PIECE_S))

    def _print(self, *values: Value) -> None:
        self.emit("\t".join(self.text(value) for value in values).encode("ascii", errors="replace") + b"\n")

    def text(self, value: Value) -> str:
        """Text of a printed value."""
        if value is None:
            return "nil"
        if isinstance(value, bool):
            return "true" if value else "false"
        return self._number(float(value)) if isinstance(value, int | float) else str(value)

    def _take_printed(self) -> bytes | None:
        printed, self._printed = bytes(self._printed), bytearray()
        return printed or None

    def _made(self, part: Part) -> object:
        """The Lua side of a part of the instrument."""
        if isinstance(part, Timed):
            return self._lua.timed(self._checked(part.begin), self._checked(part.end))
        if isinstance(part, Column):
            return self._lua.object(self._checked(part.item), _no_such_attribute, None, part.handle)
        if isinstance(part, Thing):
            return self._made_thing(part)
        return self._lua.plain(self._checked(part)) if callable(part) else part

    def _made_thing(self, thing: Thing) -> object:
        attributes = {name: part for name, part in thing.parts.items() if isinstance(part, Attribute)}
        fixed = self._lua.table()
        for name, part in thing.parts.items():
            if not isinstance(part, Attribute):
                self._lua.put(fixed, name, self._made(part))

        def get(name: object) -> Value:
            found = attributes.get(str(name))
            return None if found is None else found.get()

        def put(name: object, value: Value) -> str | None:
            found = attributes.get(str(name))
            if found is None or found.set is None:
                return _no_such_attribute(name, value)
            self._checked(found.set)(value)
            return None

        return self._lua.object(get, put, fixed, thing.handle)

    def _checked(self, function: Callable[..., object]) -> Callable[..., object]:
        """An instrument's refusal goes into the error queue; the script goes on, as the manual says."""

        def call(*arguments: object) -> object:
            try:
                return function(*arguments)
            except InstrumentError as error:
                self._errors.add(error.code, error.text)
                return None

        return call


def _no_such_attribute(name: object, _value: object = None) -> str:
    """The runtime error of a script that writes what cannot be written."""
    return f"attempt to set read-only or unknown attribute `{name}'"


Step = Callable[[], tuple[str, float | str, bool]]
"""Runs a chunk to its next pause: what it did (pauses, ended, fails), seconds or fault, whether it awaits a trigger."""


class _Lua(Protocol):
    """The functions of `RUNTIME`; an `object` here is something of Lua's."""

    def keep(
        self, print_: Callable[..., None], take_trigger: Callable[[], bool], pieces: Callable[[float], int]
    ) -> None: ...
    def define(self, name: str, part: object) -> None: ...
    def compile(self, source: str) -> tuple[Step | None, str]: ...
    def store(self, name: str, source: str) -> None: ...
    def plain(self, function: Callable[..., object]) -> object: ...
    def timed(self, begin: Callable[..., object], end: Callable[..., object]) -> object: ...
    def table(self) -> object: ...
    def put(self, made: object, name: str, part: object) -> None: ...
    def object(self, get: Callable[..., object], put: Callable[..., object], fixed: object, handle: str) -> object: ...


def _new_lua() -> _Lua:
    try:
        lupa = import_module("lupa.lua51")
    except ImportError as error:
        raise ConfigError(
            "a simulated Keithley 2600 runs real Lua and needs lupa; run: pip install 'labrig[simulated-tsp]'"
        ) from error

    def refuse(_object: object, name: object, _is_setting: bool) -> str:
        raise AttributeError(f"scripts see nothing of Python, not even {name!r}")

    runtime = lupa.LuaRuntime(
        unpack_returned_tuples=True, register_eval=False, register_builtins=False, attribute_filter=refuse
    )
    functions: _Lua = runtime.execute(RUNTIME)
    return functions
