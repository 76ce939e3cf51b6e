"""What the contract checks are made of: a promise is kept, or an `AssertionError` tells which was not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import fields

from labrig_drivers.errors import LabrigError, StateError
from labrig_drivers.instrument import Identity, Instrument


def require(kept: bool, promise: str) -> None:
    """Raises `AssertionError` with the promise when it was not kept."""
    if not kept:
        raise AssertionError(f"broken promise: {promise}")


async def must_raise(error: type[LabrigError], call: Callable[[], Awaitable[object]], what: str) -> None:
    """Makes sure that `call` is refused with `error`, and with no other error."""
    try:
        await call()
    except error:
        return
    except Exception as other:
        raise AssertionError(
            f"broken promise: {what}: {error.__name__}, not {type(other).__name__}: {other}"
        ) from other
    raise AssertionError(f"broken promise: {what}: {error.__name__}, but nothing was raised")


async def check_closed(instrument: Instrument) -> None:
    """Checks what every instrument promises before `open()`."""

    async def ask() -> object:
        return instrument.identity

    await must_raise(StateError, ask, "identity before open()")
    # Must not raise: a rig closes everything, also what never came to be opened.
    await instrument.close()


def check_identity(identity: Identity) -> None:
    """Checks that an open instrument says who it is."""
    for field in fields(identity):
        text = getattr(identity, field.name)
        require(isinstance(text, str) and bool(text.strip()), f"identity.{field.name} is a text and not empty")
