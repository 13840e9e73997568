"""Global and shared memory as bytes, and what is forbidden there.

Everywhere: addresses that are no multiple of the access's size, or outside of what there is. In shared memory besides:

- bytes that nobody has written, or that an asynchronous copy has not delivered yet, which may not be read;
- races: of two warps that touch a byte between two barriers, none may write it. (Lanes of one warp are not told apart.)
- wgmma and bulk copies have a path of their own, the asynchronous proxy: what threads wrote they see only behind a
  fence.proxy.async of those threads.
"""

import ctypes
from collections.abc import Sequence

import numpy as np

from .text import PtxError

Array = np.ndarray
UNWRITTEN, WRITTEN, ON_ITS_WAY = 0, 1, 2  # states of a byte
NOBODY, MANY = -1, -2


def check_alignment(addresses: Array, size: int, what: str) -> None:
    wrong = addresses % addresses.dtype.type(size) != 0
    if wrong.any():
        raise PtxError(f"{what}: address {int(addresses[wrong][0]):#x} is no multiple of {size}")


class GlobalMemory:
    """The arrays that a launch may reach: (array, whether it may be written)."""

    def __init__(self, arrays: Sequence[tuple[Array, bool]]) -> None:
        merged: list[list[int]] = []  # begin, end, writable; views of the same memory become one
        for begin, size, writable in sorted((a.ctypes.data, a.nbytes, w) for a, w in arrays if a.nbytes):
            if merged and begin < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], begin + size)
                merged[-1][2] |= writable
            else:
                merged.append([begin, begin + size, int(writable)])
        self.begins = np.array([begin for begin, _, _ in merged], np.uint64)
        self.ends = np.array([end for _, end, _ in merged], np.uint64)
        self.writable = np.array([writable for _, _, writable in merged], bool)
        self.bytes = [
            np.ctypeslib.as_array((ctypes.c_ubyte * (end - begin)).from_address(begin)) for begin, end, _ in merged
        ]

    def _places(self, addresses: Array, size: int, what: str) -> list[tuple[int, Array, Array]]:
        """(array's number, which of the accesses go there, (n, size) positions in it)"""
        check_alignment(addresses, size, what)
        index = np.searchsorted(self.begins, addresses, side="right") - 1
        outside = index < 0
        if len(self.begins):
            outside |= addresses + np.uint64(size) > self.ends[index]
        if outside.any():
            first, number = int(addresses[outside][0]), int(index[outside][0])
            near = f"; the nearest array ends at {int(self.ends[number]):#x}" if number >= 0 else ""
            raise PtxError(
                f"{what}: {size} bytes at {first:#x} lie in none of the launch's arrays{near}. "
                "(Arrays whose addresses travel in a struct have to be named: reachable().)"
            )
        found = []
        for number in np.unique(index):
            chosen = np.flatnonzero(index == number)
            offsets = (addresses[chosen] - self.begins[number]).astype(np.int64)
            found.append((int(number), chosen, offsets[:, None] + np.arange(size)))
        return found

    def read(self, addresses: Array, size: int, what: str) -> Array:
        """(n, size) bytes."""
        data = np.empty((len(addresses), size), np.uint8)
        for number, chosen, positions in self._places(addresses, size, what):
            data[chosen] = self.bytes[number][positions]
        return data

    def write(self, addresses: Array, data: Array, what: str) -> None:
        for number, chosen, positions in self._places(addresses, data.shape[1], what):
            if not self.writable[number]:
                raise PtxError(f"{what}: writes to an array that the kernel's signature calls const")
            self.bytes[number][positions] = data[chosen]
            if not np.array_equal(self.bytes[number][positions], data[chosen]):
                raise PtxError(f"{what}: two threads write different values to one address")


class SharedMemory:
    """Of one block. Threads are named by their numbers; a warp is number // 32."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        size = end - begin
        self.data = np.zeros(size, np.uint8)
        self.state = np.full(size, UNWRITTEN, np.uint8)
        self.epoch = 0  # barriers that were passed
        self.writer, self.reader = (
            np.full(size, NOBODY, np.int16),
            np.full(size, NOBODY, np.int16),
        )  # the last one's warp
        self.write_epoch, self.read_epoch = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
        self.unfenced = np.full(
            size, NOBODY, np.int16
        )  # the thread whose write the asynchronous proxy does not see yet

    def _positions(self, addresses: Array, size: int, what: str) -> Array:
        check_alignment(addresses, size, what)
        return self._within(addresses.astype(np.int64)[:, None] + np.arange(size), what)

    def _within(self, places: Array, what: str) -> Array:
        outside = (places < self.begin) | (places >= self.end)
        if outside.any():
            raise PtxError(
                f"{what}: shared address {int(places[outside][0]):#x} is not in {self.begin:#x} to {self.end:#x}"
            )
        return places - self.begin

    def _check_readable(self, at: Array, what: str) -> None:
        state = self.state[at]
        if (state == ON_ITS_WAY).any():
            raise PtxError(f"{what}: reads shared memory where an asynchronous copy may not have landed yet")
        if (state == UNWRITTEN).any():
            place = self.begin + int(at[state == UNWRITTEN].flat[0])
            raise PtxError(f"{what}: reads shared memory that nobody has written, at {place:#x}")

    def _check_race(self, at: Array, warps: Array, writes: bool, what: str) -> None:
        raced = (self.write_epoch[at] == self.epoch) & (self.writer[at] != warps)
        if writes:
            raced |= (self.read_epoch[at] == self.epoch) & (self.reader[at] != warps)
        if raced.any():
            first = np.unravel_index(int(np.flatnonzero(raced)[0]), raced.shape)
            mine, place = int(np.broadcast_to(warps, raced.shape)[first]), int(at[first])
            wrote = self.write_epoch[place] == self.epoch and self.writer[place] != mine
            other = int((self.writer if wrote else self.reader)[place])
            raise PtxError(
                f"{what}: a race: no barrier between this {'write' if writes else 'read'} and warp "
                f"{other if other >= 0 else 'several'}'s {'write' if wrote else 'read'} of {self.begin + place:#x}"
            )

    def read(self, threads: Array, addresses: Array, size: int, what: str) -> Array:
        """(n, size) bytes."""
        at, warps = self._positions(addresses, size, what), (threads // 32)[:, None]
        self._check_readable(at, what)
        self._check_race(at, warps, False, what)
        before = np.where(self.read_epoch[at] == self.epoch, self.reader[at], warps)
        after = np.where(before == warps, warps, MANY)
        self.reader[at] = after
        self.reader[at[self.reader[at] != after]] = MANY
        self.read_epoch[at] = self.epoch
        return self.data[at]

    def write(self, threads: Array, addresses: Array, data: Array, what: str) -> None:
        at, warps = self._positions(addresses, data.shape[1], what), (threads // 32)[:, None]
        self._check_free(at, what)
        self._check_race(at, warps, True, what)
        self._store(at, threads, data, what)

    def _check_free(self, at: Array, what: str) -> None:
        if (self.state[at] == ON_ITS_WAY).any():
            raise PtxError(f"{what}: writes shared memory to which an asynchronous copy is under way")

    def _store(self, at: Array, threads: Array, data: Array, what: str) -> None:
        warps = np.broadcast_to((threads // 32)[:, None], at.shape)
        self.data[at] = data
        self.writer[at] = warps
        if not (np.array_equal(self.data[at], data) and np.array_equal(self.writer[at], warps)):
            raise PtxError(f"{what}: a race: two threads write to one address")
        self.state[at] = WRITTEN
        self.write_epoch[at] = self.epoch
        self.unfenced[at] = np.broadcast_to(threads[:, None], at.shape)

    # ---- asynchronous copies ----

    def expect(self, threads: Array, addresses: Array, size: int, alignment: int, what: str, *, bulk: bool) -> None:
        """A copy to there begins; it counts as a write from now on, and as one when it lands."""
        check_alignment(addresses, alignment, what)
        at = self._within(addresses.astype(np.int64)[:, None] + np.arange(size), what)
        self._check_free(at, what)
        self._check_race(at, (threads // 32)[:, None], True, what)
        if bulk and (self.unfenced[at] != NOBODY).any():
            raise PtxError(f"{what}: no fence.proxy.async behind a thread's write to its destination")
        self.state[at] = ON_ITS_WAY

    def land(self, threads: Array, addresses: Array, data: Array, what: str) -> None:
        """What threads copied by cp.async."""
        self._store(addresses.astype(np.int64)[:, None] + np.arange(data.shape[1]) - self.begin, threads, data, what)

    def land_bulk(self, address: int, data: Array) -> None:
        """By the asynchronous proxy: seen by whoever has waited for the mbarrier."""
        at = slice(address - self.begin, address - self.begin + len(data))
        self.data[at] = data
        self.state[at] = WRITTEN
        self.write_epoch[at] = -1
        self.unfenced[at] = NOBODY

    def fence(self, threads: Array) -> None:
        self.unfenced[np.isin(self.unfenced, threads)] = NOBODY

    def read_async(self, places: Array, what: str) -> Array:
        """By a whole warpgroup, through the asynchronous proxy: the bytes at these addresses, of any shape."""
        at = self._within(places, what)
        self._check_readable(at, what)
        if (self.unfenced[at] != NOBODY).any():
            thread = int(self.unfenced[at].max())
            raise PtxError(f"{what}: no fence.proxy.async behind what thread {thread} wrote to its operand")
        if (self.write_epoch[at] == self.epoch).any():
            raise PtxError(f"{what}: a race: no barrier between this read by a warpgroup and a thread's write")
        self.reader[at], self.read_epoch[at] = MANY, self.epoch
        return self.data[at]
