"""One measurement on several processes: which process computes which unit of work, and how results are gathered.

Under ``torchrun`` every process runs the same program on the same model and options. Units are distributed by number,
each computed as it would be in one process, and gathered once, at the end. Nothing is summed across processes, so
the result is the same bit for bit for any number of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isometry.errors import InputError
from isometry.jacobian import JacobianOperator

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that share a measurement, and the place of this one among them.

    Parameters
    ----------
    rank : int
        Number of this process.
    size : int
        Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes for all of them."""
        return self.rank == 0

    def share(self, units: Sequence[Unit]) -> list[Unit]:
        """The units of this process: every ``size``-th, so that shares differ by one at most."""
        return list(units[self.rank :: self.size])

    def gather(self, mine: list[Unit]) -> list[Unit]:
        """The units of all processes, on every process. Each has to call it, with a list, empty or not."""
        if self.size == 1:
            return mine
        found: list[list[Unit]] = [[] for _ in range(self.size)]
        dist.all_gather_object(found, mine)
        return [unit for part in found for unit in part]


SINGLE_PROCESS = ProcessGroup()

# Units are small enough for several processes and large enough for products of some vectors at once. They are the same
# for any number of processes: a product of more vectors sums in another order.
SHARED_PROBES, SHARED_INPUTS = 4, 8


def started_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or something that sets the same variables, started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys()


def current_process_group() -> ProcessGroup:
    """The initialised process group, or this process alone."""
    if dist.is_available() and dist.is_initialized():
        return ProcessGroup(dist.get_rank(), dist.get_world_size())
    return SINGLE_PROCESS


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The process group that torchrun asks for, joined for as long as the block lasts; this process alone without it.

    Gloo on processors, with NCCL beside it where there are CUDA devices, one for each process on a machine. One torch
    thread for each process, whatever their number, unless OMP_NUM_THREADS says otherwise: results repeat bit for bit
    only with the same number of threads.
    """
    if not started_by_torchrun() or dist.is_initialized():
        yield current_process_group()
        return
    # torchrun sets the variable itself where it starts several processes, and not where it starts one.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield current_process_group()
    finally:
        dist.destroy_process_group()


def fingerprint(operator: JacobianOperator) -> str:
    """A digest of the inputs and of the model's numbers, or of what a plain function makes of the inputs."""
    digest, model = hashlib.sha256(), operator.model
    if isinstance(model, nn.Module):
        numbers = list(model.state_dict().values())
    else:
        numbers = [operator.matmat(torch.ones_like(operator.point)[None])]
    digest.update(repr((list(operator.inputs.tensors()), operator.inputs.wrt)).encode())
    for tensor in (*operator.inputs.tensors().values(), *numbers):
        if isinstance(tensor, Tensor):
            # As bytes, which every type and NaN has.
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_differences(group: ProcessGroup, mine: str) -> None:
    """Raise on every process where they are not about to measure the same thing."""
    if len(set(group.gather([mine]))) > 1:
        raise InputError(
            "the processes hold different models or inputs, so their parts are of no one Jacobian: seed them alike, or "
            "load the same weights and input in each"
        )
