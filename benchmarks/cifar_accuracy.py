"""How long the airbench-class network takes to a validation accuracy, on this machine: seconds, and images seen.

    python -m benchmarks.cifar_accuracy --data cifar-10-batches-bin

Needs CIFAR-10 in its binary version. Each epoch's accuracy is on 5,000 training images that were held out; the time
is that of the training alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.machine import Machine
from labrig.images.registry import read_images
from labrig.studies.vision.chips import accuracy
from labrig.studies.vision.images import ImageTask
from labrig.studies.vision.training import DigitalJob, train_digital


def main() -> None:
    """Trains the digital network once and prints a line for each epoch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cifar_accuracy", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10, binary version")
    parser.add_argument("--network", default="airbench", help="which network")
    parser.add_argument("--epochs", type=int, default=8, help="length of the training")
    parser.add_argument("--goal", type=float, default=90.0, help="validation accuracy in %%")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = ImageTask.of(read_images("cifar10", options.data), torch.device("cpu"))
    job = DigitalJob(options.network, task.name, seed=0, epochs=options.epochs)
    steps, begun_s, aside_s = len(task.train) // job.batch, time.perf_counter(), 0.0

    def on_epoch(epoch: int, network: nn.Module) -> None:
        nonlocal aside_s
        look_s = time.perf_counter()
        taken_s = look_s - begun_s - aside_s
        found = accuracy(network.eval(), task, task.validation)
        network.train()
        aside_s += time.perf_counter() - look_s
        reached = " reached" if found >= options.goal else ""
        rate = epoch * steps * job.batch / taken_s
        print(f"epoch {epoch}: {found:.2f} % after {taken_s:.0f} s, {rate:.0f} images/s{reached}")

    print(Machine.read(("torch",)))
    with tempfile.TemporaryDirectory() as folder:
        train_digital(job, task, Path(folder) / "epoch", lambda *_: None, on_epoch)


if __name__ == "__main__":
    main()
