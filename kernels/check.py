"""Compiles every kernel in every variant for every architecture, without a GPU, and shows what each takes.

With an option (common.cuh) it is one variant of a source, so that the options cost little time.

An error fails, and so does a spill of registers to memory that the source's head comment does not explain.
"""

import math
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from . import nvrtc
from .occupancy import MULTIPROCESSORS, Occupancy, occupancy
from .source import Source, Variant, load, supports

ARCHITECTURES = ("75", "80", "86", "89", "90a", "100", "120")
STATIC_SHARED_BYTES = 48 * 1024
MAX_THREADS = 1024  # of a block without __launch_bounds__


@dataclass(frozen=True)
class Row:
    """What one kernel takes, in one variant, on one architecture."""

    source: str
    kernel: str
    variant: str
    arch: str
    registers: int
    shared_bytes: int  # static ones
    stack_bytes: int  # local arrays and spilled registers, in memory
    spill_bytes: int
    explanation: str  # of the spill
    threads: int  # of a block, at most
    dynamic_bytes: int  # of shared memory, asked for at launch

    @property
    def occupancy(self) -> Occupancy:
        return occupancy(self.arch, self.threads, self.registers, self.shared_bytes + self.dynamic_bytes)

    @property
    def failed(self) -> bool:
        return self.spill_bytes > 0 and not self.explanation


@dataclass(frozen=True)
class Failure:
    source: str
    variant: str
    arch: str
    message: str


def parse_log(log: str) -> dict[str, tuple[int, int, int, int]]:
    """Kernel -> (registers, static shared bytes, stack bytes, spilled bytes) from the log of `ptxas -v`."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part[: part.index("'")]
        registers = re.search(r"Used (\d+) registers", part)
        if registers is None:
            raise nvrtc.NvrtcError(f"no register count for kernel {name} in the assembler's log:\n{part}")
        shared = re.search(r"(\d+) bytes smem", part)
        # Device functions that were not inlined report their own stack and spills.
        stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        stack = sum(int(frame) for frame, _, _ in stacks)
        spilled = sum(int(stores) + int(loads) for _, stores, loads in stacks)
        found[name] = (int(registers[1]), int(shared[1]) if shared else 0, stack, spilled)
    return found


def parse_ptx(ptx: str) -> dict[str, tuple[int, bool]]:
    """Kernel -> (the most threads of a block, whether it has dynamic shared memory)."""
    found = {}
    for part in re.split(r"^\s*(?:\.visible )?\.entry (?=\w)", ptx, flags=re.MULTILINE)[1:]:
        name = re.match(r"\w+", part)
        bounds = re.search(r"^\.maxntid (\d+)(?:, (\d+), (\d+))?", part, re.MULTILINE)
        threads = math.prod(int(n or 1) for n in bounds.groups()) if bounds else MAX_THREADS
        if name is not None:
            found[name[0]] = threads, "dynamic_shared_bytes" in part
    return found


def behind_fences(ptx: str) -> list[str]:
    """Instructions between a wgmma.fence and the end of its group that write a register of the group's products.

    The fence orders those before it only. The compiler may move a computation across, where no asm statement stops it.
    """
    found = []
    for group in re.findall(r"wgmma\.fence\.sync\.aligned;(.*?)wgmma\.commit_group", ptx, re.DOTALL):
        products = re.findall(r"wgmma\.mma_async[^;]*", group)
        registers = {
            name for text in products for part in re.findall(r"{[^}]*}", text) for name in part[1:-1].split(", ")
        }
        for line in group.splitlines():
            written = re.match(r"\s*(?:@!?%p\d+ )?(?!wgmma)[a-z][\w.:]*\s+({[^}]*}|%\w+)", line)
            if written and registers & set(written[1].strip("{}").split(", ")):
                found.append(line.strip())
    return found


def check_one(source: Source, variant: Variant, arch: str) -> list[Row] | Failure:
    """Compiles one source in one variant for one architecture."""
    # -ftz=true: CuPy adds it to every compilation.
    options = [*variant.nvrtc_options, "-ftz=true", f"-arch=sm_{arch}", "--ptxas-options=-v"]
    try:
        log, ptx, _ = nvrtc.compile_source(source.text, source.label, options)
        found, entries = parse_log(log), parse_ptx(ptx)
    except nvrtc.NvrtcError as error:
        message = str(error)
        for shared in re.findall(r"(\d+) bytes smem", message):
            if int(shared) > STATIC_SHARED_BYTES:  # the assembler fails without a word about it
                message += f"\n{shared} bytes of static shared memory; above {STATIC_SHARED_BYTES} use DYN_SHARED"
        return Failure(source.label, str(variant), arch, message)
    serialized = re.findall(r"wgmma\.mma_async instructions are serialized.*", log)
    if serialized:  # right, but each one then waits for the one before it
        return Failure(source.label, str(variant), arch, "\n".join(serialized))
    late = behind_fences(ptx)
    if late:
        message = f"behind a wgmma.fence, the compiler writes a register of the products: {late[0]}"
        return Failure(source.label, str(variant), arch, message)
    rows = []
    for name, (registers, shared, stack, spilled) in found.items():
        threads, is_dynamic = entries[name]
        declared = source.dynamic_shared.get(name)
        if is_dynamic and declared is None:
            message = f"kernel {name}: expected a line `// dynamic shared: {name}: bytes` in the head comment"
            return Failure(source.label, str(variant), arch, message)
        dynamic = declared.of(variant) if declared else 0
        reasons = [spill.reason for spill in source.spills if spill.kernel == name and spill.arch in (None, arch)]
        numbers = registers, shared, stack, spilled, "; ".join(reasons), threads, dynamic
        rows.append(Row(source.label, name, str(variant), arch, *numbers))
    return rows


def check(all_sources: Iterable[Source], archs: Sequence[str]) -> tuple[list[Row], list[Failure]]:
    """Everything, in parallel: the compiler is thread-safe, and Python's lock is free while it works."""
    jobs = [
        (source, variant, arch)
        for source in all_sources
        for variant in source.checked
        for arch in archs
        if supports(arch, variant.requires)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: check_one(*job), jobs))
    rows = [row for result in results if not isinstance(result, Failure) for row in result]
    return rows, [result for result in results if isinstance(result, Failure)]


def table(rows: Sequence[Row]) -> str:
    """The rows in columns."""
    titles = ("source", "kernel", "variant", "sm", "registers", "shared", "stack", "spilled", "")
    lines: list[tuple[str, ...]] = [titles]
    for row in rows:
        note = "UNEXPLAINED SPILL" if row.failed else row.explanation if row.spill_bytes else ""
        numbers = (row.registers, row.shared_bytes, row.stack_bytes, row.spill_bytes)
        lines.append((row.source, row.kernel, row.variant, row.arch, *map(str, numbers), note))
    return aligned(lines, range(3, 8))


def occupancy_table(rows: Sequence[Row]) -> str:
    """What a block of each kernel takes, and how many an SM holds."""
    titles = ("source", "kernel", "variant", "sm", "threads", "registers", "shared", "spilled", "blocks", "warps", "")
    lines: list[tuple[str, ...]] = [(*titles, "limited by")]
    for row in rows:
        held = row.occupancy
        numbers = (row.threads, row.registers, row.shared_bytes + row.dynamic_bytes, row.spill_bytes)
        places = (held.blocks, held.warps, f"{held.share:.0%}", held.limit)
        lines.append((row.source, row.kernel, row.variant, row.arch, *map(str, numbers), *map(str, places)))
    return aligned(lines, range(3, 11))


def aligned(lines: Sequence[tuple[str, ...]], right: range) -> str:
    """Lines in columns, some of which are of numbers, and end at the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main(names: Sequence[str], archs: Sequence[str], kernel: str | None, occupancies: bool = False) -> int:
    """Prints the table, of the registers or of the occupancies, and what is wrong; the exit status."""
    unknown = [arch for arch in archs if not re.fullmatch(r"\d+a?", arch)]
    if unknown:
        print(f"--arch: expected e.g. 80,90a, got {', '.join(unknown)}")
        return 2
    unknown = [arch for arch in archs if arch.rstrip("a") not in MULTIPROCESSORS] if occupancies else []
    if unknown:
        print(
            f"--arch: expected some of {', '.join(MULTIPROCESSORS)}, whose limits are known, got {', '.join(unknown)}"
        )
        return 2
    chosen = [source for source in map(load, names) if kernel is None or kernel in source.kernels]
    if not chosen:
        print(f"no source has a kernel {kernel!r}" if kernel else "there are no kernel sources")
        return 2
    try:
        print(f"NVRTC {nvrtc.version()}")
    except nvrtc.NvrtcError as error:
        print(error)
        return 2
    rows, failures = check(chosen, archs)
    rows = [row for row in rows if kernel in (None, row.kernel)]
    print(occupancy_table(rows) if occupancies else table(rows))
    for failure in failures:
        print(f"\n{failure.source} ({failure.variant}) for sm_{failure.arch}: {failure.message}")
    spills = sum(row.failed for row in rows)
    print(f"\n{len(rows)} compiled, {len(failures)} errors, {spills} unexplained spills")
    if spills:
        print("Explain a spill in the source's head comment: // spills: kernel on sm_NN: the reason")
    return 1 if failures or spills else 0
