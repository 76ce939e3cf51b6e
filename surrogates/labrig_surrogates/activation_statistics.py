"""Statistics of activations, layer by layer: recorded by hooks that are removed again, compared with the chip's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.faults import counted, refuse
from labrig_surrogates.quantization import wide

Distance = Literal["mean", "mean_variance", "sliced_wasserstein"]

_SMALLEST_SHARE = 1e-3
"""Variance of a silent channel, as a share of its layer's mean variance: what its deviations are divided by."""


@dataclass(frozen=True)
class LayerStatistics:
    """Moments of one layer's activations, channel by channel.

    Attributes:
        mean: Means, `[channels]`.
        variance: Variances (divided by n), `[channels]`.
        count: Number n of values of each channel.
        values: Some of the values, `[kept, channels]`, for `sliced_wasserstein`; `None` where none were kept.
    """

    mean: Tensor
    variance: Tensor
    count: int
    values: Tensor | None = None

    @classmethod
    def of(cls, activations: Tensor, *, channel_dim: int = 1, keep: int = 0) -> LayerStatistics:
        """Statistics of one tensor of activations, in float32 or better, with gradient.

        Args:
            activations: `[batch, channels, ...]`, or with the channels elsewhere.
            channel_dim: Which dimension counts the channels.
            keep: How many values of each channel to keep, evenly spaced over batch and positions.
        """
        rows = wide(activations).movedim(channel_dim, -1).flatten(0, -2)
        count = min(keep, rows.shape[0])
        places = torch.linspace(0, max(rows.shape[0] - 1, 0), count, device=rows.device).round().long()
        values = rows[places] if keep else None
        return cls(rows.mean(dim=0), rows.var(dim=0, correction=0), rows.shape[0], values)

    def merged(self, other: LayerStatistics) -> LayerStatistics:
        """Statistics of both sets together (Chan, Golub and LeVeque, 1979)."""
        total = self.count + other.count
        difference = other.mean - self.mean
        share = other.count / total
        variance = self.variance * (1.0 - share) + other.variance * share + difference**2 * (share * (1.0 - share))
        values = [values for values in (self.values, other.values) if values is not None]
        return LayerStatistics(self.mean + difference * share, variance, total, torch.cat(values) if values else None)

    def detached(self) -> LayerStatistics:
        """The same numbers without gradient."""
        values = None if self.values is None else self.values.detach()
        return LayerStatistics(self.mean.detach(), self.variance.detach(), self.count, values)


@dataclass(frozen=True)
class RecordedStatistics:
    """Statistics of the hardware, kept for steps in which it is not asked.

    Attributes:
        layers: Statistics by layer name, without gradient.
        recorded_at_s: When they were recorded, in s on the clock of the training.
    """

    layers: Mapping[str, LayerStatistics]
    recorded_at_s: float

    def age_s(self, now_s: float) -> float:
        """Their age in s: a chip drifts, and a table of losses says how old its reference is."""
        return now_s - self.recorded_at_s

    def describe(self, now_s: float) -> str:
        """One line: how many layers, on how many values, how old."""
        counts = [layer.count for layer in self.layers.values()]
        values = f"{min(counts)} to {max(counts)} values each" if counts else "none"
        return f"hardware statistics of {counted(len(counts), 'layer')} ({values}), {self.age_s(now_s):.0f} s old"


class StatisticsRecorder:
    """What `record_statistics` collects."""

    def __init__(self) -> None:
        self.layers: dict[str, LayerStatistics] = {}

    def add(self, name: str, statistics: LayerStatistics) -> None:
        """Adds a forward pass to a layer's statistics."""
        former = self.layers.get(name)
        self.layers[name] = statistics if former is None else former.merged(statistics)

    def recorded(self, at_s: float) -> RecordedStatistics:
        """The statistics as those of the hardware: without gradient, with the time in s."""
        return RecordedStatistics({name: layer.detached() for name, layer in self.layers.items()}, at_s)


@contextmanager
def record_statistics(
    model: nn.Module, layers: Iterable[str], *, channel_dim: int = 1, keep: int = 0
) -> Iterator[StatisticsRecorder]:
    """Records statistics of the outputs of named layers in every forward pass inside the `with`.

    Several passes are merged; those of the network's own step keep their gradient. The hooks are removed at the end,
    also after an error.

    Args:
        model: The model.
        layers: Names of its modules, as in `model.named_modules()`.
        channel_dim: Which dimension of their outputs counts the channels.
        keep: How many values of each channel to keep from each pass.

    Raises:
        SurrogateError: A name is unknown, or a layer gives something other than a tensor.
    """
    modules = dict(model.named_modules())
    names = list(layers)
    refuse("statistics", [f"the model has no layer {name!r}" for name in names if name not in modules])
    recorder = StatisticsRecorder()

    def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise SurrogateError(f"statistics: layer {name!r} gives a {type(output).__name__}, not a tensor")
            recorder.add(name, LayerStatistics.of(output, channel_dim=channel_dim, keep=keep))

        return hook

    handles: list[RemovableHandle] = []
    try:
        handles.extend(modules[name].register_forward_hook(hook_of(name)) for name in names)
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def statistics_distance(
    network: Mapping[str, LayerStatistics],
    hardware: Mapping[str, LayerStatistics],
    distance: Distance = "mean",
    projections: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Sum over the layers of the distance between a network and the hardware at the same inputs.

    Each channel is measured in units of the hardware's standard deviation, and no gradient reaches the hardware's side.

    - `mean`: `sum over channels of (mu_net - mu_hw)**2 / var_hw`. Means alone cannot see noise.
    - `mean_variance`: that, plus `sum over channels of (var_net / var_hw - 1)**2`.
    - `sliced_wasserstein`: mean over directions of the squared 2-Wasserstein distance of the projected values, which
      sees whole distributions and correlations (Rabin et al., 2011); times the number of channels.

    Args:
        network: Statistics of the network, with gradient.
        hardware: Statistics of the hardware.
        distance: Which distance.
        projections: Directions by layer for `sliced_wasserstein`.

    Raises:
        SurrogateError: Layers or channels do not agree, or values or directions are missing; every fault is named.
    """
    refuse("distance of statistics", _distance_faults(network, hardware, distance, projections))
    terms = []
    for name, ours in network.items():
        theirs = hardware[name].detached()
        variance = _floored(theirs.variance)
        if distance == "sliced_wasserstein":
            assert ours.values is not None
            assert theirs.values is not None
            assert projections is not None
            scale = torch.sqrt(variance)
            gap = sliced_wasserstein(ours.values / scale, theirs.values / scale, projections[name])
            terms.append(gap * variance.shape[0])
            continue
        term = ((ours.mean - theirs.mean) ** 2 / variance).sum()
        if distance == "mean_variance":
            term = term + ((ours.variance - theirs.variance) ** 2 / variance**2).sum()
        terms.append(term)
    return torch.stack(terms).sum()


def sliced_wasserstein(first: Tensor, second: Tensor, directions: Tensor) -> Tensor:
    """Mean over directions of the squared 2-Wasserstein distance of two sets of points along them.

    The sets may differ in size: their quantile functions are compared at the quantiles of the smaller one.

    Args:
        first: Points, `[n, channels]`.
        second: Points, `[m, channels]`.
        directions: Unit vectors, `[channels, directions]`.
    """
    ours, theirs = (torch.sort(points @ directions, dim=0).values for points in (first, second))
    count = min(ours.shape[0], theirs.shape[0])
    difference = _quantiles(ours, count) - _quantiles(theirs, count)
    return (difference**2).mean()


def draw_projections(channels: int, directions: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors, uniform on the sphere, `[channels, directions]`; drawn outside any compiled region."""
    normal = torch.randn((channels, directions), generator=generator, device=generator.device)
    return normal / torch.sqrt((normal**2).sum(dim=0, keepdim=True))


def _quantiles(ordered: Tensor, count: int) -> Tensor:
    size = ordered.shape[0]
    if size == count:
        return ordered
    place = (torch.arange(count, dtype=torch.float64, device=ordered.device) + 0.5) * (size / count) - 0.5
    lower = place.floor().clamp(0, size - 1)
    share = (place - lower).clamp(0.0, 1.0).to(ordered.dtype).unsqueeze(1)
    index = lower.long()
    upper = (index + 1).clamp(max=size - 1)
    return ordered[index] * (1.0 - share) + ordered[upper] * share


def _floored(variance: Tensor) -> Tensor:
    smallest = math.sqrt(torch.finfo(variance.dtype).tiny)
    return torch.clamp(variance, min=torch.clamp(_SMALLEST_SHARE * variance.mean(), min=smallest))


def _distance_faults(
    network: Mapping[str, LayerStatistics],
    hardware: Mapping[str, LayerStatistics],
    distance: Distance,
    projections: Mapping[str, Tensor] | None,
) -> list[str]:
    faults = [] if network else ["no layer was recorded"]
    for name, ours in network.items():
        theirs = hardware.get(name)
        if theirs is None:
            faults.append(f"the hardware has no statistics of layer {name!r}")
            continue
        if ours.mean.shape != theirs.mean.shape:
            faults.append(f"layer {name!r} has {ours.mean.numel()} channels, on the hardware {theirs.mean.numel()}")
        if distance == "sliced_wasserstein":
            silent = [side for side, layer in (("network", ours), ("hardware", theirs)) if layer.values is None]
            faults += [
                f"no values of layer {name!r} were kept on the {side}'s side: record with keep=..." for side in silent
            ]
            if projections is None or name not in projections:
                faults.append(f"no directions for layer {name!r}: draw them with draw_projections")
    return faults
