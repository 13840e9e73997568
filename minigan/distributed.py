"""Data-parallel training: many processes, the ranks, with the same weights, and a share of each batch for each of them.

    mpiexec -n 4 python -m mpi4py examples/dcgan_cats.py

All ranks do the same, on different images. While a backward pass still runs, the gradients that are known already are
averaged over the ranks, in buckets of some megabytes; so every rank's optimizer makes the same step. Sums of NumPy
arrays are MPI's, by mpi4py (the extra `mpi`), sums of CuPy arrays NCCL's (the extra `nccl12` or `nccl13`), whose ranks
meet over MPI. A program that no MPI launcher started is a world of one rank, and imports none of that.

Li et al., "PyTorch distributed: experiences on accelerating data parallel training", 2020.
"""

import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any, NoReturn, TypeVar

import numpy as np

from minigan import backend
from minigan.backend import Array, DeviceError
from minigan.tensor import GraphError, Tensor

Anything = TypeVar("Anything")

# What MPI launchers set: MPICH and all with its PMI (srun too), Open MPI, and those with PMIx.
LAUNCHED = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
BUCKET_BYTES = 4 << 20


class LaunchError(RuntimeError):
    """Ranks that cannot work together: a library is missing, or the launcher belongs to another one."""


class World:
    """The ranks of this program, of which this process is one.

    rank: 0 ... size - 1; rank 0 alone writes. local_rank: the same, counted on this machine only. threads: how many
    this rank computes with. weight: this rank's share of each batch, by which its means count in those over all ranks.
    """

    def __init__(self, comm: Any = None) -> None:
        """comm: mpi4py's communicator; None: a world of one rank, without MPI."""
        self.comm = comm
        self.rank: int = 0 if comm is None else comm.rank
        self.size: int = 1 if comm is None else comm.size
        self.local_rank, self.machines = 0, 1
        self.weight = 1 / self.size
        self.processes: list[tuple[str, int]] = []
        if comm is not None:
            self._look_around(comm)

    def _look_around(self, comm: Any) -> None:
        from mpi4py import MPI

        self.machine: str = MPI.Get_processor_name()
        cores = sorted(os.sched_getaffinity(0))
        self.processes = comm.allgather((self.machine, os.getpid()))
        self.machines = len({machine for machine, _ in self.processes})
        self.local_rank = sum(machine == self.machine for machine, _ in self.processes[: self.rank])
        # A launcher that binds each rank to cores of its own has divided them already.
        sharing = comm.allgather((self.machine, cores)).count((self.machine, cores))
        self.cores = len(cores)
        self.threads = os.environ.get("MINIGAN_NUM_THREADS") or str(max(1, len(cores) // sharing))
        os.environ["MINIGAN_NUM_THREADS"] = self.threads

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def __str__(self) -> str:
        if self.comm is None:
            return "ranks: 1, without MPI"
        machines = f" on {self.machines} machines" if self.machines > 1 else ""
        threads = "1 thread" if self.threads == "1" else f"{self.threads} threads"
        names = ", ".join(f"rank {i} is process {pid} on {name}" for i, (name, pid) in enumerate(self.processes))
        return (
            f"ranks: {self.size}{machines}, with {threads} each, of {self.cores} cores (MINIGAN_NUM_THREADS sets it); "
            f"{names}"
        )

    def device(self, device: str) -> str:
        """The device of this rank, where all said the same: of "cuda", each rank of a machine has a GPU of its own.

        Launchers that show each rank one GPU only have chosen it already; NCCL refuses two ranks on one.
        """
        if device != "cuda" or self.size == 1:
            return device
        return backend.resolve_device(f"cuda:{self.local_rank % backend.cupy().cuda.runtime.getDeviceCount()}")

    def share(self, batch_size: int) -> slice:
        """This rank's rows of each batch of so many; sets `weight`. Shares differ by one where it does not divide."""
        if batch_size < self.size:
            raise ValueError(f"expected at least an image a rank, got {batch_size} for {self.size} ranks")
        rows = slice(batch_size * self.rank // self.size, batch_size * (self.rank + 1) // self.size)
        self.weight = (rows.stop - rows.start) / batch_size
        return rows

    # ---- sums over the ranks; every rank has to call for the same ones, in the same order ----

    def start(self, array: Array) -> Callable[[], None]:
        """Begins to put the sum over all ranks in the place of a contiguous array.

        What it returns waits for the end, and may be called again.
        """
        if self.comm is None:
            return lambda: None
        return (self._mpi if isinstance(array, np.ndarray) else self._nccl).start(array)

    def progress(self) -> None:
        """Lets the sums that were started go on. MPI does so only while it is called; NCCL by itself."""
        if self.comm is not None:
            self._mpi.progress()

    def mean(self, array: Array) -> Array:
        """The mean over all ranks, each with its weight; a new array, of the same dtype."""
        if self.comm is None:
            return array
        total = array * array.dtype.type(self.weight)
        total = np.asarray(total) if isinstance(array, np.ndarray) else total  # NumPy makes numbers of () arrays
        self.start(total)()
        return total

    def means(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """The means of numbers, for the log; a GPU has to be waited for."""
        here = np.array([float(value) for value in values.values()])
        return dict(zip(values, self.mean(here).tolist(), strict=True))

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers, on all of them."""
        if self.comm is None:
            return number
        from mpi4py import MPI

        return int(self.comm.allreduce(number, MPI.MAX))

    def from_first(self, value: Anything) -> Anything:
        """What rank 0 has there, on all ranks."""
        if self.comm is None:
            return value
        self._meet()
        return self.comm.bcast(value)

    def in_turn(self, make: Callable[[], Anything]) -> Anything:
        """make(), first by one rank of each machine, so that the others find what it left in a cache."""
        made = [make()] if self.local_rank == 0 else []
        self._meet()
        return made[0] if made else make()

    def _meet(self) -> None:
        """Waits for all ranks, asleep: MPI itself would keep the core busy that the others compute with."""
        if self.comm is not None:
            request = self.comm.Ibarrier()
            while not request.Test():
                time.sleep(0.01)

    def expect_same(self, what: str, value: str) -> None:
        """Raises RuntimeError, on all ranks, unless the value is the same on all of them."""
        found = [value] if self.comm is None else self.comm.allgather(value)
        wrong = [rank for rank, other in enumerate(found) if other != found[0]]
        if wrong:
            raise RuntimeError(
                f"{what} of rank {' and '.join(map(str, wrong))} differ from those of rank 0; all have to be the same. "
                "Every rank has to compute, and draw random numbers, by the same code"
            )

    @cached_property
    def _mpi(self) -> "_MpiSums":
        return _MpiSums(self.comm)

    @cached_property
    def _nccl(self) -> "_NcclSums":
        return _NcclSums(self.comm, backend.cupy().cuda, backend.nccl())

    # ---- the end ----

    def exit(self, code: int, text: str) -> NoReturn:
        """Says why on stderr, and ends the program with the exit code: all ranks of it, wherever they are."""
        if self.comm is None:
            print(text, file=sys.stderr)
            raise SystemExit(code)
        if not self.is_first:
            time.sleep(1)  # a mistake that all ranks make is told by the first, which then ends the others
        sys.stdout.flush()
        print(f"rank {self.rank} of {self.size} (process {os.getpid()} on {self.machine}): {text}", file=sys.stderr)
        sys.stderr.flush()
        time.sleep(0.5)  # or the launcher may end before it has passed that on
        self.comm.Abort(code)
        raise SystemExit(code)

    def close(self) -> None:
        """Leaves MPI, when all ranks do: their exit codes then are their own affair."""
        if self.comm is not None:
            from mpi4py import MPI

            MPI.Finalize()


@cache
def world() -> World:
    """The world that this process is part of: one of many ranks where an MPI launcher started it, else of one."""
    if not any(name in os.environ for name in LAUNCHED):
        return World()
    if importlib.util.find_spec("mpi4py") is None:
        raise LaunchError("started by an MPI launcher, but mpi4py is not installed: pip install 'minigan[mpi]'")
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    expected = next((int(os.environ[name]) for name in SIZES if name in os.environ), comm.size)
    if comm.size != expected:
        raise LaunchError(
            f"the launcher started {expected} ranks, but mpi4py sees {comm.size}: expected the launcher of the MPI "
            f"that mpi4py uses, {MPI.Get_library_version().splitlines()[0]}; with the extra `mpi` it is the mpiexec "
            "beside python"
        )
    found = World(comm)
    # Or the other ranks would wait for one that is no more.
    sys.excepthook = lambda kind, error, trace: found.exit(
        130 if kind is KeyboardInterrupt else 1, "".join(traceback.format_exception(kind, error, trace))
    )
    return found


class _MpiSums:
    """Sums of NumPy arrays."""

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self.mpi, self.comm = MPI, comm
        self.requests: list[Any] = []

    def start(self, array: np.ndarray) -> Callable[[], None]:
        request = self.comm.Iallreduce(self.mpi.IN_PLACE, array)
        self.requests.append(request)

        def wait() -> None:
            request.Wait()
            self.requests = [r for r in self.requests if r is not request]

        return wait

    def progress(self) -> None:
        if self.requests:
            self.mpi.Request.Testall(self.requests)


class _NcclSums:
    """Sums of CuPy arrays, on a stream of their own beside the one that computes; the host waits for nothing."""

    def __init__(self, comm: Any, cuda: Any, nccl: Any) -> None:
        self.cuda, self.nccl = cuda, nccl
        if not nccl.available:
            raise DeviceError(
                "ranks on GPUs need NCCL: pip install 'minigan[nccl12]' or, for CUDA 13, 'minigan[nccl13]'"
            )
        name = comm.bcast(nccl.get_unique_id() if comm.rank == 0 else None)
        self.communicator = nccl.NcclCommunicator(comm.size, name, comm.rank)
        self.stream = self.cuda.Stream(non_blocking=True)

    def start(self, array: Array) -> Callable[[], None]:
        nccl = self.nccl
        kind = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}[str(array.dtype)]
        self.stream.wait_event(self.cuda.get_current_stream().record())  # until the array is computed
        place = array.data.ptr
        self.communicator.allReduce(place, place, array.size, kind, nccl.NCCL_SUM, self.stream.ptr)
        done = self.stream.record()
        return lambda: self.cuda.get_current_stream().wait_event(done)


class GradientMeans:
    """The `reducer` of parameters: their gradients become means over all ranks, each with its weight.

    Gradients are copied into flat buckets in the order in which a backward pass finds them, the same on all ranks; a
    full bucket is sent while the pass goes on. One gradient may be larger: it is sent in pieces of a bucket's size.
    """

    def __init__(self, world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.world, self.bucket_bytes = world, bucket_bytes
        self._waiting: list[tuple[Tensor, Tensor]] = []
        # By the id of a parameter: its part of a bucket, and what waits for that bucket's sum.
        self._sent: dict[int, tuple[Array, Callable[[], None]]] = {}

    def start(self, leaf: Tensor, gradient: Tensor) -> None:
        if gradient.requires_grad:
            raise GraphError(
                "backward: with create_graph, on several ranks, expected no parameters: the mean over the ranks is not "
                "part of the graph; take the inner gradient by grad(..., create_graph=True)"
            )
        if self._waiting and self._waiting[0][1].dtype != gradient.dtype:
            self._send()
        self._waiting.append((leaf, gradient))
        if sum(g.data.nbytes for _, g in self._waiting) >= self.bucket_bytes:
            self._send()
        else:
            self.world.progress()

    def result(self, leaf: Tensor, gradient: Tensor) -> Tensor:
        if id(leaf) not in self._sent and not any(leaf is other for other, _ in self._waiting):
            self.start(leaf, gradient)
        if self._waiting:
            self._send()
        part, wait = self._sent.pop(id(leaf))
        wait()
        return Tensor(part, device=leaf.device)

    def _send(self) -> None:
        leaves, self._waiting = self._waiting, []
        device, dtype = leaves[0][1].device, leaves[0][1].dtype
        with backend.on_device(device):
            xp = backend.array_module(device)
            flat = xp.empty(sum(g.size for _, g in leaves), dtype)
            parts, first = [], 0
            for _, g in leaves:
                parts.append(flat[first : first + g.size].reshape(g.shape))
                xp.multiply(g.data, dtype.type(self.world.weight), out=parts[-1])
                first += g.size
            piece = max(1, self.bucket_bytes // dtype.itemsize)
            waits = [self.world.start(flat[i : i + piece]) for i in range(0, flat.size, piece)]

        def wait() -> None:
            for one in waits:
                one()

        self._sent |= {id(leaf): (part, wait) for (leaf, _), part in zip(leaves, parts, strict=True)}
