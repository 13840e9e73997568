"""How many warps of a kernel a multiprocessor (SM) holds: what each may take, and how it is handed out.

The limits are those of the table "Technical specifications per compute capability" in NVIDIA's CUDA programming guide,
the units those of its occupancy calculator (cuda_occupancy.h). Nothing is measured.
"""

from dataclasses import dataclass

REGISTERS = 65536  # of every SM from sm_75 on, a quarter in each of its partitions
PARTITIONS = 4
REGISTER_UNIT = 256  # registers are handed out to a warp in such units
KIB = 1024


@dataclass(frozen=True)
class Multiprocessor:
    """What an SM has. reserved_bytes: shared memory that each block gives to the system."""

    warps: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int = KIB
    shared_unit: int = 128


MULTIPROCESSORS = {
    "75": Multiprocessor(32, 16, 64 * KIB, reserved_bytes=0, shared_unit=256),
    "80": Multiprocessor(64, 32, 164 * KIB),
    "86": Multiprocessor(48, 16, 100 * KIB),
    "89": Multiprocessor(48, 24, 100 * KIB),
    "90": Multiprocessor(64, 32, 228 * KIB),
    "100": Multiprocessor(64, 32, 228 * KIB),
    "120": Multiprocessor(48, 24, 100 * KIB),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that an SM holds at once, the share of its places that is, and the first limit that decides."""

    blocks: int
    warps: int
    share: float
    limit: str


def occupancy(arch: str, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Of blocks of so many threads with so many registers each, and so much shared memory, static and dynamic.

    Raises ValueError for an architecture whose limits are not known here.
    """
    sm = MULTIPROCESSORS.get(arch.rstrip("a"))
    if sm is None:
        raise ValueError(f"occupancy: expected one of sm_{', sm_'.join(MULTIPROCESSORS)}, got sm_{arch}")
    warps = -(-threads // 32)
    register_units = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    # A warp's registers lie in one partition.
    by_registers = REGISTERS // PARTITIONS // register_units * PARTITIONS // warps if registers else sm.blocks
    taken = -(-(shared_bytes + sm.reserved_bytes) // sm.shared_unit) * sm.shared_unit
    limits = {
        "blocks": sm.blocks,
        "warps": sm.warps // warps,
        "registers": by_registers,
        "shared memory": sm.shared_bytes // taken if shared_bytes else sm.blocks,
    }
    limit = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limit], limits[limit] * warps, limits[limit] * warps / sm.warps, limit)
