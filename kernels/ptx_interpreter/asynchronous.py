"""What goes on beside the threads: copies by cp.async and by the TMA unit, mbarriers, and wgmma's products.

All of it is as late as the manual allows: a copy lands, and a product is computed, at the wait that may not let the
thread go on before. Until then nobody may read what they write, or change what they read.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .lanes import WARPGROUP, Lanes
from .memory import NOBODY, GlobalMemory, SharedMemory, check_alignment
from .text import PtxError, Register

Array = np.ndarray


@dataclass
class Copy:
    """One cp.async of some threads."""

    threads: Array
    to: Array
    source: Array
    size: int
    valid: Array  # else zeros are written
    groups: Array  # of each thread: the number of the group that it belongs to, or will
    what: str

    def part(self, chosen: Array) -> "Copy":
        rows = (self.threads, self.to, self.source, self.valid, self.groups)
        threads, to, source, valid, groups = (row[chosen] for row in rows)
        return Copy(threads, to, source, self.size, valid, groups, self.what)


class Copies:
    """cp.async: copies of a thread are committed in groups, and waited for by groups, the oldest first."""

    def __init__(self, threads: int, memory: GlobalMemory, shared: SharedMemory) -> None:
        self.memory, self.shared = memory, shared
        self.under_way: list[Copy] = []
        self.committed = np.zeros(threads, np.int64)  # groups of each thread

    def begin(self, lanes: Lanes, to: Array, source: Array, size: int, valid: Array, what: str) -> None:
        check_alignment(source, size, what)
        if valid.any():
            self.memory.read(source[valid], size, what)  # may it be read?
        self.shared.expect(lanes.numbers, to, size, size, what, bulk=False)
        groups = self.committed[lanes.numbers]
        self.under_way.append(Copy(lanes.numbers, to, source, size, valid, groups, what))

    def commit(self, lanes: Lanes) -> None:
        self.committed[lanes.numbers] += 1

    def wait(self, lanes: Lanes, pending: int | None) -> None:
        """Until at most so many groups, the newest ones, may be under way; None: and what is not committed is not."""
        done = self.committed + 1 if pending is None else self.committed - pending  # numbers of groups below this land
        rest = []
        for copy in self.under_way:
            lands = lanes.mask[copy.threads] & (copy.groups < done[copy.threads])
            if lands.any():
                self._land(copy.part(lands))
            if not lands.all():
                rest.append(copy.part(~lands))
        self.under_way = rest

    def _land(self, copy: Copy) -> None:
        data = np.zeros((len(copy.threads), copy.size), np.uint8)
        if copy.valid.any():
            data[copy.valid] = self.memory.read(copy.source[copy.valid], copy.size, copy.what)
        self.shared.land(copy.threads, copy.to, data, copy.what)

    def check_all_landed(self) -> None:
        if self.under_way:
            raise PtxError(
                f"{self.under_way[0].what}: the block ended while this copy, which nobody waited for, was under way"
            )


@dataclass
class Mbarrier:
    count: int
    pending: int  # arrivals that are missing in this phase
    bytes_due: int = 0  # expected, and not copied yet
    phase: int = 0
    copies: list[tuple[int, int, int, str]] = field(default_factory=list)  # to, source, bytes, place


class Mbarriers:
    def __init__(self, memory: GlobalMemory, shared: SharedMemory, blocked: Array) -> None:
        """blocked: which threads of the block wait; those whose phase ends no longer do."""
        self.memory, self.shared, self.blocked = memory, shared, blocked
        self.known: dict[int, Mbarrier] = {}  # by address
        self.tried: dict[int, int] = {}  # by thread: the address of the mbarrier that it has not waited for
        self.awaited: dict[int, int] = {}  # or does wait for

    def init(self, thread: int, address: int, count: int, what: str) -> None:
        if address in self.known:
            raise PtxError(f"{what}: this mbarrier is in use")
        zeros = np.zeros((1, 8), np.uint8)
        self.shared.write(np.array([thread]), np.array([address], np.uint32), zeros, what)
        self.known[address] = Mbarrier(count, count)

    def _find(self, threads: Array, address: int, what: str) -> Mbarrier:
        """The mbarrier that these threads name."""
        self.shared.read(threads, np.full(len(threads), address, np.uint32), 8, what)  # no race with its init
        if address not in self.known:
            raise PtxError(f"{what}: there is no mbarrier at {address:#x}")
        return self.known[address]

    def arrive(self, thread: int, address: int, expected_bytes: int, what: str) -> None:
        barrier = self._find(np.array([thread]), address, what)
        if not barrier.pending:
            raise PtxError(f"{what}: more than the {barrier.count} arrivals of a phase")
        barrier.pending -= 1
        barrier.bytes_due += expected_bytes
        self._complete_if_due(barrier)

    def _complete_if_due(self, barrier: Mbarrier) -> None:
        if not barrier.pending and not barrier.bytes_due:
            barrier.phase += 1
            barrier.pending = barrier.count
            self.blocked[list(self.awaited)] = False
            self.awaited.clear()
            self.tried.clear()

    def has_ended(self, threads: Array, address: int, parity: int, what: str) -> bool:
        """Whether the phase of this parity has."""
        return self._find(threads, address, what).phase % 2 != parity

    def waits(self, threads: Array, address: int) -> Array:
        """Of threads whose phase has not ended, those that wait for it: try_wait may give up, so the first try does."""
        again = np.isin(threads, [thread for thread, tried in self.tried.items() if tried == address])
        self.tried |= dict.fromkeys(threads[~again].tolist(), address)
        self.awaited |= dict.fromkeys(threads[again].tolist(), address)
        return threads[again]

    def copy(self, thread: int, to: int, source: int, size: int, address: int, what: str) -> None:
        """cp.async.bulk: one thread lets the TMA unit copy, which counts the bytes at the mbarrier."""
        shared, one = self.shared, np.array([thread])
        barrier = self._find(one, address, what)
        if (shared.unfenced[address - shared.begin : address - shared.begin + 8] != NOBODY).any():
            raise PtxError(f"{what}: no fence.proxy.async behind the mbarrier's init")
        for name, number in (("destination", to), ("source", source), ("size", size)):
            if number % 16:
                raise PtxError(f"{what}: the {name}, {number:#x}, is no multiple of 16")
        self._global_bytes(source, size, what)
        shared.expect(one, np.array([to], np.uint32), size, 16, what, bulk=True)
        barrier.copies.append((to, source, size, what))

    def _global_bytes(self, source: int, size: int, what: str) -> Array:
        return self.memory.read(source + np.arange(0, size, 16, dtype=np.uint64), 16, what).reshape(-1)

    def land_awaited(self) -> bool:
        """The copies that end a phase that a thread waits for; False if there are none."""
        landed = False
        for address in sorted(set(self.awaited.values())):
            barrier = self.known[address]
            if barrier.pending or not barrier.copies:
                continue
            for to, source, size, what in barrier.copies:
                self.shared.land_bulk(to, self._global_bytes(source, size, what))
                barrier.bytes_due -= size
            barrier.copies.clear()
            if barrier.bytes_due:
                raise PtxError(f"the mbarrier at {address:#x} expects {barrier.bytes_due} bytes more than were copied")
            self._complete_if_due(barrier)
            landed = True
        return landed

    def check_all_landed(self) -> None:
        for barrier in self.known.values():
            if barrier.copies:
                raise PtxError(f"{barrier.copies[0][3]}: the block ended while this copy was under way")


@dataclass
class Product:
    """A wgmma of one warpgroup."""

    sums: tuple[Register, ...]
    a_registers: tuple[Register, ...]
    operands: Callable[[], tuple[Array, Array]]  # reads A (64, K) and B (K, N)
    at_issue: tuple[Array, Array]
    group: int
    issued: int  # time
    what: str


class Products:
    """wgmma: like cp.async, in groups; here of a warpgroup. Its accumulators are undefined until the wait."""

    def __init__(self, threads: int, values: list[Array], undefined: list[Array | None], in_use: bool) -> None:
        """values, undefined: the block's registers. in_use: whether the kernel has such products at all."""
        warpgroups = -(-threads // WARPGROUP)
        self.threads, self.values, self.undefined, self.in_use = threads, values, undefined, in_use
        self.under_way: list[list[Product]] = [[] for _ in range(warpgroups)]
        self.committed = [0] * warpgroups
        self.time = 1  # counts fences and products
        self.fenced = [0] * warpgroups  # when
        self.last_write = np.zeros((len(values) if in_use else 0, warpgroups), np.int64)

    def written(self, register: int, lanes: Lanes) -> None:
        self.last_write[register, lanes.warpgroups] = self.time

    def why_undefined(self, register: Register, thread: int) -> str:
        products = self.under_way[thread // WARPGROUP]
        if any(register in product.sums for product in products):
            return "a wgmma may not have written yet: no wait for its group"
        return "it has never written"

    def fence(self, warpgroup: int) -> None:
        self.time += 1
        self.fenced[warpgroup] = self.time

    def commit(self, warpgroup: int) -> None:
        self.committed[warpgroup] += 1

    def begin(
        self,
        warpgroup: int,
        sums: tuple[Register, ...],
        a_registers: tuple[Register, ...],
        operands: Callable[[], tuple[Array, Array]],
        what: str,
    ) -> None:
        if not self.fenced[warpgroup]:
            raise PtxError(f"{what}: no wgmma.fence before the first product")
        numbers = [register.number for register in (*sums, *a_registers)]
        late = self.last_write[numbers, warpgroup] >= self.fenced[warpgroup]
        if late.any():
            name = (*sums, *a_registers)[int(np.flatnonzero(late)[0])].name
            raise PtxError(f"{what}: {name} was written behind the last wgmma.fence")
        lanes = slice(WARPGROUP * warpgroup, WARPGROUP * (warpgroup + 1))
        busy = {register for product in self.under_way[warpgroup] for register in product.sums}
        for register in sums:
            undefined = self.undefined[register.number]
            if register not in busy and undefined is not None and undefined[lanes].any():
                raise PtxError(f"{what}: the accumulator {register.name} has no value")
            undefined = np.zeros(self.threads, bool) if undefined is None else undefined.copy()
            undefined[lanes] = True
            self.undefined[register.number] = undefined
        self.time += 1
        self.under_way[warpgroup].append(
            Product(sums, a_registers, operands, operands(), self.committed[warpgroup], self.time, what)
        )

    def wait(self, warpgroup: int, pending: int) -> None:
        products = self.under_way[warpgroup]
        done = self.committed[warpgroup] - pending
        while products and products[0].group < done:
            product = products.pop(0)
            self._compute(warpgroup, product, {register for other in products for register in other.sums})

    def _compute(self, warpgroup: int, product: Product, busy: set[Register]) -> None:
        for register in (*product.sums, *product.a_registers):
            if self.last_write[register.number, warpgroup] >= product.issued:
                raise PtxError(f"{product.what}: {register.name} was written before the wait for this product")
        for name, before, now in zip("AB", product.at_issue, product.operands(), strict=True):
            if not np.array_equal(before, now, equal_nan=True):
                raise PtxError(f"{product.what}: operand {name} was overwritten before the wait for this product")
        a, b = product.at_issue
        added = a.astype(np.float64) @ b.astype(np.float64)
        part = slice(WARPGROUP * warpgroup, WARPGROUP * (warpgroup + 1))
        lane = np.arange(WARPGROUP)
        for index, register in enumerate(product.sums):
            # "Matrix fragments for wgmma.mma_async", accumulator D: 8 columns in each 4 registers
            row = lane // 32 * 16 + lane % 32 // 4 + index // 2 % 2 * 8
            column = index // 4 * 8 + lane % 4 * 2 + index % 2
            values = self.values[register.number].copy()
            values[part] = (values[part].astype(np.float64) + added[row, column]).astype(np.float32)
            self.values[register.number] = values
            undefined = self.undefined[register.number]
            if register not in busy and undefined is not None:
                undefined = undefined.copy()
                undefined[part] = False
                self.undefined[register.number] = undefined if undefined.any() else None

    def check_all_landed(self) -> None:
        for products in self.under_way:
            if products:
                raise PtxError(f"{products[0].what}: the block ended before the wait for this product")
