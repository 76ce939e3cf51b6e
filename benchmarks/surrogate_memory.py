"""Peak memory of a training step and of an inference of the layers of `benchmarks.surrogates`, on the CPU.

Every allocation and release of torch's allocator is recorded by its profiler. A peak is told twice: what a call takes
over what stood before (results and gradients are a part of it, for the plain layer too), and with weights, bias and
inputs, which stand there all the time. The pool of noise, 4 MiB once for all layers of a process, is in neither.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.surrogate_layers import Problem, cases_of, layers_of, problems_of

MODULE = "benchmarks.surrogate_memory"
_MB = 1e6


@dataclass(frozen=True)
class Peak:
    """Peak memory of one case.

    Attributes:
        case: Its name in `benchmarks.surrogates`.
        standing_mb: Weights, bias and inputs in MB.
        call_mb: What a call takes at most beside them, in MB.
        call_ratio: Over that of the plain layer.
        whole_ratio: The same with what stands.
    """

    case: str
    standing_mb: float
    call_mb: float
    call_ratio: float
    whole_ratio: float


def peak_mb(call: Callable[[], object]) -> float:
    """Highest sum of what torch's allocator gave out less what it got back during the second call, in MB."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    assert recorded.profiler is not None
    events = [one for one in recorded.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest / _MB


def peaks(problem: Problem) -> list[Peak]:
    """Of every way to compute one layer, in training and in inference."""
    standing = [problem.x, *problem.layer.parameters()]
    standing_mb = sum(one.numel() * one.element_size() for one in standing) / _MB
    found: dict[str, Peak] = {}
    for case in cases_of(problem, layers_of(problem, compiled=False)):

        def call(run: Callable[[], object] = case.run) -> None:
            asyncio.run(run())  # type: ignore[arg-type]

        call_mb = peak_mb(call)
        plain_mb = call_mb if case.reference is None else found[case.reference].call_mb
        whole = (standing_mb + call_mb) / (standing_mb + plain_mb)
        found[case.name] = Peak(case.name, standing_mb, call_mb, call_mb / plain_mb, whole)
    return list(found.values())


def in_child(*, quick: bool) -> list[Peak]:
    """All peaks, measured in a process of its own: the profiler of some versions writes lines to the standard error."""
    command = [sys.executable, "-m", MODULE, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return [Peak(**one) for one in json.loads(done.stdout.splitlines()[-1])]


def table(found: list[Peak]) -> str:
    """The peaks as text."""
    lines = ["peak memory on the CPU: MB of a call, times the plain layer's, the same with weights and inputs"]
    lines += [f"  {one.case:48s} {one.call_mb:8.2f} {one.call_ratio:6.2f} {one.whole_ratio:6.2f}" for one in found]
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(json.dumps([asdict(one) for each in problems_of(quick="--quick" in sys.argv) for one in peaks(each)]))
