"""Parts of a study as jobs: local ones through submitit, with the same numbers, kept, and failures told."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import cloudpickle
import pytest

from labrig.studies.cache import Cache
from labrig.studies.cluster import Cluster, ClusterError, cluster_of
from labrig.studies.parts import computed
from labrig_drivers.errors import ConfigError

PARTS = [{"number": number} for number in range(5)]


def compute(part: Mapping[str, object]) -> dict[str, float]:
    number = part["number"]
    assert isinstance(number, int)
    if number == 13:
        raise ValueError("thirteen is unlucky")
    return {"square": float(number * number)}


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    """Jobs cannot import the tests."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def test_jobs_give_the_numbers_in_order_and_keep_them(tmp_path: Path) -> None:
    cluster, cache = Cluster("local", tmp_path / "jobs", 2, {"timeout_min": 2}), Cache(tmp_path / "parts")
    cache.keep(PARTS[3], {"square": -9.0})
    told: list[int] = []
    found = computed(compute, PARTS, cache, cluster, told.append)
    assert [one["square"] for one in found] == [0.0, 1.0, 4.0, -9.0, 16.0]  # the kept one was not computed again
    assert told == sorted(told)
    assert told[-1] == 5
    assert len([*(tmp_path / "parts").glob("*.json")]) == 5
    # All is kept now: no job is needed.
    assert computed(compute, PARTS, cache, Cluster("local", tmp_path / "none", 2), told.append) == found
    assert not (tmp_path / "none").exists()


def test_a_job_that_fails_is_named_and_the_others_parts_are_kept(tmp_path: Path) -> None:
    cluster, cache = Cluster("local", tmp_path / "jobs", 2, {"timeout_min": 2}), Cache(tmp_path / "parts")
    with pytest.raises(ClusterError, match=r"(?s)1 of 2 jobs failed, their logs are in .*thirteen is unlucky"):
        computed(compute, [{"number": 13}, {"number": 2}], cache, cluster, lambda _: None)
    assert cache.kept({"number": 2}) == {"square": 4.0}
    assert cache.kept({"number": 13}) is None


def test_what_is_wrong_is_said_before_a_job_starts(tmp_path: Path) -> None:
    assert cluster_of(None, tmp_path, 4, []) is None
    made = cluster_of("slurm", tmp_path, 4, ["timeout_min=240", "slurm_partition=gpu"])
    assert made == Cluster("slurm", tmp_path, 4, {"timeout_min": 240, "slurm_partition": "gpu"})
    with pytest.raises(ConfigError, match=r"(?s)timeout: write NAME=VALUE.*moon: is neither"):
        cluster_of("moon", tmp_path, 4, ["timeout"])
    with pytest.raises(ConfigError, match="no --cluster says where"):
        cluster_of(None, tmp_path, 4, ["timeout_min=1"])
    with pytest.raises(ConfigError, match="does not take these options"):
        computed(compute, PARTS, Cache(None), Cluster("local", tmp_path, 1, {"tea": "green"}), lambda _: None)
