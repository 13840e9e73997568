"""Instructions that each thread executes for itself: arithmetic, comparisons, conversions, loads and stores.

`translate` makes a function of an instruction. An opcode's parts that nothing here knows raise.
"""

from collections.abc import Callable

import numpy as np

from . import rounding
from .block import Block, Reader, reader, writer
from .lanes import Lanes
from .text import TYPES, Address, Instruction, Kernel, Operand, PtxError, Register, Vector

Array = np.ndarray
Execute = Callable[[Block, Lanes], Array | None]
Function = Callable[..., Array]

PRED = TYPES["pred"]


def unknown(i: Instruction, what: str = "instruction") -> PtxError:
    return PtxError(f"{i.place}: the interpreter does not know this {what}")


def modifiers(i: Instruction, parts: tuple[str, ...], known: str) -> set[str]:
    """The parts, all of which have to be among the known ones."""
    if not set(parts) <= set(known.split()):
        raise unknown(i, "modifier")
    return set(parts)


def translate(i: Instruction, kernel: Kernel) -> Execute:
    make = _MAKERS.get(i.parts[0])
    if make is None:
        raise unknown(i)
    return make(i, kernel)


def _type(i: Instruction, name: str) -> np.dtype:
    if name not in TYPES:
        raise unknown(i, "type")
    return TYPES[name]


def _apply(i: Instruction, kernel: Kernel, function: Function, result: np.dtype, *sources: np.dtype) -> Execute:
    """The first operand becomes function(the others)."""
    if len(i.operands) != len(sources) + 1:
        raise unknown(i, "number of operands")
    write = writer(i.operands[0], result, i.place)
    read = [reader(operand, dtype, kernel, i.place) for operand, dtype in zip(i.operands[1:], sources, strict=True)]

    def execute(block: Block, lanes: Lanes) -> None:
        write(block, lanes, function(*(one(block, lanes) for one in read)))

    return execute


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def _flushed(function: Function) -> Function:
    return lambda *values: rounding.flush(function(*map(rounding.flush, values)))


def _mode(given: set[str]) -> str:
    return next(iter(given & {"rn", "rz", "rm"}), "rn")


def _shift(function: Function) -> Function:
    """Shifts by more than all bits are by all of them, not undefined as in C."""

    def shift(x: Array, by: Array) -> Array:
        bits = 8 * x.dtype.itemsize
        inside = function(x, np.minimum(by, bits - 1).astype(x.dtype))
        beyond = inside >> x.dtype.type(bits - 1) if x.dtype.kind == "i" else np.zeros_like(inside)
        return np.where(by < bits, inside, beyond)

    return shift


def _quotient(a: Array, b: Array) -> Array:
    """Towards zero, as in C; NumPy rounds down."""
    quotient = a // b
    return quotient + ((quotient * b != a) & ((a < 0) != (b < 0))).astype(a.dtype)


def _high(a: Array, b: Array) -> Array:
    wide = f"{a.dtype.kind}8"
    return (a.astype(wide) * b.astype(wide) >> np.dtype(wide).type(32)).astype(a.dtype)


def _insert(a: Array, b: Array, position: Array, length: Array) -> Array:
    """bfi: the lowest bits of a, into b."""
    at = position & np.uint32(255)
    ones = _shift(np.left_shift)(np.ones_like(a), length & np.uint32(255)) - np.uint32(1)
    mask = _shift(np.left_shift)(ones + np.zeros_like(at), at)
    return (_shift(np.left_shift)(a + np.zeros_like(at), at) & mask) | (b & ~mask)


def _leading_zeros(x: Array) -> Array:
    return np.uint32(32) - np.ceil(np.log2(x.astype(np.float64) + 1)).astype(np.uint32)


def _reciprocal_high(x: Array) -> Array:
    """rcp.approx.ftz.f64: of the upper 32 bits of a double, in the upper 32 bits."""
    keep = np.uint64(0xFFFFFFFF00000000)
    return ((1 / (x.view(np.uint64) & keep).view(np.float64)).view(np.uint64) & keep).view(np.float64)


def _exp2(x: Array) -> Array:
    return np.exp2(x.astype(np.float64)).astype(np.float32)


# name: (of integers, of floats, modifiers of floats)
_SIMPLE: dict[str, tuple[Function | None, Function | None, str]] = {
    "sub": (np.subtract, np.subtract, "rn ftz"),
    "div": (_quotient, np.divide, "rn ftz"),
    "rem": (lambda a, b: a - _quotient(a, b) * b, None, ""),
    "min": (np.minimum, np.fmin, "ftz"),
    "max": (np.maximum, np.fmax, "ftz"),
    "neg": (np.negative, np.negative, "ftz"),
    "abs": (np.abs, np.abs, "ftz"),
    "and": (np.bitwise_and, None, ""),
    "or": (np.bitwise_or, None, ""),
    "xor": (np.bitwise_xor, None, ""),
    "not": (np.invert, None, ""),
    "sqrt": (None, np.sqrt, "rn ftz"),
    "ex2": (None, _exp2, "approx ftz"),
}


def _simple(i: Instruction, kernel: Kernel) -> Execute:
    dtype = _type(i, i.parts[-1])
    whole, floating, known = _SIMPLE[i.parts[0]]
    function = floating if dtype.kind == "f" else whole
    if function is None:
        raise unknown(i, "type")
    given = modifiers(i, i.parts[1:-1], known if dtype.kind == "f" else "")
    if "ftz" in given:
        function = _flushed(function)
    return _apply(i, kernel, function, dtype, *[dtype] * (len(i.operands) - 1))


def _add(i: Instruction, kernel: Kernel) -> Execute:
    dtype = _type(i, i.parts[-1])
    given = modifiers(i, i.parts[1:-1], "rn rz ftz" if dtype.kind == "f" else "")
    mode = _mode(given)
    if dtype == np.float64 and mode != "rn":
        raise unknown(i, "rounding")
    function: Function = np.add if mode == "rn" else lambda a, b: rounding.add(a, b, mode)
    return _apply(i, kernel, _flushed(function) if "ftz" in given else function, dtype, dtype, dtype)


def _multiply(i: Instruction, kernel: Kernel) -> Execute:
    """mul, mad and fma."""
    dtype = _type(i, i.parts[-1])
    third = i.parts[0] != "mul"
    if dtype.kind == "f":
        given = modifiers(i, i.parts[1:-1], "rn rm ftz" if i.parts[0] == "fma" else "rn ftz")
        mode = _mode(given)
        if i.parts[0] == "mad" or (dtype == np.float64 and mode != "rn"):
            raise unknown(i, "type")
        function: Function = (lambda a, b, c: rounding.fma(a, b, c, mode)) if third else np.multiply
        function = _flushed(function) if "ftz" in given else function
        return _apply(i, kernel, function, dtype, *[dtype] * (2 + third))
    kind = i.parts[1] if len(i.parts) == 3 else ""
    if kind not in ("lo", "hi", "wide") or (kind == "hi" and dtype.itemsize != 4) or (kind != "lo" and third):
        raise unknown(i)
    result = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}") if kind == "wide" else dtype
    if kind == "wide":
        function = lambda a, b: a.astype(result) * b.astype(result)  # noqa: E731
    elif kind == "hi":
        function = _high
    else:
        function = (lambda a, b, c: a * b + c) if third else np.multiply
    return _apply(i, kernel, function, result, *[dtype] * (2 + third))


def _reciprocal(i: Instruction, kernel: Kernel) -> Execute:
    dtype = _type(i, i.parts[-1])
    if i.parts[1:] == ("approx", "ftz", "f64"):
        return _apply(i, kernel, _reciprocal_high, dtype, dtype)
    given = modifiers(i, i.parts[1:-1], "rn ftz")
    function: Function = lambda x: np.divide(x.dtype.type(1), x)  # noqa: E731
    return _apply(i, kernel, _flushed(function) if "ftz" in given else function, dtype, dtype)


def _shifts(i: Instruction, kernel: Kernel) -> Execute:
    dtype = _type(i, i.parts[-1])
    modifiers(i, i.parts[1:-1], "")
    function = _shift(np.left_shift if i.parts[0] == "shl" else np.right_shift)
    return _apply(i, kernel, function, dtype, dtype, TYPES["u32"])


def _bits(i: Instruction, kernel: Kernel) -> Execute:
    if i.parts[1:] != ("b32",):
        raise unknown(i, "type")
    u32 = TYPES["u32"]
    if i.parts[0] == "clz":
        return _apply(i, kernel, _leading_zeros, u32, u32)
    return _apply(i, kernel, _insert, u32, u32, u32, u32, u32)


# ---- comparisons and selections --------------------------------------------------------------------------------------

_COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),  # false where one is NaN
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
    # true where one is NaN
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
}


def _compare(i: Instruction, kernel: Kernel) -> Execute:
    dtype = _type(i, i.parts[-1])
    function = _COMPARISONS.get(i.parts[1])
    if function is None or (dtype.kind != "f" and i.parts[1] not in ("eq", "ne", "lt", "le", "gt", "ge")):
        raise unknown(i, "comparison")
    given = modifiers(i, i.parts[2:-1], "ftz" if dtype.kind == "f" else "")
    if "ftz" in given:
        function = _flushed(function)
    return _apply(i, kernel, function, PRED, dtype, dtype)


def _chosen(a: Array, b: Array, p: Array) -> Array:
    return np.where(p, a, b)


def _select(i: Instruction, kernel: Kernel) -> Execute:
    dtype = _type(i, i.parts[-1])
    modifiers(i, i.parts[1:-1], "")
    return _apply(i, kernel, _chosen, dtype, dtype, dtype, PRED)


# ---- moves and conversions -------------------------------------------------------------------------------------------


def _move(i: Instruction, kernel: Kernel) -> Execute:
    """Also of the parts of a register: mov.b32 %r, {low, high}."""
    if len(i.parts) != 2 or len(i.operands) != 2:
        raise unknown(i)
    dtype = _type(i, i.parts[1])
    to, source = i.operands
    if not isinstance(to, Vector) and not isinstance(source, Vector):
        return _apply(i, kernel, lambda x: x, dtype, dtype)
    vector = to if isinstance(to, Vector) else source
    assert isinstance(vector, Vector)
    count = len(vector.elements)
    part = np.dtype(f"u{dtype.itemsize // count}")
    if isinstance(to, Vector):
        take = reader(source, dtype, kernel, i.place)
        give = [writer(element, part, i.place) for element in to.elements]

        def split(block: Block, lanes: Lanes) -> None:
            parts = np.ascontiguousarray(take(block, lanes)).view(part).reshape(-1, count)
            for k, write in enumerate(give):
                write(block, lanes, np.ascontiguousarray(parts[:, k]))

        return split
    takes = [reader(element, part, kernel, i.place) for element in vector.elements]
    write = writer(to, dtype, i.place)

    def join(block: Block, lanes: Lanes) -> None:
        parts = np.stack(np.broadcast_arrays(*(one(block, lanes) for one in takes)), axis=-1)
        write(block, lanes, np.ascontiguousarray(parts).view(dtype).reshape(-1))

    return join


def _to_global(i: Instruction, kernel: Kernel) -> Execute:
    """Generic addresses of global memory are its own."""
    if i.opcode != "cvta.to.global.u64":
        raise unknown(i)
    return _apply(i, kernel, lambda x: x, TYPES["u64"], TYPES["u64"])


_SHORT: dict[str, tuple[np.dtype, np.dtype, Function]] = {
    "cvt.rna.tf32.f32": (TYPES["u32"], TYPES["f32"], rounding.to_tf32),
    "cvt.rn.bf16.f32": (TYPES["u16"], TYPES["f32"], rounding.to_bf16),
    "cvt.rn.f16.f32": (TYPES["u16"], TYPES["f32"], rounding.to_fp16),
    "cvt.f32.f16": (TYPES["f32"], TYPES["u16"], lambda x: rounding.widen(x, "f16")),
}


def _convert(i: Instruction, kernel: Kernel) -> Execute:
    if i.opcode in _SHORT:
        result, source, function = _SHORT[i.opcode]
        return _apply(i, kernel, function, result, source)
    to, of = _type(i, i.parts[-2]), _type(i, i.parts[-1])
    given = modifiers(i, i.parts[1:-2], "rn rni rzi ftz sat" if "f" in (to.kind, of.kind) else "")
    if of.kind == "f" and to.kind != "f":
        if given - {"ftz"} not in ({"rzi"}, {"rni"}):
            raise unknown(i, "rounding")
        function = lambda x: rounding.to_integer(np.trunc(x) if "rzi" in given else np.rint(x), to)  # noqa: E731
    elif of == to and of.kind == "f":
        if not given & {"rni", "rzi", "sat"}:
            raise unknown(i)
        steps = [f for name, f in (("rni", np.rint), ("rzi", np.trunc), ("sat", _saturate)) if name in given]

        def function(x: Array) -> Array:
            for step in steps:
                x = step(x)
            return x
    else:
        if given - {"rn", "ftz"}:
            raise unknown(i, "rounding")
        function = lambda x: x.astype(to)  # noqa: E731
    if "ftz" in given:
        function = _flushed(function)
    read = reader(i.operands[1], of, kernel, i.place, narrow=True)
    write = writer(i.operands[0], to, i.place, widen=True)
    return lambda block, lanes: write(block, lanes, function(read(block, lanes)))


def _saturate(x: Array) -> Array:
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, x.dtype.type(0), x.dtype.type(1)))


# ---- loads and stores ------------------------------------------------------------------------------------------------


def address_reader(operand: Operand, space: str, kernel: Kernel, what: str) -> Reader:
    """The addresses of an [operand]; those of global memory have 64 bits, those of shared memory 32 (64 will do)."""
    if not isinstance(operand, Address):
        raise PtxError(f"{what}: expected an [address]")
    base, offset = operand.base, operand.offset
    wide = space == "global" or (isinstance(base, Register) and base.dtype.itemsize == 8)
    dtype = TYPES["s64" if wide else "s32"]
    read = reader(base, dtype, kernel, what)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return lambda block, lanes: (read(block, lanes) + dtype.type(offset)).view(unsigned)


def of_lanes(read: Reader, block: Block, lanes: Lanes) -> Array:
    """An operand's values of the active threads."""
    return np.broadcast_to(read(block, lanes), block.count)[lanes.numbers]


def _load_or_store(i: Instruction, kernel: Kernel) -> Execute:
    loads = i.parts[0] == "ld"
    space, count = i.parts[1], 1
    dtype = _type(i, i.parts[-1])
    if len(i.parts) == 4 and i.parts[2] in ("v2", "v4"):
        count = int(i.parts[2][1])
    elif len(i.parts) != 3:
        raise unknown(i, "modifier")
    if space not in ("global", "shared", "param") or (space == "param" and not loads):
        raise unknown(i, "space")
    where, what = (i.operands[1], i.operands[0]) if loads else i.operands
    elements = what.elements if isinstance(what, Vector) else (what,)
    if len(elements) != count:
        raise unknown(i, "number of operands")
    address, size = address_reader(where, space, kernel, i.place), count * dtype.itemsize
    if loads:
        writers = [writer(element, dtype, i.place, widen=True) for element in elements]

        def load(block: Block, lanes: Lanes) -> None:
            addresses = of_lanes(address, block, lanes)
            if space == "global":
                data = block.memory.read(addresses, size, i.place)
            elif space == "shared":
                data = block.shared.read(lanes.numbers, addresses, size, i.place)
            else:
                data = _parameter_bytes(block, addresses, size, i.place)
            values = data.view(dtype)
            for k, write in enumerate(writers):
                whole = np.zeros(block.count, dtype)
                whole[lanes.numbers] = values[:, k]
                write(block, lanes, whole)

        return load
    readers = [reader(element, dtype, kernel, i.place, narrow=True) for element in elements]

    def store(block: Block, lanes: Lanes) -> None:
        values = [of_lanes(read, block, lanes) for read in readers]
        data = np.ascontiguousarray(np.stack(values, axis=-1)).view(np.uint8)
        addresses = of_lanes(address, block, lanes)
        if space == "global":
            block.memory.write(addresses, data, i.place)
        else:
            block.shared.write(lanes.numbers, addresses, data, i.place)

    return store


def _parameter_bytes(block: Block, addresses: Array, size: int, what: str) -> Array:
    at = addresses.astype(np.int64)[:, None] + np.arange(size)
    if at.max() >= len(block.parameters):
        raise PtxError(f"{what}: reads beyond the parameters")
    return block.parameters[at]


def _atomic(i: Instruction, kernel: Kernel) -> Execute:
    """atom.global.inc: thread by thread, in the order of their numbers."""
    if i.opcode != "atom.global.inc.u32":
        raise unknown(i)
    address = address_reader(i.operands[1], "global", kernel, i.place)
    limit, write = reader(i.operands[2], TYPES["u32"], kernel, i.place), writer(i.operands[0], TYPES["u32"], i.place)

    def execute(block: Block, lanes: Lanes) -> None:
        addresses = of_lanes(address, block, lanes)
        limits = np.broadcast_to(limit(block, lanes), block.count)
        result = np.zeros(block.count, np.uint32)
        for k, thread in enumerate(lanes.numbers):
            old = block.memory.read(addresses[k : k + 1], 4, i.place).view(np.uint32)
            new = np.where(old[0] >= limits[thread], np.uint32(0), old[0] + np.uint32(1))
            block.memory.write(addresses[k : k + 1], new.reshape(1, 1).view(np.uint8), i.place)
            result[thread] = old[0, 0]
        write(block, lanes, result)

    return execute


def _nothing(i: Instruction, kernel: Kernel) -> Execute:
    """membar: blocks run one after another, and what a thread writes, all see at once."""
    if i.opcode != "membar.gl" or i.operands:
        raise unknown(i)
    return lambda block, lanes: None


_MAKERS: dict[str, Callable[[Instruction, Kernel], Execute]] = {
    **dict.fromkeys(_SIMPLE, _simple),
    **dict.fromkeys(("mul", "mad", "fma"), _multiply),
    **dict.fromkeys(("shl", "shr"), _shifts),
    **dict.fromkeys(("bfi", "clz"), _bits),
    **dict.fromkeys(("ld", "st"), _load_or_store),
    "add": _add,
    "rcp": _reciprocal,
    "setp": _compare,
    "selp": _select,
    "mov": _move,
    "cvta": _to_global,
    "cvt": _convert,
    "atom": _atomic,
    "membar": _nothing,
}
