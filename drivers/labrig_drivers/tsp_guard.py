"""The dead man's handle of a TSP instrument: a script in the instrument that switches off when the host falls silent.

While an output is on and nothing else is to be done, the instrument runs `labrig_guard()`: it waits for a `*TRG` from
the host, and where none comes in time, it ramps every guarded output down in small steps and switches it off. Each
exchange of the host begins with the `*TRG` that ends the waiting and closes with the call that starts it anew, all in
one message; between exchanges the host sends `*TRG` and the call by themselves. So the guard comes after whatever the
host began, even when the host dies meanwhile; while a sweep or a reading runs, nothing but its own end is waited for.

What this rests on (2600B reference manual 2600BS-901-01, "Using the remote trigger model", `trigger.wait()`): while a
script runs, the instrument takes no command, but `trigger.wait()` takes a `*TRG` out of the input queue before its
turn, and returns false when none comes within its time.

Run on the simulator only, never on a real instrument. Open question there: the manual says of `tspnet.disconnect()`
that closing a connection aborts the remote script; an instrument that does so for its raw sockets too would end the
guard when the host's process dies and its system closes the connection, and only a dead system or a cut cable would
then be guarded against. Try it with your instrument before relying on it: switch on, kill the host's process, look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from labrig_drivers.scpi import format_float

KICK: Final = "*TRG"
"""Ends the guard's waiting; harmless when no guard runs, since each guard forgets older triggers first."""
CALL: Final = "labrig_guard()"
"""Starts the guard; it says `SAYS` as soon as a trigger would reach it, and the host waits for that."""
SAYS: Final = "labrig guards"

# The least share of the silence that the host may use up: below it, every hiccup of the host would switch off.
_LEAST_WAIT: Final = 0.5
# Waiting and ramp together aim at this share of it, for what the instrument's own overhead takes.
_AIM: Final = 0.9
_KICKS_PER_WAIT: Final = 3


@dataclass(frozen=True)
class GuardRule:
    """How one channel is guarded.

    Attributes:
        silence_s: Time in s after the host's last word by which the output is to be off.
        voltage_step_v: Largest step of a voltage level in V on the way down.
        pause_s: Pause in s after each step.
        current_steps: Number of steps in which a current level goes down.
    """

    silence_s: float
    voltage_step_v: float
    pause_s: float
    current_steps: int

    @property
    def kick_every_s(self) -> float:
        """How often in s the host has to be heard, so that a late kick or two do no harm."""
        return self.silence_s * _LEAST_WAIT / _KICKS_PER_WAIT

    def off_after_s(self, level_v: float) -> float:
        """Longest time in s from the host's last word until an output at this voltage is off.

        The ramp is not hurried: from a level that takes more than half of the silence, the output is off later.
        """
        ramp_s = abs(level_v) / self.voltage_step_v * self.pause_s
        return max(self.silence_s, _LEAST_WAIT * self.silence_s + ramp_s)


def guard_script(rules: Mapping[str, GuardRule]) -> list[str]:
    """Lines of Lua 5.0 that define `labrig_guard()` for some channels; run them once, then call it.

    Args:
        rules: How each channel (`a`, `b`) is guarded; at least one.

    Raises:
        ValueError: There is none.
    """
    if not rules:
        raise ValueError("a guard needs a channel to guard")
    silence_s = min(rule.silence_s for rule in rules.values())
    entries = [
        f"{{smu = smu{channel}, step = {format_float(rule.voltage_step_v)}, pause = {format_float(rule.pause_s)}, "
        f"amp_steps = {rule.current_steps}}},"
        for channel, rule in sorted(rules.items())
    ]
    return [
        "local guarded = {",
        *entries,
        "}",
        # The present level and the number of steps from it to zero.
        "local function way_down(one)",
        "local source = one.smu.source",
        "if source.output == 0 then return nil, 0, 0 end",
        "if source.func == one.smu.OUTPUT_DCAMPS then return 'leveli', source.leveli, one.amp_steps end",
        "return 'levelv', source.levelv, math.ceil(math.abs(source.levelv) / one.step - 1e-9)",
        "end",
        "function labrig_guard()",
        "local ramp_s = 0",
        "for _, one in ipairs(guarded) do",
        "local _, _, steps = way_down(one)",
        "ramp_s = ramp_s + steps * one.pause",
        "end",
        "trigger.clear()",
        f"print('{SAYS}')",
        f"local wait_s = math.max({format_float(_LEAST_WAIT * silence_s)}, {format_float(_AIM * silence_s)} - ramp_s)",
        "if trigger.wait(wait_s) then return end",
        "for _, one in ipairs(guarded) do",
        "local name, level, steps = way_down(one)",
        "if name then",
        "for left = steps - 1, 0, -1 do",
        "one.smu.source[name] = level * left / steps",
        "delay(one.pause)",
        "end",
        "one.smu.source.output = 0",
        "end",
        "end",
        "end",
    ]
