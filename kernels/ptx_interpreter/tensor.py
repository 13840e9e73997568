"""Instructions of whole warps and warpgroups, and those of the asynchronous machinery.

Written from NVIDIA's "PTX ISA", not from the emulator's twins: its sections on warp-level matrix instructions,
asynchronous warpgroup-level matrix instructions, data movement and mbarriers. Element (row, column) of each fragment is
as the manual's formulas have it. Products are summed in double and rounded once: the order in which a GPU adds is not
defined, and sums that a float holds exactly are equal in all.
"""

from collections.abc import Callable

import numpy as np

from .block import Block, reader, writer
from .lanes import WARP, WARPGROUP, Lanes
from .rounding import widen
from .scalar import Execute, address_reader, of_lanes, unknown
from .text import TYPES, Instruction, Kernel, Number, Operand, PtxError, Register, Vector

Array = np.ndarray
U32, U64, F32 = TYPES["u32"], TYPES["u64"], TYPES["f32"]

LANE = np.arange(WARP)
GROUP, QUAD = LANE[:, None] // 4, LANE[:, None] % 4  # the manual's groupID and threadID_in_group

# kind of number: (steps of a product, row of A, column of A, row of B), of element i of a lane
_I8, _I4, _I2 = np.arange(8), np.arange(4), np.arange(2)
_PAIRS = (
    16,
    GROUP + np.where((_I8 < 2) | ((_I8 >= 4) & (_I8 < 6)), 0, 8),
    QUAD * 2 + (_I8 & 1) + np.where(_I8 >= 4, 8, 0),
    QUAD * 2 + (_I4 & 1) + np.where(_I4 >= 2, 8, 0),
)
_TF32 = (8, GROUP + np.where(_I4 % 2 == 0, 0, 8), QUAD + np.where(_I4 < 2, 0, 4), QUAD + 4 * _I2)
_FRAGMENTS = {"bf16": _PAIRS, "f16": _PAIRS, "tf32": _TF32}
# of C and D
_C_ROW, _C_COLUMN = GROUP + np.where(_I4 < 2, 0, 8), QUAD * 2 + (_I4 & 1)


def translate(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    """(kind of the step, function, threads that execute together)."""
    for prefix, make in _MAKERS.items():
        if i.opcode.startswith(prefix):
            return make(i, kernel)
    raise unknown(i)


def is_known(i: Instruction) -> bool:
    return i.opcode.startswith(tuple(_MAKERS))


def _elements(operand: Operand, count: int, i: Instruction) -> tuple[Register, ...]:
    registers = operand.elements if isinstance(operand, Vector) else ()
    if len(registers) != count or not all(isinstance(r, Register) for r in registers):
        raise PtxError(f"{i.place}: expected {count} registers in braces")
    return tuple(r for r in registers if isinstance(r, Register))


def _constant(operand: Operand, i: Instruction) -> int:
    if not isinstance(operand, Number):
        raise PtxError(f"{i.place}: expected a number")
    return int(operand.text, 0)


def _spread(values: Array, lanes: Lanes) -> Array:
    """Values of the active threads as an array for all of them."""
    whole = np.zeros(len(lanes.mask), values.dtype)
    whole[lanes.numbers] = values.reshape(-1)
    return whole


# ---- warps -----------------------------------------------------------------------------------------------------------


def _shuffle(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    """shfl.sync d|p, a, lane, clamp, membermask: bfly takes a of lane ^ b, idx of lane b, in segments of all 32."""
    mode = i.parts[2]
    if i.parts[3:] != ("b32",) or mode not in ("bfly", "idx"):
        raise unknown(i)
    value_of, found = _elements(i.operands[0], 2, i)
    value, index, clamp, members = (reader(o, U32, kernel, i.place) for o in i.operands[1:])
    write, write_found = writer(value_of, U32, i.place), writer(found, TYPES["pred"], i.place)

    def execute(block: Block, lanes: Lanes) -> None:
        read = [
            np.broadcast_to(one(block, lanes), block.count)[lanes.numbers] for one in (value, index, clamp, members)
        ]
        if (read[2] != 31).any() or (read[3] != 0xFFFFFFFF).any():
            raise PtxError(f"{i.place}: the interpreter knows whole warps only (31, 0xffffffff)")
        lane = np.broadcast_to(LANE, (len(lanes.numbers) // WARP, WARP)).reshape(-1)
        source = (lane ^ read[1] if mode == "bfly" else read[1] & 31).astype(np.int64)
        write(block, lanes, _spread(read[0][np.arange(len(lane)) // WARP * WARP + source], lanes))
        write_found(block, lanes, np.ones(block.count, bool))

    return "together", execute, WARP


def _load_matrices(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    """ldmatrix: lane l gives the address of row l % 8 of matrix l / 8; and gets of each matrix the elements 2 (l % 4)
    and the next of row l / 4. With .trans, of column l / 4."""
    trans = "trans" in i.parts
    if tuple(p for p in i.parts if p != "trans")[1:4] != ("sync", "aligned", "m8n8") or i.parts[-2:] != (
        "shared",
        "b16",
    ):
        raise unknown(i)
    count = {"x1": 1, "x2": 2, "x4": 4}.get(i.parts[4])
    if count is None:
        raise unknown(i)
    registers = _elements(i.operands[0], count, i)
    writers = [writer(register, U32, i.place) for register in registers]
    address = address_reader(i.operands[1], "shared", kernel, i.place)

    def execute(block: Block, lanes: Lanes) -> None:
        rows = lanes.numbers.reshape(-1, WARP)[:, : 8 * count]
        addresses = np.broadcast_to(address(block, lanes), block.count)[rows]
        data = block.shared.read(rows.reshape(-1), addresses.reshape(-1), 16, i.place)
        matrices = data.view(np.uint16).reshape(-1, count, 8, 8)
        if trans:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        words = matrices.view(U32).reshape(-1, count, WARP)
        for number, write in enumerate(writers):
            write(block, lanes, _spread(words[:, number], lanes))

    return "together", execute, WARP


def _fragment(block: Block, lanes: Lanes, registers: tuple[Register, ...], kind: str, i: Instruction) -> Array:
    """(warps, 32, elements): what the lanes hold in these registers, the lower half of each first."""
    words = np.stack([block.read(r, lanes, i.place).view(U32)[lanes.numbers] for r in registers], axis=-1)
    words = words.reshape(-1, WARP, len(registers))
    return widen(words if kind == "tf32" else words.view(np.uint16), kind)


def _multiply(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    """mma.sync: D = A B + C."""
    kind = i.parts[-2]
    if kind not in _FRAGMENTS:
        raise unknown(i, "type")
    depth, a_row, a_column, b_row = _FRAGMENTS[kind]
    if i.parts[1:] != ("sync", "aligned", f"m16n8k{depth}", "row", "col", "f32", kind, kind, "f32"):
        raise unknown(i)
    d, a, b, c = (_elements(o, n, i) for o, n in zip(i.operands, (4, 4, 2, 4), strict=True))
    writers = [writer(register, F32, i.place) for register in d]

    def execute(block: Block, lanes: Lanes) -> None:
        warps = len(lanes.numbers) // WARP
        matrix_a, matrix_b = np.empty((warps, 16, depth)), np.empty((warps, depth, 8))
        matrix_a[:, a_row, a_column] = _fragment(block, lanes, a, kind, i)
        matrix_b[:, b_row, np.broadcast_to(GROUP, b_row.shape)] = _fragment(block, lanes, b, kind, i)
        sums = np.stack([block.read(r, lanes, i.place)[lanes.numbers] for r in c], axis=-1).reshape(warps, WARP, 4)
        result = (sums + (matrix_a @ matrix_b)[:, _C_ROW, _C_COLUMN]).astype(np.float32)
        for number, write in enumerate(writers):
            write(block, lanes, _spread(result[:, :, number], lanes))

    return "together", execute, WARP


# ---- barriers --------------------------------------------------------------------------------------------------------


def _barrier(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    if i.opcode != "bar.sync" or len(i.operands) != 1 or _constant(i.operands[0], i) != 0:
        raise unknown(i)
    return "barrier", lambda block, lanes: None, WARP


def _barrier_or(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    """bar.red.or.pred p, 0, q: whether q is true in one thread at least."""
    if i.opcode != "bar.red.or.pred" or len(i.operands) != 3 or _constant(i.operands[1], i) != 0:
        raise unknown(i)
    write = writer(i.operands[0], TYPES["pred"], i.place)
    read = reader(i.operands[2], TYPES["pred"], kernel, i.place)

    def execute(block: Block, lanes: Lanes) -> None:
        if not lanes.all:
            raise PtxError(f"{i.place}: threads wait at different barriers")
        write(block, lanes, np.full(block.count, read(block, lanes).any()))

    return "barrier", execute, WARP


# ---- asynchronous copies ---------------------------------------------------------------------------------------------


def _copy(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    """cp.async.ca/cg [shared], [global], bytes, ignore-src: where that predicate is true, zeros are written."""
    if i.parts[2:] not in (("ca", "shared", "global"), ("cg", "shared", "global")):
        raise unknown(i)
    size = _constant(i.operands[2], i)
    if size not in ((16,) if "cg" in i.parts else (4, 8, 16)) or len(i.operands) not in (3, 4):
        raise unknown(i, "size")
    to = address_reader(i.operands[0], "shared", kernel, i.place)
    source = address_reader(i.operands[1], "global", kernel, i.place)
    ignore = reader(i.operands[3] if len(i.operands) == 4 else Number("0"), TYPES["pred"], kernel, i.place)

    def execute(block: Block, lanes: Lanes) -> None:
        valid = ~np.broadcast_to(ignore(block, lanes), block.count)[lanes.numbers]
        addresses = of_lanes(to, block, lanes), of_lanes(source, block, lanes)
        block.copies.begin(lanes, *addresses, size, valid, i.place)

    return "plain", execute, 0


def _copy_commit(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    return "plain", lambda block, lanes: block.copies.commit(lanes), 0


def _copy_wait(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    pending = None if i.opcode == "cp.async.wait_all" else _constant(i.operands[0], i)
    return "plain", lambda block, lanes: block.copies.wait(lanes, pending), 0


def _per_thread(i: Instruction, kernel: Kernel, types: tuple[tuple[int, np.dtype | str], ...]) -> Callable[..., Array]:
    """(threads, operands): the operands, by their numbers, as ints; a str is the space of an address."""
    reads = [
        address_reader(i.operands[k], kind, kernel, i.place)
        if isinstance(kind, str)
        else reader(i.operands[k], kind, kernel, i.place)
        for k, kind in types
    ]
    return lambda block, lanes: np.stack([of_lanes(read, block, lanes).astype(np.int64) for read in reads], axis=-1)


def _bulk_copy(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    if i.opcode != "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes":
        raise unknown(i)
    read = _per_thread(i, kernel, ((0, "shared"), (1, "global"), (2, U32), (3, "shared")))

    def execute(block: Block, lanes: Lanes) -> None:
        for thread, (to, source, size, barrier) in zip(lanes.numbers, read(block, lanes), strict=True):
            block.mbarriers.copy(int(thread), int(to), int(source), int(size), int(barrier), i.place)

    return "plain", execute, 0


def _mbarrier(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    if i.opcode == "mbarrier.init.shared::cta.b64":
        read = _per_thread(i, kernel, ((0, "shared"), (1, U32)))

        def execute(block: Block, lanes: Lanes) -> None:
            for thread, (address, count) in zip(lanes.numbers, read(block, lanes), strict=True):
                block.mbarriers.init(int(thread), int(address), int(count), i.place)

        return "plain", execute, 0
    if i.opcode == "mbarrier.arrive.expect_tx.shared::cta.b64":
        writer(i.operands[0], U64, i.place)
        read = _per_thread(i, kernel, ((1, "shared"), (2, U32)))

        def arrive(block: Block, lanes: Lanes) -> None:
            for thread, (address, size) in zip(lanes.numbers, read(block, lanes), strict=True):
                block.mbarriers.arrive(int(thread), int(address), int(size), i.place)

        return "plain", arrive, 0
    if i.opcode != "mbarrier.try_wait.parity.shared::cta.b64":
        raise unknown(i)
    read = _per_thread(i, kernel, ((1, "shared"), (2, U32)))
    write = writer(i.operands[0], TYPES["pred"], i.place)

    def wait(block: Block, lanes: Lanes) -> Array:
        """False once, and then the thread is suspended for as long as the phase lasts."""
        waiting, ended = np.zeros(block.count, bool), np.zeros(block.count, bool)
        asked = read(block, lanes)
        for address, parity in {tuple(pair) for pair in asked}:
            if parity not in (0, 1):
                raise PtxError(f"{i.place}: expected a parity of 0 or 1, got {parity}")
            threads = lanes.numbers[(asked == (address, parity)).all(axis=1)]
            if block.mbarriers.has_ended(threads, int(address), int(parity), i.place):
                ended[threads] = True
            else:
                waiting[block.mbarriers.waits(threads, int(address))] = True
        write(block, lanes.where(~waiting), ended)
        return waiting

    return "wait", wait, 0


def _fence_proxy(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    if i.opcode != "fence.proxy.async.shared::cta" or i.operands:
        raise unknown(i)
    return "plain", lambda block, lanes: block.shared.fence(lanes.numbers), 0


# ---- warpgroups ------------------------------------------------------------------------------------------------------


def _each_warpgroup(call: Callable[[Block, int, Lanes], None]) -> tuple[str, Execute, int]:
    def execute(block: Block, lanes: Lanes) -> None:
        for warpgroup in lanes.numbers[::WARPGROUP] // WARPGROUP:
            call(block, int(warpgroup), lanes)

    return "together", execute, WARPGROUP


def _wgmma_control(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    if i.opcode == "wgmma.fence.sync.aligned":
        return _each_warpgroup(lambda block, warpgroup, lanes: block.products.fence(warpgroup))
    if i.opcode == "wgmma.commit_group.sync.aligned":
        return _each_warpgroup(lambda block, warpgroup, lanes: block.products.commit(warpgroup))
    if i.opcode != "wgmma.wait_group.sync.aligned":
        raise unknown(i)
    pending = _constant(i.operands[0], i)
    return _each_warpgroup(lambda block, warpgroup, lanes: block.products.wait(warpgroup, pending))


def descriptor_places(descriptor: int, lines: int, steps: int, itemsize: int, by_lines: bool, what: str) -> Array:
    """(lines, steps): the addresses of an operand's numbers, as a matrix descriptor has them.

    Of the manual's "canonical layouts" the 128-byte swizzle: eight rows of 128 bytes, whose 16-byte pieces trade places
    by an exclusive or of the address bits 4 to 6 with bits 7 to 9. K-major: a row is a line. MN-major: it is a step.
    """
    start, lead, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    if descriptor >> 62 != 1:
        raise PtxError(f"{what}: the interpreter knows the 128-byte swizzle only, not mode {descriptor >> 62}")
    if descriptor >> 49 & 7:
        raise PtxError(f"{what}: the interpreter knows no base offset")
    line, step = np.arange(lines)[:, None], np.arange(steps)[None, :]
    if by_lines:
        wide = 128 // itemsize
        places = line % wide * itemsize + line // wide * lead + step % 8 * 128 + step // 8 * stride
    else:
        places = line % 8 * 128 + line // 8 * stride + step * itemsize
    places = places + start
    return places ^ (places >> 3 & 0x70)


def _wgmma(i: Instruction, kernel: Kernel) -> tuple[str, Execute, int]:
    """wgmma.mma_async d, a, b, scale-d, scale-a, scale-b, and, for 16 bits, imm-trans-a and imm-trans-b: by lines."""
    kind = i.parts[-1]
    if kind not in _FRAGMENTS or i.parts[1:4] != ("mma_async", "sync", "aligned") or i.parts[5:] != ("f32", kind, kind):
        raise unknown(i)
    depth, a_row, a_column, _ = _FRAGMENTS[kind]
    columns = int(i.parts[4].removeprefix("m64n").removesuffix(f"k{depth}"))
    itemsize = 32 // depth
    sums = _elements(i.operands[0], columns // 2, i)
    in_registers = isinstance(i.operands[1], Vector)
    a_registers = _elements(i.operands[1], 4, i) if in_registers else ()
    descriptors = [reader(o, U64, kernel, i.place) for o in i.operands[1 + in_registers : 3]]
    constants = [_constant(o, i) for o in i.operands[3:]]
    if constants[:3] != [1, 1, 1] or len(constants) != (3 if kind == "tf32" else 5 - in_registers):
        raise unknown(i, "scale or transposition")
    by_lines = [bool(n) for n in constants[3:]] or [False] * len(descriptors)

    def begin(block: Block, warpgroup: int, lanes: Lanes) -> None:
        threads = slice(WARPGROUP * warpgroup, WARPGROUP * warpgroup + WARPGROUP)
        places = []
        for read, lines, across in zip(descriptors, (64, columns)[-len(descriptors) :], by_lines, strict=True):
            all_of_them = np.unique(np.broadcast_to(read(block, lanes), block.count)[threads])
            if len(all_of_them) != 1:
                raise PtxError(f"{i.place}: the threads of a warpgroup give different descriptors")
            places.append(descriptor_places(int(all_of_them[0]), lines, depth, itemsize, across, i.place))
        group = Lanes(np.arange(block.count) // WARPGROUP == warpgroup)

        def operands() -> tuple[Array, Array]:
            found = []
            if in_registers:
                matrix = np.empty((4, 16, depth), np.float32)
                matrix[:, a_row, a_column] = _fragment(block, group, a_registers, kind, i)
                found.append(matrix.reshape(64, depth))
            for at in places:
                data = block.shared.read_async(at[:, :, None] + np.arange(itemsize), i.place)
                found.append(widen(data.view(f"u{itemsize}")[:, :, 0], kind))
            return found[0], found[1].T

        block.products.begin(warpgroup, sums, a_registers, operands, i.place)

    return _each_warpgroup(begin)


_MAKERS: dict[str, Callable[[Instruction, Kernel], tuple[str, Execute, int]]] = {
    "shfl.sync": _shuffle,
    "ldmatrix": _load_matrices,
    "mma.sync": _multiply,
    "bar.sync": _barrier,
    "bar.red": _barrier_or,
    "cp.async.bulk": _bulk_copy,
    "cp.async.commit_group": _copy_commit,
    "cp.async.wait_": _copy_wait,
    "cp.async": _copy,
    "mbarrier": _mbarrier,
    "fence.proxy": _fence_proxy,
    "wgmma.mma_async": _wgmma,
    "wgmma": _wgmma_control,
}
