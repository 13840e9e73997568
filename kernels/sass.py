"""What the main loops of the convolutions cost, read from their machine code (SASS), and what that allows.

Instructions are counted; cycles are computed from public rates, nothing is measured. Of a multiprocessor (SM):

- FP32 and integers: CUDA C++ Best Practices Guide, "Throughput of Native Arithmetic Instructions"; which pipeline
  executes what: Nsight Compute's Profiling Guide, "Pipelines";
- tensor cores: NVIDIA's white papers on the A100 and the H100, peak rates without sparsity;
- shared memory: 32 banks of 4 bytes a cycle, and one instruction a cycle from each of four schedulers: the CUDA C++
  Programming Guide, "Compute Capabilities".

Latencies, caches and global memory are not in it: a kernel is never faster than this, but it may be slower.
"""

import importlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import nvrtc
from .check import aligned
from .source import KernelError, Source, Variant, load, supports

MISSING = "nvdisasm, NVIDIA's disassembler, is not installed: pip install 'minigan[nvrtc]'"
SCHEDULERS = 4  # of an SM; each starts one instruction of one warp a cycle
WARP = 32

# What an instruction is, by the beginning of its name; the first that fits.
CLASSES = {
    "wait": ("BAR", "DEPBAR", "LDGDEPBAR", "WARPGROUP", "WARPSYNC", "SYNCS", "FENCE", "MEMBAR", "NOP"),
    "multiply": ("HMMA", "HGMMA", "FFMA"),
    "copy": ("LDGSTS", "UBLKCP", "LDG"),
    "shared": ("LDSM", "LDS", "STS"),
    "convert": ("F2F", "F2I", "I2F", "FSETP", "FADD", "FMUL"),
    "uniform": ("U", "R2UR", "S2UR"),
    "branch": ("BRA", "BSSY", "BSYNC", "CALL", "RET", "EXIT", "BREAK", "BMOV"),
}
TENSOR_CORES = ("HMMA", "HGMMA")
OTHERS = "integer"  # addresses, predicates, moves


@dataclass(frozen=True)
class Rates:
    """What an SM does in a cycle: FP32 and integer operations, and multiply-adds of tensor cores with 16 bits."""

    ffma: int
    integer: int
    tensor: int  # TF32: half of it


ARCHITECTURES = ("80", "90a")
RATES = {"80": Rates(64, 64, 1024), "90": Rates(128, 64, 2048)}


@dataclass(frozen=True)
class Loop:
    """The main loop of a kernel: how many instructions a warp executes in one turn, by class; both sides of a branch
    count. pipes: cycles for which one turn of one warp keeps each unit busy, where each scheduler has its share."""

    counts: Counter[str]
    pipes: dict[str, float]

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def bound(self) -> str:
        return max(self.pipes, key=lambda name: self.pipes[name])

    @property
    def share(self) -> float:
        """Of the peak rate of the multiplying unit, what the busiest unit allows."""
        return self.pipes["multiply"] / self.pipes[self.bound]


@dataclass(frozen=True)
class Row:
    source: str
    kernel: str
    variant: str
    arch: str
    loop: Loop


def disassembler() -> str:
    """The path of nvdisasm. Raises NvrtcError where it is missing."""
    try:
        path = importlib.import_module("cuda.pathfinder").find_nvidia_binary_utility("nvdisasm")
    except (ImportError, AttributeError) as error:  # no pathfinder, or one that finds no programs yet
        raise nvrtc.NvrtcError(MISSING) from error
    if path is None:
        raise nvrtc.NvrtcError(MISSING)
    return str(path)


def is_available() -> bool:
    try:
        disassembler()
    except nvrtc.NvrtcError:
        return False
    return nvrtc.is_available()


def disassemble(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([disassembler(), "-c", file.name], capture_output=True, text=True)
    if done.returncode != 0:
        raise nvrtc.NvrtcError(f"nvdisasm failed: {done.stderr.strip()}")
    return done.stdout


def kernels(text: str) -> dict[str, list[str]]:
    """Kernel -> its instructions, without predicates, and labels (".L_x_3:"), from nvdisasm's text."""
    found = {}
    for part in re.split(r"^\.text\.(?=\w)", text, flags=re.MULTILINE)[1:]:
        name = part[: part.index(":")]
        lines = re.findall(r"^(\.L\w+:)|^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][^;]*?) *;", part, re.MULTILINE)
        found[name] = [label or instruction for label, instruction in lines]
    return found


def main_loop(instructions: Sequence[str]) -> list[str] | None:
    """The loop with the most multiplications; of several with the same ones the shortest, which is the innermost."""
    places = {line[:-1]: i for i, line in enumerate(instructions) if line.startswith(".L")}
    best: tuple[int, int] | None = None
    chosen = None
    for end, line in enumerate(instructions):
        target = re.match(r"BRA.*?`\((\.L\w+)\)?", line)
        if target is None or places.get(target[1], end) >= end:
            continue
        loop = [line for line in instructions[places[target[1]] : end + 1] if not line.startswith(".L")]
        if "EXIT" in loop:  # the way back from a wait that was put behind the end
            continue
        by_tensor_cores = any(line.startswith(TENSOR_CORES) for line in loop)
        merit = (sum(kind(line, by_tensor_cores) == "multiply" for line in loop), -len(loop))
        if merit[0] and (best is None or merit > best):
            best, chosen = merit, loop
    return chosen


def kind(instruction: str, by_tensor_cores: bool = False) -> str:
    """Its class. Where tensor cores multiply, FFMA only prepares numbers for them."""
    name = re.split(r"[. ]", instruction, maxsplit=1)[0]
    if name == "FFMA" and by_tensor_cores:
        return "convert"
    return next((kind for kind, beginnings in CLASSES.items() if name.startswith(beginnings)), OTHERS)


def tensor_multiplications(name: str) -> tuple[int, bool]:
    """(multiply-adds for one warp, whether in TF32) of a tensor cores' instruction, e.g. HMMA.1688.F32.TF32."""
    tf32 = "TF32" in name
    if sizes := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", name):  # of four warps together
        m, n, k = map(int, sizes.groups())
        return m * n * k // 4, tf32
    sizes = re.match(r"HMMA\.(16)(8)(8|16)\.", name)
    if sizes is None:
        raise KernelError(f"sass: expected HMMA.1688, HMMA.16816 or HGMMA.MxNxK, got {name}")
    m, n, k = map(int, sizes.groups())
    return m * n * k, tf32


def wavefronts(instruction: str, by_tensor_cores: bool) -> float:
    """Groups of 128 bytes that shared memory serves for one warp's instruction, without bank conflicts.

    Lanes of a warp that multiply by FFMA read many words together; how many does not show, so one group is counted. How
    much a bulk copy (UBLKCP) writes does not show either: nothing is counted.
    """
    name = instruction.split(" ", 1)[0]
    if name.startswith("LDSM"):
        return int(name[-1]) if name[-1].isdigit() else 1
    if sizes := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", name):  # for four warps at once, reads what is no register
        m, n, k = map(int, sizes.groups())
        lines = m + n if re.match(r"\S+ R\d+, gdesc", instruction) else n
        return lines * k * (4 if "TF32" in name else 2) / 128 / 4
    if name.startswith("LDS") and not by_tensor_cores:
        return 1
    if name.startswith(("LDS", "STS", "LDGSTS")):
        return next((bits // 32 for bits in (128, 64) if f".{bits}" in name), 1)
    return 0


def cost(loop: Sequence[str], arch: str) -> Loop:
    """Counts and cycles of the instructions of a loop."""
    rates = RATES.get(arch.rstrip("a"))
    if rates is None:
        raise KernelError(f"sass: expected one of sm_{', sm_'.join(RATES)}, whose rates are known, got sm_{arch}")
    by_tensor_cores = any(instruction.startswith(TENSOR_CORES) for instruction in loop)
    kinds = [kind(instruction, by_tensor_cores) for instruction in loop]
    pipes = dict.fromkeys(("multiply", "issue", "integer", "FP32", "shared"), 0.0)
    pipes["issue"] = len(loop)
    for instruction, of_kind in zip(loop, kinds, strict=True):
        name = instruction.split(" ", 1)[0]
        pipes["shared"] += wavefronts(instruction, by_tensor_cores) * SCHEDULERS
        if name.startswith(TENSOR_CORES):
            products, tf32 = tensor_multiplications(name)
            pipes["multiply"] += products * SCHEDULERS / (rates.tensor / 2 if tf32 else rates.tensor)
        elif name.startswith(("FFMA", "FADD", "FMUL")):
            pipes["FP32"] += WARP * SCHEDULERS / rates.ffma
        elif name.startswith("IMAD"):  # by the FP32 pipeline, at the rate of integers
            pipes["FP32"] += WARP * SCHEDULERS / rates.integer
        elif of_kind in ("integer", "convert"):
            pipes["integer"] += WARP * SCHEDULERS / rates.integer
    if not by_tensor_cores:  # the peak is that of FFMA
        pipes["multiply"] = kinds.count("multiply") * WARP * SCHEDULERS / rates.ffma
    return Loop(Counter(kinds), pipes)


def rows(source: Source, variant: Variant, arch: str) -> Iterator[Row]:
    """The main loops of a source's kernels; those without multiplications have none."""
    options = [*variant.nvrtc_options, "-ftz=true", f"-arch=sm_{arch}"]
    compiled = nvrtc.compile_source(source.text, source.label, options)
    for kernel, instructions in sorted(kernels(disassemble(compiled.cubin)).items()):
        loop = main_loop(instructions)
        if loop is not None:
            yield Row(source.label, kernel, str(variant), arch, cost(loop, arch))


TITLES = ("multiply", "shared", "copy", "convert", OTHERS, "uniform", "wait", "branch")


def table(found: Sequence[Row]) -> list[tuple[str, ...]]:
    """Instructions of one turn of the main loop for one warp, by class; and what that allows, computed."""
    lines: list[tuple[str, ...]] = [
        ("source", "kernel", "variant", "sm", "all", *TITLES, "all/multiply", "busiest", "share of peak")
    ]
    for row in found:
        counts = [row.loop.counts[title] for title in TITLES]
        ratio = f"{row.loop.total / row.loop.counts['multiply']:.1f}"
        numbers = (str(row.loop.total), *map(str, counts), ratio, row.loop.bound, f"{row.loop.share:.0%}")
        lines.append((Path(row.source).name, row.kernel, row.variant, row.arch, *numbers))
    return lines


def chosen(names: Sequence[str], kernel: str | None) -> list[Source]:
    """The convolutions that multiply tiles: from rung 4 on."""
    found = [load(name) for name in names if re.search(r"conv2d/([4-9]|\d\d)_", name)]
    return [source for source in found if kernel is None or kernel in source.kernels]


def main(names: Sequence[str], archs: Sequence[str], kernel: str | None) -> int:
    """Prints the table; the exit status."""
    unknown = [arch for arch in archs if arch.rstrip("a") not in RATES]
    if unknown:
        print(f"--arch: expected some of {', '.join(RATES)}, whose rates are known, got {', '.join(unknown)}")
        return 2
    sources = chosen(names, kernel)
    if not sources:
        print(f"--sass is for the convolutions from rung 4 on; none of them has a kernel {kernel!r}")
        return 2
    try:
        disassembler()
        print(f"NVRTC {nvrtc.version()}. Counted; the last two columns are computed, nothing is measured")
        found = [
            row
            for source in sources
            for variant in source.variants
            for arch in archs
            if supports(arch, variant.requires)
            for row in rows(source, variant, arch)
            if kernel in (None, row.kernel)
        ]
    except nvrtc.NvrtcError as error:
        print(error)
        return 2
    print(aligned(table(found), range(3, len(TITLES) + 6)))
    return 0
