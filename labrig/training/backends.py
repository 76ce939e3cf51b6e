"""Which backend computes each analog layer: one kind for all, or another one for some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from torch import nn

from labrig_drivers.errors import ConfigError
from labrig_surrogates.backend import Backend
from labrig_surrogates.layers import weight_matrices

Kind = Literal["digital", "surrogate", "physical", "replay"]


class Backends:
    """Switches the layers of a network between backends; nothing else about it changes.

    Args:
        network: The analog network.
        fixed: Kinds of layers, by name, that stay what they are whatever the others are switched to.

    Raises:
        ConfigError: A layer that does not exist.
    """

    def __init__(self, network: nn.Module, fixed: Mapping[str, Kind] | None = None) -> None:
        self._cores = {matrix.core.name: matrix.core for matrix in weight_matrices(network)}
        self._fixed: dict[str, Kind] = {} if fixed is None else dict(fixed)
        self._known: dict[Kind, Backend] = {}
        if unknown := sorted(set(self._fixed) - set(self._cores)):
            there = ", ".join(sorted(self._cores)) or "none"
            raise ConfigError(f"training.layers: there is no analog layer {', '.join(unknown)}; there are {there}")

    def of_copy(self, network: nn.Module) -> Backends:
        """The same for a copy of the network: it has the same fixed layers, and meets the same backends."""
        other = Backends(network, self._fixed)
        other._known = dict(self._known)
        return other

    def offer(self, kind: Kind, backend: Backend) -> None:
        """Says what computes a kind; one that was offered before is replaced."""
        self._known[kind] = backend

    def use(self, kind: Kind) -> None:
        """Has all layers that are not fixed computed by one kind.

        Raises:
            ConfigError: Nothing computes a kind that a layer needs; nothing is changed.
        """
        wanted: dict[str, Kind] = dict.fromkeys(self._cores, kind)
        wanted.update(self._fixed)
        if missing := sorted(set(wanted.values()) - set(self._known)):
            raise ConfigError(
                f"nothing computes {', '.join(missing)} here; there are {', '.join(sorted(self._known)) or 'none'}"
            )
        for name, core in self._cores.items():
            core.use_backend(self._known[wanted[name]])

    @contextmanager
    def using(self, backend: Backend) -> Iterator[None]:
        """Has one backend compute every layer for a while, the fixed ones included."""
        before = {name: core.backend for name, core in self._cores.items()}
        try:
            for core in self._cores.values():
                core.use_backend(backend)
            yield
        finally:
            for name, core in self._cores.items():
                core.backend = before[name]
