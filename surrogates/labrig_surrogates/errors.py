"""Errors of the surrogates: subclasses of ValueError, so that plain torch code can catch them."""

from __future__ import annotations


class SurrogateError(ValueError):
    """A surrogate cannot be built, loaded or used as asked; the message says why."""
