"""A block of threads: registers, and the order in which the threads execute.

A register is one NumPy array with an element for each thread, so that an instruction is executed for many at once. Of
the threads that can go on, those with the smallest program counter do: in the code that compilers make, threads that
parted at a branch so meet again behind it. Who needs others (a barrier, an instruction of a whole warp) waits for them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .asynchronous import Copies, Mbarriers, Products
from .lanes import Lanes
from .memory import GlobalMemory, SharedMemory
from .text import Kernel, Name, Number, Operand, PtxError, Register

Array = np.ndarray


@dataclass(frozen=True)
class Step:
    """An instruction, ready to be executed.

    kind: "plain"; "together" (all threads of each group of `size` at once); "wait" (execute gives the threads that
    cannot go on yet); "barrier"; "branch" to `target`; "exit".
    """

    kind: str
    place: str
    execute: Callable[["Block", Lanes], Array | None]
    guard: tuple[Register, bool] | None = None
    size: int = 0
    target: int = -1


class Block:
    def __init__(
        self,
        kernel: Kernel,
        steps: list[Step],
        parameters: Array,
        memory: GlobalMemory,
        dynamic_bytes: int,
        sizes: Mapping[str, Sequence[int]],
    ) -> None:
        """sizes: "ntid", "nctaid" and "ctaid"."""
        self.kernel, self.steps, self.parameters, self.memory = kernel, steps, parameters, memory
        self.shared = SharedMemory(1024, kernel.dynamic_begin + dynamic_bytes)
        x, y, z = sizes["ntid"]
        self.count = x * y * z
        numbers = np.arange(self.count)
        self.specials = {
            f"%{name}.{axis}": np.array([n], np.uint32)
            for name in sizes
            for axis, n in zip("xyz", sizes[name], strict=True)
        }
        for axis, tid in zip("xyz", (numbers % x, numbers // x % y, numbers // (x * y)), strict=True):
            self.specials[f"%tid.{axis}"] = tid.astype(np.uint32)
        self.values = [np.zeros(self.count, register.dtype) for register in kernel.registers]
        # Of each register, the threads that have not written it, or whose wgmma may still do; None: there are none.
        self.undefined: list[Array | None] = [np.ones(self.count, bool) for _ in kernel.registers]
        self.counters = np.zeros(self.count, np.int64)
        self.ended = np.zeros(self.count, bool)
        self.blocked = np.zeros(self.count, bool)  # until something happens
        self.barred = np.zeros(self.count, bool)  # at a barrier
        self.copies = Copies(self.count, memory, self.shared)
        self.mbarriers = Mbarriers(memory, self.shared, self.blocked)
        in_use = any("wgmma.mma_async" in step.place for step in steps)
        self.products = Products(self.count, self.values, self.undefined, in_use)

    # ---- registers ----

    def read(self, register: Register, lanes: Lanes, what: str) -> Array:
        undefined = self.undefined[register.number]
        if undefined is not None and (undefined & lanes.mask).any():
            thread = int(np.flatnonzero(undefined & lanes.mask)[0])
            reason = self.products.why_undefined(register, thread)
            raise PtxError(f"{what}: thread {thread} reads {register.name}, which {reason}")
        return self.values[register.number]

    def write(self, register: Register, value: Array, lanes: Lanes) -> None:
        number = register.number
        if value.dtype != register.dtype:
            if value.dtype.itemsize != register.dtype.itemsize:  # loads and conversions may be narrower: by their sign
                wide = f"{'i' if value.dtype.kind == 'i' else 'u'}{register.dtype.itemsize}"
                value = value.astype(wide)
            value = value.view(register.dtype)
        if lanes.all and len(value) == self.count:
            self.values[number] = value
            self.undefined[number] = None
        else:
            self.values[number] = np.where(lanes.mask, value, self.values[number])
            undefined = self.undefined[number]
            if undefined is not None:
                rest = undefined & ~lanes.mask
                self.undefined[number] = rest if rest.any() else None
        if self.products.in_use:
            self.products.written(number, lanes)

    # ---- the order of execution ----

    def run(self) -> None:
        """To the end of all threads."""
        while not self.ended.all():
            ready = ~(self.ended | self.blocked | self.barred)
            if not ready.any():
                self._let_go_on()
                continue
            counter = int(self.counters[ready].min())
            group = ready & (self.counters == counter)
            others = self.counters[ready & ~group]
            self._run_group(Lanes(group), counter, int(others.min()) if len(others) else len(self.steps) + 1)
        self.copies.check_all_landed()
        self.mbarriers.check_all_landed()
        self.products.check_all_landed()

    def _let_go_on(self) -> None:
        """Nobody can: a barrier that all have reached opens; a bulk copy that somebody waits for lands."""
        alive = ~self.ended
        if (self.barred == alive).all():
            if self.ended.any():
                raise PtxError(
                    f"{self._place_of(self.barred)}: threads wait at a barrier, but thread "
                    f"{int(np.flatnonzero(self.ended)[0])} has ended"
                )
            self._open_barrier()
        elif not self.mbarriers.land_awaited():
            raise PtxError(
                f"deadlock: {int(self.barred.sum())} threads wait at a barrier"
                + (f", {int(self.blocked.sum())} at {self._place_of(self.blocked)}" if self.blocked.any() else "")
                + f"; {int(self.ended.sum())} have ended"
            )
        self.blocked[:] = False

    def _place_of(self, mask: Array) -> str:
        return self.steps[int(self.counters[np.flatnonzero(mask)[0]])].place

    def _open_barrier(self) -> None:
        for counter in np.unique(self.counters[self.barred]):
            self.steps[int(counter)].execute(self, Lanes(self.barred & (self.counters == counter)))
        self.counters[self.barred] += 1
        self.barred[:] = False
        self.shared.epoch += 1

    def _run_group(self, lanes: Lanes, counter: int, limit: int) -> None:
        """Until the threads part, end or wait, or meet others, of which the next one is at `limit`."""
        while counter < limit:
            step = self.steps[counter]
            active = lanes
            if step.guard is not None:
                register, negated = step.guard
                active = lanes.where(self.read(register, lanes, step.place) ^ negated)
            if step.kind == "plain":
                if len(active.numbers):
                    step.execute(self, active)
                counter += 1
            elif step.kind == "branch":
                if len(active.numbers) not in (0, len(lanes.numbers)):  # they part
                    self.counters[lanes.mask] = counter + 1
                    self.counters[active.mask] = step.target
                    return
                counter = step.target if len(active.numbers) else counter + 1
            elif len(active.numbers) < len(lanes.numbers) and len(active.numbers):
                self.counters[lanes.mask] = counter + 1  # those without it go on
                self.counters[active.mask] = counter
                return self._stop(step, active)
            elif not len(active.numbers):
                counter += 1
            else:
                self.counters[lanes.mask] = counter
                return self._stop(step, active)
        self.counters[lanes.mask] = counter

    def _stop(self, step: Step, lanes: Lanes) -> None:
        """Executes what may end, or hold up, some of the threads; all of these are there."""
        if step.kind == "exit":
            self.ended |= lanes.mask
        elif step.kind == "barrier":
            self.barred |= lanes.mask
        elif step.kind == "wait":
            waiting = step.execute(self, lanes)
            assert waiting is not None
            self.blocked |= waiting
            self.counters[lanes.mask & ~waiting] += 1
        else:  # together with those that came before, as far as their groups are complete
            there = lanes.mask | (self.blocked & (self.counters == self.counters[lanes.numbers[0]]))
            if self.count % step.size:
                raise PtxError(f"{step.place}: a block of {self.count} threads has an incomplete group of {step.size}")
            complete = np.repeat(there.reshape(-1, step.size).all(axis=1), step.size)
            self.blocked[:] = (self.blocked | there) & ~complete
            if complete.any():
                step.execute(self, Lanes(complete))
                self.counters[complete] += 1


# ---- operands --------------------------------------------------------------------------------------------------------

Reader = Callable[[Block, Lanes], Array]
Writer = Callable[[Block, Lanes, Array], None]


def _fits(register: Register, dtype: np.dtype, wider: bool) -> bool:
    """Types of registers say how many bits they have, and whether they are predicates; loads and conversions may have
    wider ones."""
    if "b" in (register.dtype.kind, dtype.kind):
        return register.dtype == dtype
    return register.dtype.itemsize == dtype.itemsize or (wider and register.dtype.itemsize > dtype.itemsize)


def reader(operand: Operand, dtype: np.dtype, kernel: Kernel, what: str, *, narrow: bool = False) -> Reader:
    """Gives an operand's value, as `dtype`, for all threads or as one element. narrow: a wider register will do."""
    if isinstance(operand, Register):
        register, size = operand, operand.dtype.itemsize
        if not _fits(register, dtype, narrow):
            raise PtxError(f"{what}: {register.name} is a {register.dtype}, not a {dtype}")
        if size == dtype.itemsize:
            return lambda block, lanes: block.read(register, lanes, what).view(dtype)
        low = np.dtype(f"u{dtype.itemsize}")
        return lambda block, lanes: block.read(register, lanes, what).astype(low).view(dtype)
    if isinstance(operand, Number):
        try:
            constant = np.array([operand.text != "0"]) if dtype.kind == "b" else operand.of(dtype)
        except PtxError as error:
            raise PtxError(f"{what}: {error}") from error
        return lambda block, lanes: constant
    if isinstance(operand, Name):
        if operand.name.startswith("%"):
            return lambda block, lanes: block.specials[operand.name].view(dtype)
        address = np.array([_address_of(operand.name, kernel, what)], dtype)
        return lambda block, lanes: address
    raise PtxError(f"{what}: expected a register, a number or a name")


def _address_of(name: str, kernel: Kernel, what: str) -> int:
    """In the window of shared memory, or among the parameters."""
    if name == "dynamic_shared_bytes":
        return kernel.dynamic_begin
    for known in (kernel.shared, kernel.parameters):
        if name in known:
            return known[name][0]
    raise PtxError(f"{what}: no shared array and no parameter {name}")


def writer(operand: Operand, dtype: np.dtype, what: str, *, widen: bool = False) -> Writer:
    """Takes an operand's new value, which is a `dtype`. widen: a wider register will do."""
    if isinstance(operand, Name) and operand.name == "_":
        return lambda block, lanes, value: None
    if not isinstance(operand, Register):
        raise PtxError(f"{what}: expected a register to write to")
    register = operand
    if not _fits(register, dtype, widen):
        raise PtxError(f"{what}: {register.name} is a {register.dtype}, not a {dtype}")
    return lambda block, lanes, value: block.write(register, value, lanes)
