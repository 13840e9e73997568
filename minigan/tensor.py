"""Tensors, differentiable operations, and reverse-mode differentiation over the graph that they leave behind.

Calling an `Op` computes its result and, if an input requires a gradient, remembers itself as the result's maker: the
graph is nothing but tensors that know their op and ops that know their inputs. Going through the ops from the last to
the first, each one's `backward` turns the gradient of its output into gradients of its inputs (Baydin et al.,
"Automatic differentiation in machine learning: a survey", JMLR 2018). A `backward` is itself written with ops, so a
gradient is as differentiable as anything else: second derivatives need no further code.
"""

import itertools
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Union

import numpy as np

from minigan import debugging
from minigan.backend import (
    Array,
    DeviceError,
    array_module,
    is_cuda,
    on_device,
    resolve_device,
    to_device,
    to_numpy,
)
from minigan.half import real_dtype, widened

FLOATS = (np.dtype("float32"), np.dtype("float64"))

Operand = Union["Tensor", float, Array]


class GraphError(RuntimeError):
    """A backward pass that the graph does not allow: freed, changed in place, not connected, or without a gradient."""


# ---- whether the graph is being recorded ---------------------------------------------------------------------------


class _Recording(threading.local):
    on = True


_recording = _Recording()


def is_grad_enabled() -> bool:
    """Whether this thread's operations are recorded for differentiation."""
    return _recording.on


@contextmanager
def set_grad_enabled(on: bool) -> Iterator[None]:
    """Records operations, or does not, inside a `with` block; nests, and holds for this thread only."""
    before, _recording.on = _recording.on, on
    try:
        yield
    finally:
        _recording.on = before


def no_grad() -> Any:
    """`with no_grad():` computes without recording: no gradients, and nothing kept for them."""
    return set_grad_enabled(False)


# ---- tensors -------------------------------------------------------------------------------------------------------


class Reducer(Protocol):
    """What changes gradients on their way to `.grad`, such as to means over many processes: see `distributed`."""

    def start(self, leaf: "Tensor", gradient: "Tensor") -> None:
        """Takes a leaf's whole gradient as soon as it is known, while the backward pass goes on."""

    def result(self, leaf: "Tensor", gradient: "Tensor") -> "Tensor":
        """What is added to the leaf's `.grad`, in memory of its own; asked for when the backward pass is over."""


class Tensor:
    """An n-dimensional array of float32 or float64 on a device, with the op that made it.

    `data` is the NumPy or CuPy array itself, not a copy. (Between two layers on a GPU, values of float32 may be kept in
    16 bits until somebody asks for `data`.) `grad` is None, or a Tensor of the same shape: backward passes add to it at
    tensors with `requires_grad` that no op made (leaves). A parameter may have a `reducer`, by way of which it comes
    there.
    """

    __slots__ = ("__weakref__", "_data", "_versions", "device", "dtype", "grad", "op", "requires_grad", "shape")
    # Lets `array + tensor` reach Tensor.__radd__ instead of becoming an array of objects.
    __array_ufunc__ = None
    reducer: Reducer | None = None

    def __init__(self, data: Array, requires_grad: bool = False, device: str = "cpu", op: "Op | None" = None) -> None:
        self._data = data
        self.shape: tuple[int, ...] = data.shape
        self.dtype: np.dtype = real_dtype(data)
        self.device = device
        self.requires_grad = requires_grad
        self.op = op
        self.grad: Tensor | None = None
        # How often the memory was changed in place through this class: one number for all tensors that share it.
        self._versions = [0]

    @property
    def data(self) -> Array:
        self._data = widened(self.device, self._data)  # itself, but where it has 16 bits
        return self._data

    @data.setter
    def data(self, array: Array) -> None:
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"data: expected {self._kind()}, got shape {array.shape}, {array.dtype}")
        self._data = array
        self.mark_changed()

    @property
    def version(self) -> int:
        return self._versions[0]

    def mark_changed(self) -> None:
        """Says that `data` was changed in place: a backward pass that still needs the old values is then refused."""
        self._versions[0] += 1

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array: the very array on the CPU, a copy from a GPU."""
        return to_numpy(self.data)

    def item(self) -> float:
        """The value of a tensor with one element."""
        if self.size != 1:
            raise ValueError(f"item: expected a tensor with one element, got shape {self.shape}")
        return float(self.data.reshape(())[()])

    def detach(self) -> "Tensor":
        """The same data (not a copy), cut off from the graph."""
        same = Tensor(self.data, device=self.device)
        same._versions = self._versions
        return same

    def to(self, device: str) -> "Tensor":
        """The tensor on another device, cut off from the graph; itself if it is there already."""
        device = resolve_device(device)
        if device == self.device:
            return self
        if self.op is not None:
            raise GraphError("to: only leaf tensors move between devices; detach() this one first")
        return Tensor(to_device(self.data, device), self.requires_grad, device)

    def backward(
        self, gradient: Operand | None = None, retain_graph: bool | None = None, create_graph: bool = False
    ) -> None:
        """Adds the gradient of this tensor, times `gradient`, to `.grad` of every leaf that it was computed from.

        gradient: the shape of this tensor; may be left out for a single element (then 1). The graph is freed afterwards
        unless `retain_graph`; with `create_graph` the gradients can be differentiated again.
        Raises GraphError for a graph that is freed, or changed in place, or that requires no gradient.
        """
        _backward([(self, _seed(self, gradient))], None, retain_graph, create_graph)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if is_cuda(self.device):
            raise DeviceError("a tensor on a CUDA device does not become a NumPy array by itself: call .numpy()")
        if copy is False and dtype is not None and np.dtype(dtype) != self.dtype:
            raise ValueError(f"a tensor of {self.dtype} does not become an array of {np.dtype(dtype)} without a copy")
        return np.array(self.data, dtype=dtype) if copy else np.asarray(self.data, dtype=dtype)

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.data.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # An AttributeError is how the protocol says "not on a GPU".
        if not is_cuda(self.device):
            raise AttributeError(f"tensor on device {self.device!r} has no __cuda_array_interface__")
        return self.data.__cuda_array_interface__

    def __float__(self) -> float:
        return self.item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor without dimensions has no len()")
        return self.shape[0]

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", threshold=20, precision=4)
        tail = f", op={type(self.op).__name__}" if self.op else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({values}, shape={self.shape}, dtype={self.dtype}, device={self.device!r}{tail})"

    def _kind(self) -> str:
        return f"shape {self.shape}, {self.dtype} on {self.device}"

    if TYPE_CHECKING:  # given to the class by the ops, which stand above this module: see `tensor_method`

        def __add__(self, other: Operand) -> "Tensor": ...
        def __radd__(self, other: Operand) -> "Tensor": ...
        def __sub__(self, other: Operand) -> "Tensor": ...
        def __rsub__(self, other: Operand) -> "Tensor": ...
        def __mul__(self, other: Operand) -> "Tensor": ...
        def __rmul__(self, other: Operand) -> "Tensor": ...
        def __truediv__(self, other: Operand) -> "Tensor": ...
        def __rtruediv__(self, other: Operand) -> "Tensor": ...
        def __pow__(self, exponent: Operand) -> "Tensor": ...
        def __rpow__(self, base: Operand) -> "Tensor": ...
        def __matmul__(self, other: Operand) -> "Tensor": ...
        def __rmatmul__(self, other: Operand) -> "Tensor": ...
        def __neg__(self) -> "Tensor": ...
        def __getitem__(self, index: Any) -> "Tensor": ...
        def abs(self) -> "Tensor": ...
        def exp(self) -> "Tensor": ...
        def log(self) -> "Tensor": ...
        def sqrt(self) -> "Tensor": ...
        def clip(self, low: float, high: float) -> "Tensor": ...
        def sum(self, axis: Any = None, keepdims: bool = False) -> "Tensor": ...
        def mean(self, axis: Any = None, keepdims: bool = False) -> "Tensor": ...
        def reshape(self, *shape: Any) -> "Tensor": ...
        def transpose(self, *axes: Any) -> "Tensor": ...


def tensor_method(*names: str) -> Any:
    """Decorator: makes a function of `functional` a method or an operator of Tensor too."""

    def attach(function: Any) -> Any:
        for name in names:
            setattr(Tensor, name, function)
        return function

    return attach


def tensor(
    data: Any, requires_grad: bool = False, device: str | None = None, dtype: Any = None, copy: bool = True
) -> Tensor:
    """A tensor of the values in `data`: an array, a tensor, nested lists or a number.

    The memory is its own: an optimizer that changes a parameter leaves `data` as it is. Without `copy` it is that of
    `data` where dtype and device allow it. float32 and float64 arrays keep their dtype, Python numbers become float32.
    Raises TypeError for any other dtype unless `dtype` says what to convert it to. device: None: `default_device()`.
    """
    device = resolve_device(device)
    if isinstance(data, Tensor):
        data = data.data
    if dtype is not None and np.dtype(dtype) not in FLOATS:
        raise TypeError(f"tensor: expected dtype float32 or float64, got {np.dtype(dtype)}")
    if isinstance(data, (list, tuple, int, float)) and not isinstance(data, np.generic):
        data = np.asarray(data, dtype=dtype or np.float32)
    elif not _on_cuda(data):
        data = np.asarray(data)
    if dtype is not None:
        data = data.astype(dtype, copy=False)
    if data.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(
            f"tensor: expected float32 or float64, got {data.dtype}; convert it, for example with dtype='float32'"
        )
    with on_device(device):
        data = data.astype(data.dtype.newbyteorder("="), copy=copy)
    return Tensor(to_device(data, device), requires_grad, device)


def from_dlpack(source: Any) -> Tensor:
    """A tensor that shares the memory of an array of another library (PyTorch, CuPy, JAX ...), on CPU or CUDA."""
    kind, index = source.__dlpack_device__()
    if int(kind) == 1:  # kDLCPU
        return tensor(np.from_dlpack(source), device="cpu", copy=False)
    if int(kind) == 2:  # kDLCUDA
        device = resolve_device(f"cuda:{int(index)}")
        return tensor(array_module(device).from_dlpack(source), device=device, copy=False)
    raise DeviceError(f"from_dlpack: expected memory of a CPU or of a CUDA device, got DLPack device {kind}")


def as_tensor(value: Operand, like: Tensor) -> Tensor:
    """`value` as a constant beside `like`: a number takes its dtype and device; an array must have its dtype.

    A number stays on the host, as a NumPy scalar, on every device: there it is an argument, and no array to be filled.
    """
    if isinstance(value, Tensor):
        return value
    if _is_number(value):
        return Tensor(like.dtype.type(value), device=like.device)
    if not hasattr(value, "dtype"):
        raise TypeError(f"expected a tensor, a number or an array, got {value!r}")
    if _on_cuda(value) != is_cuda(like.device):
        raise DeviceError(f"expected an array on {like.device}, got {type(value).__module__}.{type(value).__name__}")
    return tensor(value, device=like.device, copy=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, np.ndarray) and value.ndim == 0)


def _on_cuda(value: Any) -> bool:
    return hasattr(value, "__cuda_array_interface__")


# ---- operations ----------------------------------------------------------------------------------------------------

# Every op by name: the tests walk it.
registry: dict[str, type["Op"]] = {}

_sequence = itertools.count()


class _Dying(threading.local):
    """Inputs of ops that are being deleted, of this thread."""

    busy = False

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []


_dying = _Dying()


class Op:
    """One differentiable operation; an instance is one use of it, and a node of the graph.

    A subclass is a dataclass of its settings and defines
    - forward(*arrays) -> array: computes; arrays may be non-contiguous and must not be changed. What backward needs
      besides the inputs may be kept as attributes;
    - backward(gy) -> tuple: a gradient (or None) for each input, from the output's gradient, by means of other ops on
      `self.inputs` (Tensors). `self.needed[i]` tells whether input i's gradient is wanted;
    - reference(*arrays, **settings): the same in obvious NumPy, the judge of every device's forward;
    - samples(rng) -> iterable of (input arrays, settings), at odd sizes and away from kinks, that the tests check.
    `saved_inputs` are the inputs whose values backward reads; the others are not kept alive. None means all of them.
    `keeps_output` says that backward reads the output, too.
    `takes_half` are the inputs that forward takes in 16 bits, if they are kept so; it may return such an array.
    """

    saved_inputs: ClassVar[tuple[int, ...] | None] = None
    keeps_output: ClassVar[bool] = False
    takes_half: ClassVar[tuple[int, ...]] = ()

    device: str
    inputs: tuple[Tensor, ...] = ()  # none once the graph is freed
    needed: tuple[bool, ...]
    sequence: int
    _versions: tuple[int, ...]
    _output: tuple[list[int], int]

    def __init_subclass__(cls, abstract: bool = False) -> None:
        if not abstract:
            registry[cls.__name__] = cls

    def forward(self, *arrays: Array) -> Array:
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(f"{type(self).__name__} defines no backward")

    @staticmethod
    def reference(*arrays: Any, **settings: Any) -> np.ndarray:
        raise NotImplementedError("an op needs a NumPy reference")

    @staticmethod
    def samples(rng: np.random.Generator) -> Any:
        raise NotImplementedError("an op needs samples for its tests")

    def __call__(self, *inputs: Tensor) -> Tensor:
        for t in inputs:
            if not isinstance(t, Tensor):
                raise TypeError(f"{self._name()}: expected tensors, got {type(t).__name__}; see minigan.tensor()")
        first = inputs[0]
        for other in inputs[1:]:
            if other.device != first.device:
                raise DeviceError(f"{self._name()}: expected tensors on one device, got {_kinds(inputs)}")
            if other.dtype != first.dtype:
                raise TypeError(f"{self._name()}: expected tensors of one dtype, got {_kinds(inputs)}")
        self.device = first.device
        with on_device(self.device):
            y = self.forward(*[t._data if i in self.takes_half else t.data for i, t in enumerate(inputs)])
        # NumPy turns arrays without dimensions into scalars.
        y = Tensor(y if is_cuda(self.device) else np.asarray(y), device=self.device)
        if debugging.checking:
            debugging.check_finite(f"{self._name()}: output", y, [(f"input {i}", t) for i, t in enumerate(inputs)])
        owner = _owner(y._data)
        for t in inputs:
            if _owner(t._data) is owner:  # a view: a change of one is a change of the other
                y._versions = t._versions
        if _recording.on and any(t.requires_grad for t in inputs):
            saved = range(len(inputs)) if self.saved_inputs is None else self.saved_inputs
            # Of an input that backward does not read, only its place in the graph is kept, not its values; and one that
            # requires no gradient now gets none, even if it is a parameter that is released before backward.
            kept = [t if t.requires_grad else t.detach() for t in inputs]
            self.inputs = tuple(t if i in saved or _is_leaf(t) else _shell(t) for i, t in enumerate(kept))
            self.needed = tuple(t.requires_grad for t in inputs)
            self._versions = tuple(t.version if i in saved else -1 for i, t in enumerate(inputs))
            self._output = y._versions, y.version if self.keeps_output else -1
            self.sequence = next(_sequence)
            y.requires_grad, y.op = True, self
        return y

    def output(self, array: Array) -> Tensor:
        """For backward: this op's output as part of the graph, from the array that forward kept.

        Keeping the output tensor itself would make a cycle, and memory would be freed late.
        """
        return Tensor(array, requires_grad=True, device=self.device, op=self)

    def check_alive(self) -> None:
        """Raises GraphError if the graph was freed, or if a value that backward needs was changed since."""
        if not self.inputs:
            raise GraphError(
                f"backward: the graph at {self._name()} was freed by an earlier backward pass; "
                "call that one with retain_graph=True to go through it again"
            )
        used = [(f"input {i}", t.version, self._versions[i]) for i, t in enumerate(self.inputs)]
        for what, now, version in [*used, ("the output", self._output[0][0], self._output[1])]:
            if version not in (-1, now):
                raise GraphError(
                    f"backward: {what} of {self._name()} was changed in place after its use: expected version "
                    f"{version}, got {now}; call backward before the change, or run forward again"
                )

    def free(self) -> None:
        """Lets go of everything that was kept for backward."""
        self.__dict__ = {"sequence": self.sequence}

    def __del__(self, dying: "_Dying" = _dying) -> None:
        # A graph that nobody holds is deleted from its end to its beginning. Left to Python, each op would go in a call
        # within the call for the op after it, too deep for the stack of some versions; so the rest waits in a list.
        dying.inputs.extend(self.__dict__.pop("inputs", ()))
        if not dying.busy:
            dying.busy = True
            while dying.inputs:
                dying.inputs.pop()
            dying.busy = False

    def _name(self) -> str:
        return type(self).__name__


class Fused(Op, abstract=True):
    """An op whose gradients are computed by hand-written loops on arrays, fast but not differentiable themselves.

    A subclass defines `gradients(gy array) -> tuple of arrays` in place of backward, and `composed(*inputs) ->
    Tensor`: the same function made of simpler ops. Where the gradient has to be differentiable, it is taken through
    `composed`. If it takes an input in 16 bits, `gradients` takes gy so, too.
    """

    def gradients(self, gy: Array) -> tuple[Array | None, ...]:
        raise NotImplementedError(f"{type(self).__name__} defines no gradients")

    def composed(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no composed form")

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        if not is_grad_enabled():
            arrays = self.gradients(gy._data if self.takes_half else gy.data)
            if not is_cuda(self.device):  # NumPy turns arrays without dimensions into scalars
                arrays = tuple(None if a is None else np.asarray(a) for a in arrays)
            return tuple(None if a is None else Tensor(a, device=self.device) for a in arrays)
        # Differentiate through stand-ins: `gy` may itself depend on the inputs, and only their direct use counts here.
        stand_ins = tuple(t.reshape(t.shape) if t.requires_grad else t for t in self.inputs)
        wanted = [t for t, needed in zip(stand_ins, self.needed, strict=True) if needed]
        found = iter(grad(self.composed(*stand_ins), wanted, gy, create_graph=True))
        return tuple(next(found) if needed else None for needed in self.needed)


def _is_leaf(t: Tensor) -> bool:
    return t.op is None and t.requires_grad


def _owner(array: Array) -> Array:
    return array if array.base is None else array.base


def _kinds(tensors: Sequence[Tensor]) -> str:
    return " and ".join(t._kind() for t in tensors)


def _shell(t: Tensor) -> Tensor:
    """A tensor's place in the graph without its values."""
    return Tensor(_NoData(t.shape, t.dtype), t.requires_grad, t.device, t.op)


class _NoData:
    """Stands where an array was not kept; anything but its shape and dtype is missing, loudly."""

    __slots__ = ("dtype", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape = shape
        self.dtype = dtype


# ---- differentiation -----------------------------------------------------------------------------------------------


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Operand | Sequence[Operand | None] | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs`, times `grad_outputs`, with respect to `inputs`; no `.grad` is touched.

    Returns a tuple, one tensor for each input, of its shape. With `create_graph` they can be differentiated again. The
    graph is freed unless `retain_graph` (by default: unless `create_graph`). Raises GraphError for an input that the
    outputs do not depend on, unless `allow_unused`: then its gradient is None.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not outputs:
        raise ValueError("grad: expected at least one output, got none")
    if not isinstance(grad_outputs, (list, tuple)):
        grad_outputs = [grad_outputs] * len(outputs)
    if len(grad_outputs) != len(outputs):
        raise ValueError(f"grad: expected {len(outputs)} grad_outputs, one an output, got {len(grad_outputs)}")
    roots = [(y, _seed(y, gy)) for y, gy in zip(outputs, grad_outputs, strict=True)]
    found = _backward(roots, inputs, retain_graph, create_graph)
    gradients = tuple(found.get(id(_node(t))) for t in inputs)
    for i, (t, g) in enumerate(zip(inputs, gradients, strict=True)):
        if g is None and not allow_unused:
            raise GraphError(
                f"grad: input {i} ({t._kind()}) was not used to compute the outputs, or does not require a gradient; "
                "allow_unused=True gives None for it"
            )
    return gradients


def _node(t: Tensor) -> Any:
    """What identifies a tensor in the graph: the op that made it (each makes one tensor), or a leaf itself."""
    return t if t.op is None else t.op


def _seed(y: Tensor, gradient: Operand | None) -> Tensor:
    """The gradient to begin with at an output, checked."""
    if not y.requires_grad:
        raise GraphError(f"backward: the output ({y._kind()}) requires no gradient: no input of it does")
    if gradient is None and y.size != 1:
        raise GraphError(
            f"backward: expected a gradient of shape {y.shape}; only an output of one element may do without"
        )
    if gradient is None or _is_number(gradient):  # an array: kernels get it by its address
        shape, value = (y.shape, 1.0) if gradient is None else ((), float(gradient))
        with on_device(y.device):
            g = Tensor(array_module(y.device).full(shape, value, y.dtype), device=y.device)
    else:
        g = as_tensor(gradient, y)
    if (g.shape, g.dtype, g.device) != (y.shape, y.dtype, y.device):
        raise ValueError(f"backward: expected a gradient of {y._kind()}, got {g._kind()}")
    return g


def _collect(roots: Sequence[Tensor]) -> list[Op]:
    """All ops that the roots were computed by, in the order in which they ran. Without recursion: graphs are deep."""
    ops: dict[int, Op] = {}
    pending = [t.op for t in roots if t.op is not None]
    while pending:
        op = pending.pop()
        if id(op) not in ops:
            ops[id(op)] = op
            pending.extend(t.op for t in op.inputs if t.op is not None)
    return sorted(ops.values(), key=lambda op: op.sequence)


def _backward(
    roots: Sequence[tuple[Tensor, Tensor]],
    targets: Sequence[Tensor] | None,
    retain_graph: bool | None,
    create_graph: bool,
) -> dict[int, Tensor]:
    """Propagates gradients from the roots to the leaves' `.grad`, or to `targets`, and returns them by id of node."""
    retain_graph = create_graph if retain_graph is None else retain_graph
    ops = _collect([t for t, _ in roots])
    goals = None if targets is None else {id(_node(t)) for t in targets}
    leads = _leads_to(ops, goals)
    missed = goals is None or not goals <= {
        id(_node(t)) for t in itertools.chain((t for t, _ in roots), *(op.inputs for op in ops))
    }
    for op in ops:
        if missed or leads[id(op)]:
            op.check_alive()
    gradients: dict[int, Tensor] = {}
    leaves: dict[int, Tensor] = {}
    # How many more times each leaf that has a reducer gets a gradient.
    uses = Counter(id(t) for op in ops if goals is None for t in op.inputs if t.requires_grad and t.reducer is not None)

    def add(t: Tensor, g: Tensor) -> None:
        key = id(_node(t))
        if t.op is None:
            leaves[key] = t
        # A new tensor, never in place: an op may hand out one gradient twice.
        gradients[key] = gradients[key] + g if key in gradients else g

    with set_grad_enabled(create_graph), on_device(roots[0][0].device):
        for t, g in roots:
            add(t, g)
        for op in reversed(ops):
            if not leads[id(op)]:
                continue
            is_goal = goals is not None and id(op) in goals
            gy = gradients.get(id(op)) if is_goal else gradients.pop(id(op), None)
            if gy is not None:
                op.needed = tuple(_wanted(t, goals, leads) for t in op.inputs)
                found = debugging.checked_backward(op, gy) if debugging.checking else op.backward(gy)
                for x, gx, needed in zip(op.inputs, found, op.needed, strict=True):
                    if needed and gx is not None:
                        if gx.shape != x.shape:
                            raise GraphError(f"{op._name()}.backward: expected shape {x.shape}, got {gx.shape}")
                        add(x, gx)
                    if id(x) in uses:
                        uses[id(x)] -= 1
                        if not uses[id(x)] and id(x) in gradients and x.reducer is not None:
                            x.reducer.start(x, gradients[id(x)])
            if not retain_graph:
                op.free()
        if goals is None:
            for key, t in leaves.items():
                if t.reducer is not None:
                    gradients[key] = t.reducer.result(t, gradients[key])
            _accumulate(leaves, gradients, roots, create_graph)
    return gradients


def _wanted(t: Tensor, goals: set[int] | None, leads: dict[int, bool]) -> bool:
    """Whether the gradient of an op's input is needed for the goals."""
    if not t.requires_grad:
        return False
    if goals is None or id(_node(t)) in goals:
        return True
    return t.op is not None and leads[id(t.op)]


def _leads_to(ops: Sequence[Op], goals: set[int] | None) -> dict[int, bool]:
    """For each op whether a goal lies before it; with goals None, everything does."""
    leads: dict[int, bool] = {}
    for op in ops:  # in the order of computation: the inputs' ops come first
        leads[id(op)] = any(_wanted(t, goals, leads) for t in op.inputs)
    return leads


def _accumulate(
    leaves: dict[int, Tensor],
    gradients: dict[int, Tensor],
    roots: Sequence[tuple[Tensor, Tensor]],
    create_graph: bool,
) -> None:
    """Adds the gradients to the leaves' `.grad`. No two leaves share memory there, nor does a leaf with the caller."""
    taken = {id(g.data) for _, g in roots}
    for key, t in leaves.items():
        g = gradients[key]
        if t.grad is not None:
            t.grad = t.grad + g
        elif create_graph:
            t.grad = g * 1.0  # a copy that is part of the graph
        else:
            shared = t.reducer is None and (id(g.data) in taken or g.data.base is not None)
            t.grad = Tensor(g.data.copy() if shared else g.data, device=g.device)
            taken.add(id(t.grad.data))
