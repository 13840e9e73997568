"""A stand-in for CuPy: the code for device "cuda" runs where there is no GPU, and tells what it does.

    with stand_in.installed(stand_in.Gpu(computing=False)) as gpu:
        x = mg.tensor(array, device="cuda")
        ...
        gpu.calls        # each launch, copy and array operation, with the bytes that it reads and writes

Inside, minigan finds this instead of CuPy: arrays that are not NumPy's, and minigan's own kernels, which the emulator
runs. An operation that it does not know raises, as does an array of NumPy where CuPy would refuse it. Without
`computing` arrays have shapes and addresses but no values, so that the published networks take seconds, and no memory:
their pages are never touched.

What one call stands for on a GPU. "kernel": a launch of kernels/*.cu. "array": an expression of CuPy on whole arrays (a
ufunc, a sum, a fill, a copy in device memory), a kernel of CuPy's; a sum may take two. "product": a call of cuBLAS,
which may take two kernels. "upload", "download": a copy between host and device; "download later": one that nobody
waits for. Bytes: each array of a call once, though a kernel may read it more often, and from caches.
"""

import ctypes
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from minigan.kernels import emulator

from minigan import backend, kernel_launch
from minigan.half import C_HALVES
from minigan.ops import matmul_cuda

ON_DEVICE = ("kernel", "array", "product")
BF16_NAN = 0x7FFF
ADAM_READS, ADAM_WRITES = 4, 3  # w, g, m, v; and all but g


@dataclass(frozen=True)
class Call:
    kind: str
    name: str
    read: int
    written: int

    @property
    def bytes(self) -> int:
        return self.read + self.written


def _moved(host: np.ndarray) -> int:
    """The bytes of an array in memory: what is broadcast is there once."""
    lengths = (n for n, stride in zip(host.shape, host.strides, strict=True) if stride)
    return int(np.prod(list(lengths), dtype=np.int64)) * host.itemsize if host.size else 0


def refuse_halves(name: str, arrays: Sequence[Any]) -> None:
    """What a GPU keeps in 16 bits, minigan's kernels read. To CuPy, bf16's bits would be integers."""
    for one in arrays:
        if isinstance(one, ndarray) and one.dtype in C_HALVES:
            raise TypeError(f"{name}: an array of {one.dtype}, which only kernels read; take Tensor.data")


@dataclass
class Gpu:
    """What the stand-in does: whether it computes, and all that it was asked to do."""

    computing: bool = True
    architecture: str = "90"
    calls: list[Call] = field(default_factory=list)
    pool: "Pool" = field(default_factory=lambda: Pool())
    captured: list[tuple[Call, Callable[[], Any]]] | None = None
    under_way: list[Callable[[], Any]] = field(default_factory=list)  # copies to the host that nobody waited for yet

    def empty(self, shape: Any, dtype: Any = np.float64) -> "ndarray":
        """Full of NaN, in a replay as well, so that what is read before it is written is seen."""
        y = self.pool.empty(shape, np.dtype(dtype))
        y.gpu = self
        if y.dtype.kind == "f" or y.dtype in C_HALVES:
            poison = np.array(np.nan if y.dtype.kind == "f" else BF16_NAN, y.dtype)
            self.now(Call("poison", "poison", 0, 0), partial(y.host.fill, poison), noted=False)
        return y

    def now(self, call: Call, work: Callable[[], Any], noted: bool = True) -> None:
        """Does the work, or, in a capture, keeps it for the graph."""
        if self.captured is not None:
            if call.kind in ("upload", "download"):
                raise CaptureUnsupported(f"cudaErrorStreamCaptureUnsupported: {call.kind}")
            self.captured.append((call, work))
            return
        if noted:
            self.calls.append(call)
        if self.computing:
            work()

    def do(self, kind: str, name: str, read: Sequence[Any], written: Sequence[Any], work: Callable[[], Any]) -> None:
        """One call. read, written: the stand-in's arrays; others cost nothing."""
        sizes = [sum(_moved(a.host) for a in arrays if isinstance(a, ndarray)) for arrays in (read, written)]
        self.now(Call(kind, name, *sizes), work)

    def array(self, name: str, shape: Any, dtype: Any, read: Sequence[Any], work: Callable[..., Any]) -> "ndarray":
        """A new array, made by work(its memory, memory of those read ...)."""
        y = self.empty(shape, dtype)
        hosts = [a.host if isinstance(a, ndarray) else a for a in read]
        if name != "copy":
            refuse_halves(name, read)
        self.do("array", name, read, [y], partial(work, y.host, *hosts))
        return y

    def launch(self, source: Any, variant: Any, kernel: str, grid: Any, block: Any, values: Any, shared: int) -> None:
        """As kernel_launch._launch_cuda; what is read and written stands in the kernel's signature."""
        pairs = list(zip(source.kernel(kernel).parameters, values, strict=True))
        arrays = [v.host if isinstance(v, ndarray) else None if p.pointer else v for p, v in pairs]
        read = [v for p, v in pairs if p.pointer and p.const]
        written = [v for p, v in pairs if p.pointer and not p.const]
        name = f"{source.path.name}: {kernel}"

        def work() -> None:
            emulator.launch(source, variant, kernel, grid, block, arrays, shared)

        if kernel == "adam":  # its arrays stand in a table
            itemsize = 8 if dict(variant.macros)["REAL"] == "double" else 4
            size = int(values[0]["size"].sum()) * itemsize
            self.now(Call("kernel", name, ADAM_READS * size, ADAM_WRITES * size), work)
        else:
            self.do("kernel", name, read, written, work)

    def count(self, *kinds: str) -> int:
        return sum(call.kind in kinds for call in self.calls)

    @property
    def moved(self) -> int:
        """Bytes that kernels read and write."""
        return sum(call.bytes for call in self.calls if call.kind in ON_DEVICE)


class CaptureUnsupported(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError, for what would wait in a capture."""


class Event:
    """Copies to the host that were asked for before it was recorded have come when it was waited for, not earlier."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def record(self) -> None:
        self.copies, self.gpu.under_way = self.gpu.under_way, []

    def synchronize(self) -> None:
        while self.copies:
            self.copies.pop(0)()


class Stream(nullcontext):  # type: ignore[type-arg]
    """A stream on which a graph can be captured; there is one order of work here, whatever the stream."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__(self)
        self.gpu = gpu

    def synchronize(self) -> None:
        """All work is done as soon as it is asked for."""

    ptr = 0

    def begin_capture(self) -> None:
        self.gpu.captured = []

    def is_capturing(self) -> bool:
        return self.gpu.captured is not None

    def end_capture(self) -> "Graph":
        graph, self.gpu.captured = Graph(self.gpu, self.gpu.captured or []), None
        return graph


@dataclass
class Graph:
    """What was captured, in order: the same work on the same memory at each launch."""

    gpu: Gpu
    captured: list[tuple[Call, Callable[[], Any]]]

    def launch(self, stream: Stream) -> None:
        calls = [call for call, _ in self.captured]
        self.gpu.now(Call("graph", "launch", sum(c.read for c in calls), sum(c.written for c in calls)), self._run)

    def _run(self) -> None:
        for _, work in self.captured:
            work()


class Cublas:
    """The two functions of the library that minigan calls by itself: matrices are one column after another."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def cublasSetStream_v2(self, handle: int, stream: int) -> int:
        self.stream = stream
        return 0

    def cublasGemmEx(
        self, _: int, turn_a: int, turn_b: int, m: int, n: int, k: int, alpha: Any, a: int, kind: int, lead_a: int,
        b: int, kind_b: int, lead_b: int, beta: Any, c: int, kind_c: int, lead_c: int, compute: int, algorithm: int,
    ) -> int:  # fmt: skip
        dtype = {(0, 68): np.dtype(np.float32), (1, 70): np.dtype(np.float64)}[kind, compute]
        assert (kind_b, kind_c, algorithm, self.stream) == (kind, kind, -1, Stream.ptr)

        def matrix(address: int, rows: int, columns: int, lead: int) -> np.ndarray:
            assert lead >= rows
            memory = (ctypes.c_char * ((lead * (columns - 1) + rows) * dtype.itemsize)).from_address(address)
            steps = dtype.itemsize, lead * dtype.itemsize
            return np.ndarray((rows, columns), dtype, memory, strides=steps)

        first = matrix(a, *((k, m) if turn_a else (m, k)), lead_a)
        second = matrix(b, *((n, k) if turn_b else (k, n)), lead_b)
        first, second = (first.T if turn_a else first), (second.T if turn_b else second)
        y = matrix(c, m, n, lead_c)
        read, written = (m * k + k * n) * dtype.itemsize, m * n * dtype.itemsize
        # In this order NumPy's BLAS is asked for what `@` asks for, and gives the same bits.
        work = partial(np.matmul, second.T, first.T, out=y.T)
        self.gpu.now(Call("product", "matmul", read, written), work)
        return 0


class Pool:
    """Blocks of memory that were given back are handed out again, the last one first, as CuPy's pool does."""

    def __init__(self) -> None:
        self.malloc = self  # what is handed to `using_allocator`
        self.free: dict[int, list[np.ndarray]] = {}

    def empty(self, shape: Any, dtype: np.dtype) -> "ndarray":
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        rounded = -(-max(size, 1) // 512) * 512
        blocks = self.free.setdefault(rounded, [])
        block = blocks.pop() if blocks else np.empty(rounded, np.uint8)
        y = ndarray(None, block[:size].view(dtype).reshape(shape))  # type: ignore[arg-type]  # the caller says which
        weakref.finalize(y, blocks.append, block).atexit = False
        return y


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array "on the GPU". `host` is its memory, of which only this module knows."""

    def __init__(self, gpu: Gpu, host: np.ndarray, base: "ndarray | None" = None) -> None:
        self.gpu, self.host, self.base = gpu, host, base
        self.shape, self.dtype, self.size, self.ndim = host.shape, host.dtype, host.size, host.ndim
        self.nbytes, self.itemsize, self.strides, self.flags = host.nbytes, host.itemsize, host.strides, host.flags
        self.data = SimpleNamespace(ptr=host.ctypes.data)
        self.device = SimpleNamespace(id=0)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "version": 3}

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed; CuPy refuses it, too")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **settings: Any) -> Any:
        if method != "__call__" or settings:
            raise NotImplementedError(f"{ufunc.__name__}.{method} with {settings}")
        for one in inputs:
            if isinstance(one, np.ndarray):
                raise TypeError(f"{ufunc.__name__}: unsupported type numpy.ndarray; CuPy refuses it, too")
        refuse_halves(ufunc.__name__, inputs)
        hosts = [one.host if isinstance(one, ndarray) else one for one in inputs]
        sample = [np.ones((1, 1), h.dtype) if isinstance(h, np.ndarray) else h for h in hosts]
        dtype = ufunc(*sample).dtype
        kind = "product" if ufunc is np.matmul else "array"
        if kind == "product":
            if self.gpu.captured is not None:
                raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
            a, b = hosts
            shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        else:
            shape = np.broadcast_shapes(*(h.shape for h in hosts if isinstance(h, np.ndarray)))
        y = self.gpu.empty(shape, dtype) if out is None else out[0]
        work = partial(ufunc, *hosts, out=y.host, casting="same_kind")
        self.gpu.do(kind, ufunc.__name__, inputs, [y], work)
        return y

    def _view(self, host: np.ndarray) -> "ndarray":
        return ndarray(self.gpu, host, self if self.base is None else self.base)

    def reshape(self, *shape: Any) -> "ndarray":
        flat = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        if self.flags.c_contiguous:
            return self._view(self.host.reshape(flat))
        return self.copy().reshape(flat)  # CuPy, too, sometimes finds a view; then this counts a copy too many

    def transpose(self, *axes: Any) -> "ndarray":
        return self._view(self.host.transpose(*axes))

    def __getitem__(self, index: Any) -> "ndarray":
        parts = index if isinstance(index, tuple) else (index,)
        if not all(one is None or one is ... or isinstance(one, (int, slice)) for one in parts):
            raise NotImplementedError(f"index {index!r}: expected integers and slices")
        open_ended = parts if any(one is ... for one in parts) else (*parts, ...)
        return self._view(self.host[open_ended])  # with "..." even one element is a view

    def __setitem__(self, index: Any, value: Any) -> None:
        part = self if index is ... else self[index]
        source = value.host if isinstance(value, ndarray) else value
        refuse_halves("copy", [value, part])
        self.gpu.do("array", "copy", [value], [part], partial(np.copyto, part.host, source))

    def view(self, dtype: Any) -> "ndarray":
        return self._view(self.host.view(dtype))

    def copy(self, order: str = "C") -> "ndarray":
        return self.gpu.array("copy", self.shape, self.dtype, [self], np.copyto)

    def __deepcopy__(self, memo: Any) -> "ndarray":
        return self.copy()

    def astype(self, dtype: Any, copy: bool = True) -> "ndarray":
        if self.dtype == dtype and not copy:
            return self
        return self.gpu.array("astype", self.shape, dtype, [self], lambda y, x: np.copyto(y, x, casting="unsafe"))

    def all(self) -> "ndarray":
        return self.gpu.array("all", (), np.bool_, [self], lambda y, x: np.all(x, out=y))

    def sum(self, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> "ndarray":
        axes = range(self.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        reduced = {a % self.ndim for a in axes} if self.ndim else set()
        shape = [1 if i in reduced else n for i, n in enumerate(self.shape) if keepdims or i not in reduced]
        return self.gpu.array(
            "sum", shape, dtype or self.dtype, [self], lambda y, x: x.sum(axis, keepdims=keepdims, out=y)
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __float__(self) -> float:
        return float(self.gpu_to_host().reshape(()))

    def __bool__(self) -> bool:
        return bool(self.gpu_to_host().reshape(()))

    def gpu_to_host(self) -> np.ndarray:
        """A copy; it waits until the GPU has done all its work."""
        refuse_halves("download", [self])
        found = np.zeros(self.shape, self.dtype)
        self.gpu.do("download", "download", [self], [], partial(np.copyto, found, self.host))
        return found

    def gpu_to_host_later(self, out: np.ndarray) -> None:
        """A copy to pinned memory of what is there now."""
        now = np.zeros(self.shape, self.dtype)
        self.gpu.do("download later", "download", [self], [], partial(np.copyto, now, self.host))
        out.fill(np.nan)
        self.gpu.under_way.append(partial(np.copyto, out, now))

    # CuPy's arrays are compared by identity only where Python has to hash them, which minigan does not.
    __hash__ = None  # type: ignore[assignment]


class Module:
    """The functions of `cupy` that minigan calls."""

    float32, float64, int64, uint64 = np.float32, np.float64, np.int64, np.uint64
    ndarray = ndarray
    exp, log, sqrt, abs, sign, tanh = np.exp, np.log, np.sqrt, np.abs, np.sign, np.tanh

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.empty = gpu, gpu.empty

        class Device(nullcontext):  # type: ignore[type-arg]
            compute_capability = gpu.architecture

            def __init__(self, index: int = 0) -> None:
                super().__init__(self)
                self.id = index

        @contextmanager
        def using_allocator(pool: Pool) -> Iterator[None]:
            before, gpu.pool = gpu.pool, pool
            try:
                yield
            finally:
                gpu.pool = before

        runtime = SimpleNamespace(getDeviceCount=lambda: 1, deviceSynchronize=lambda: None)
        memory = SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (MemoryError,), {}))
        self.cuda = SimpleNamespace(Device=Device, runtime=runtime, memory=memory, is_available=lambda: True)
        self.cuda.Event = lambda disable_timing=False: Event(gpu)
        self.cuda.alloc_pinned_memory = bytearray
        self.cuda.device = SimpleNamespace(get_cublas_handle=lambda: 0)
        self.cuda.get_current_stream = partial(Stream, gpu)
        self.cuda.Stream, self.cuda.MemoryPool, self.cuda.using_allocator = partial(Stream, gpu), Pool, using_allocator

    def full(self, shape: Any, value: Any, dtype: Any = None) -> ndarray:
        return self.gpu.array("fill", shape, dtype or np.asarray(value).dtype, [], lambda y: y.fill(value))

    def zeros(self, shape: Any, dtype: Any = np.float64) -> ndarray:
        return self.full(shape, 0, dtype)

    def ones(self, shape: Any, dtype: Any = np.float64) -> ndarray:
        return self.full(shape, 1, dtype)

    def asarray(self, a: Any, dtype: Any = None, order: str | None = None) -> ndarray:
        if isinstance(a, ndarray):
            if (dtype is None or a.dtype == dtype) and (order is None or a.flags.c_contiguous):
                return a
            return a.astype(dtype or a.dtype)
        host = np.asarray(a, dtype)
        y = self.gpu.empty(host.shape, host.dtype)
        self.gpu.do("upload", "upload", [], [y], lambda: None)
        y.host[...] = host  # in any case: Adam's table says how much it moves
        return y

    def ascontiguousarray(self, a: ndarray) -> ndarray:
        return self.asarray(a, order="C")

    def asnumpy(self, a: ndarray, out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
        if blocking:
            return a.gpu_to_host()
        if out is None:
            raise NotImplementedError("expected memory to copy to")
        a.gpu_to_host_later(out)
        return out

    def broadcast_to(self, x: ndarray, shape: Any) -> ndarray:
        return x._view(np.broadcast_to(x.host, shape))

    def isfinite(self, x: ndarray) -> ndarray:
        return np.isfinite(x)

    def where(self, condition: Any, a: Any, b: Any) -> ndarray:
        given = [condition, a, b]
        hosts = [one.host if isinstance(one, ndarray) else one for one in given]
        dtype = np.where(*(np.ones(1, h.dtype) if isinstance(h, np.ndarray) else h for h in hosts)).dtype
        shape = np.broadcast_shapes(*(np.shape(h) for h in hosts))
        return self.gpu.array("where", shape, dtype, given, lambda y, *xs: np.copyto(y, np.where(*xs)))

    def clip(self, x: ndarray, low: float, high: float) -> ndarray:
        return self.gpu.array("clip", x.shape, x.dtype, [x], lambda y, x: np.clip(x, low, high, out=y))

    def stack(self, arrays: Sequence[ndarray]) -> ndarray:
        shape = len(arrays), *arrays[0].shape
        return self.gpu.array("stack", shape, arrays[0].dtype, arrays, lambda y, *xs: np.stack(xs, out=y))

    def concatenate(self, arrays: Sequence[ndarray], axis: int = 0) -> ndarray:
        shape = list(arrays[0].shape)
        shape[axis] = sum(a.shape[axis] for a in arrays)
        return self.gpu.array(
            "concatenate", shape, arrays[0].dtype, arrays, lambda y, *xs: np.concatenate(xs, axis, out=y)
        )


@contextmanager
def installed(gpu: Gpu) -> Iterator[Gpu]:
    """Inside, device "cuda" is this one."""
    module = Module(gpu)

    def launch(*given: Any) -> None:
        source, variant, kernel, grid, block, values, shared, _, _ = given
        gpu.launch(source, variant, kernel, grid, block, values, shared)

    with (
        mock.patch.object(backend, "cupy", return_value=module),
        mock.patch.object(backend, "cuda_problem", return_value=None),
        mock.patch.object(kernel_launch, "_cupy", return_value=module),
        mock.patch.object(kernel_launch, "_launch_cuda", launch),
        mock.patch.object(matmul_cuda, "_library", return_value=Cublas(gpu)),
    ):
        yield gpu
