"""Parts of a study as jobs of a cluster: Slurm, or local processes that behave like one, through submitit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol, cast

from labrig.extras import demand_extra
from labrig.studies.cache import Cache, Numbers
from labrig_drivers.errors import ConfigError, LabrigError

ClusterKind = Literal["local", "slurm"]

_LOOK_EVERY_S: Final = 1.0


class ClusterError(LabrigError):
    """A job of a cluster failed, or was lost."""


@dataclass(frozen=True)
class Cluster:
    """Where parts are computed.

    Attributes:
        kind: `slurm`, or `local` for processes of this machine.
        folder: For the jobs' files and logs; every node has to see it, as well as data, networks and kept parts.
        jobs: How many jobs the parts are shared among.
        options: What submitit's `update_parameters` takes, such as `timeout_min` or `slurm_partition`.
    """

    kind: ClusterKind
    folder: Path
    jobs: int
    options: Mapping[str, str | int] = field(default_factory=dict)


def cluster_of(kind: str | None, folder: Path, jobs: int, options: Sequence[str]) -> Cluster | None:
    """The cluster that a command line names; None where it names none.

    Args:
        kind: `local`, `slurm` or None.
        folder: For the jobs' files.
        jobs: How many jobs.
        options: `NAME=VALUE` each; whole numbers become numbers.

    Raises:
        ConfigError: No such kind, options without a cluster, or one that has no value; every fault is named.
    """
    faults = [f"--cluster-set {one}: write NAME=VALUE" for one in options if "=" not in one]
    if kind not in {None, "local", "slurm"}:
        faults.append(f"--cluster {kind}: is neither local nor slurm")
    if kind is None and options:
        faults.append("--cluster-set says how, but no --cluster says where")
    if faults:
        raise ConfigError("\n".join(faults))
    if kind is None:
        return None
    pairs = (one.partition("=") for one in options)
    values = {name: int(value) if value.isdecimal() else value for name, _, value in pairs}
    return Cluster(cast(ClusterKind, kind), folder, jobs, values)


class _Job(Protocol):
    @property
    def job_id(self) -> str: ...

    def done(self) -> bool: ...

    def result(self) -> list[Numbers]: ...

    def cancel(self) -> None: ...


class _Executor(Protocol):
    def update_parameters(self, **parameters: str | int) -> None: ...

    def map_array(self, function: Callable[..., list[Numbers]], *shards: object) -> list[_Job]: ...


@dataclass(frozen=True)
class _Shard:
    """What one job does: its parts one after another, each kept as soon as it is done."""

    compute: Callable[[Mapping[str, object]], Mapping[str, float]]
    cache: Cache

    def __call__(self, parts: Sequence[Mapping[str, object]]) -> list[Numbers]:
        return [self.cache.get(part, lambda part=part: self.compute(part)) for part in parts]  # type: ignore[misc]


def computed_by_jobs(
    compute: Callable[[Mapping[str, object]], Mapping[str, float]],
    parts: Sequence[Mapping[str, object]],
    cache: Cache,
    cluster: Cluster,
    done: Callable[[int], None],
) -> list[Numbers]:
    """The numbers of all parts, in their order; see `labrig.studies.parts.computed`.

    Ctrl-C cancels the jobs; parts that ended are kept.

    Raises:
        MissingExtraError: submitit is not installed.
        ConfigError: It does not take the options.
        ClusterError: A job failed; the others go on to their end first, and their parts are kept.
    """
    found = {number: kept for number, part in enumerate(parts) if (kept := cache.kept(part)) is not None}
    missing = [number for number in range(len(parts)) if number not in found]
    if not missing:
        return [found[number] for number in range(len(parts))]
    shards = [missing[first :: cluster.jobs] for first in range(min(cluster.jobs, len(missing)))]
    executor = _executor(cluster)
    jobs = executor.map_array(_Shard(compute, cache), [[parts[number] for number in shard] for shard in shards])
    try:
        _wait(jobs, lambda: done(len(found) + sum(cache.has(parts[number]) for number in missing)))
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    failed = []
    for job, shard in zip(jobs, shards, strict=True):
        try:
            found.update(zip(shard, job.result(), strict=True))
        except Exception as error:  # whatever the job raised, as submitit tells it
            failed.append(f"job {job.job_id}: {_last_line(str(error))}")
    if failed:
        raise ClusterError(
            f"{len(failed)} of {len(jobs)} jobs failed, their logs are in {cluster.folder}; the same command goes on "
            "with the parts that are missing\n  " + "\n  ".join(failed)
        )
    done(len(parts))
    return [found[number] for number in range(len(parts))]


def _wait(jobs: Sequence[_Job], look: Callable[[], None]) -> None:
    while not all(job.done() for job in jobs):
        look()
        time.sleep(_LOOK_EVERY_S)


def _last_line(told: str) -> str:
    """Of what a job raised: submitit hands on its traceback between two rules, with advice behind the second."""
    lines = [line.strip() for line in told.partition("\n-----")[2].rpartition("\n-----")[0].splitlines()]
    return next((line for line in reversed(lines) if line), told.strip().splitlines()[0] if told.strip() else "lost")


def _executor(cluster: Cluster) -> _Executor:
    demand_extra("study --cluster", "cluster")
    import submitit

    cluster.folder.mkdir(parents=True, exist_ok=True)
    made = cast(_Executor, submitit.AutoExecutor(folder=cluster.folder, cluster=cluster.kind))
    try:
        made.update_parameters(**cluster.options)
    except (NameError, ValueError, TypeError) as error:
        # Behind the first line come names of Python's.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        given = ", ".join(f"{name}={value}" for name, value in cluster.options.items())
        raise ConfigError(f"--cluster-set {given}: submitit does not take these options: {reason}") from error
    return made
