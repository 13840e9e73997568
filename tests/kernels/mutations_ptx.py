"""Bugs to plant in the assembly of ptx.cuh, which the emulator never sees: its twins take its place. mutate.py plants
them; what NVRTC makes of the kernels is interpreted."""

import test_conv2d_ladder as ladder
import test_ptx_kernels as ptx
from minigan.kernels import KernelError, nvrtc
from minigan.kernels.emulator import options
from mutate import Mutation

FILE = "ptx.cuh"
PREDICATE = '"setp.eq.s32 zeros, %2, 0;\\n"\n      "cp.async.{} [%0], [%1], {}, zeros;'


def predicate(level: str, size: int) -> tuple[str, str]:
    old = PREDICATE.format(f"{level}.shared.global", size)
    return old, old.replace("setp.eq", "setp.ne")


def swapped(name: str, old: str, first: str, second: str) -> Mutation:
    """The first two of these in `old` change places."""
    return Mutation(name, FILE, old, old.replace(first, "\0", 1).replace(second, first, 1).replace("\0", second, 1))


COMMIT, WAIT = 'asm volatile("cp.async.commit_group;" ::: "memory");', '"cp.async.wait_group %0;" ::"n"(pending)'
WGMMA_WAIT = '"wgmma.wait_group.sync.aligned %0;" ::"n"(pending)'
EMPTY = 'asm volatile("" ::: "memory");'

MUTATIONS = [
    swapped("ldmatrix: registers", "{%0, %1, %2, %3}, [%4];", "%0", "%1"),
    Mutation("ldmatrix: .trans dropped", FILE, "m8n8.x4.trans.shared", "m8n8.x4.shared"),
    Mutation("ldmatrix: .trans where none is due", FILE, "m8n8.x4.shared", "m8n8.x4.trans.shared"),
    swapped("mma tf32: A's registers", "{%4, %5, %6, %7}, {%8", "%5", "%6"),
    swapped("mma tf32: B's registers", "{%8, %9}, {%0", "%8", "%9"),
    swapped("mma tf32: B's operands", '"r"(b[0]), "r"(b[1])', "b[0]", "b[1]"),
    swapped("mma tf32: the sums", '"+f"(c[0]), "+f"(c[1])', "c[0]", "c[1]"),
    Mutation("mma bf16: of fp16", FILE, "f32.bf16.bf16.f32", "f32.f16.f16.f32"),
    Mutation("mma fp16: of bf16", FILE, "f32.f16.f16.f32", "f32.bf16.bf16.f32"),
    Mutation("fp16: of bf16", FILE, "cvt.rn.f16.f32", "cvt.rn.bf16.f32"),
    Mutation("cp.async 4: the predicate", FILE, *predicate("ca", 4)),
    Mutation("cp.async 8: the predicate", FILE, *predicate("ca", 8)),
    Mutation("cp.async 16: the predicate", FILE, *predicate("cg", 16)),
    Mutation("cp.async 4: no predicate", FILE, "[%0], [%1], 4, zeros;", "[%0], [%1], 4;"),
    Mutation("cp.async 4: of 8", FILE, "[%0], [%1], 4, zeros;", "[%0], [%1], 8, zeros;"),
    Mutation("cp.async: no commit", FILE, COMMIT, EMPTY),
    Mutation("cp.async: a group too few is waited for", FILE, WAIT, WAIT.replace("pending", "pending + 1")),
    Mutation("mbarrier: two arrivals", FILE, '"r"(count)', '"r"(count + 1)'),
    Mutation("mbarrier: fewer bytes", FILE, 'barrier)), "r"(bytes)', 'barrier)), "r"(bytes / 2)'),
    Mutation("mbarrier: the other parity", FILE, '"r"(parity)', '"r"(parity ^ 1)'),
    Mutation("mbarrier: one try", FILE, "selp.u32 %0, 1, 0, ended", "selp.u32 %0, 1, 1, ended"),
    swapped("bulk: the other address", "[%0], [%1], %2, [%3]", "%0", "%3"),
    Mutation("bulk: half of it", FILE, '"l"(global), "r"(bytes)', '"l"(global), "r"(bytes / 2)'),
    Mutation("no proxy fence", FILE, 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");', EMPTY),
    Mutation("no wgmma.fence", FILE, 'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");', EMPTY),
    Mutation("wgmma: no commit", FILE, 'asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");', EMPTY),
    Mutation("wgmma: a group too few is waited for", FILE, WGMMA_WAIT, WGMMA_WAIT.replace("pending", "pending + 1")),
    Mutation("wgmma: the other swizzle", FILE, "| 1ull << 62", "| 2ull << 62"),
    swapped("wgmma: lead and stride", "encode(lead) << 16 | encode(stride) << 32", "lead", "stride"),
    Mutation("wgmma: A by B's lines", FILE, '", 1, 1, 1, " a_lines ", " b_lines', '", 1, 1, 1, " b_lines ", " a_lines'),
    swapped("wgmma bf16: A and B", 'WGMMA_K16(bf16, "bf16", 32, "64", "%32", "%33"', "%32", "%33"),
    swapped("wgmma fp16: the sums", 'WGMMA_NAMES_32 \\\n  "%0, %1, ', "%0", "%1"),
    swapped("wgmma tf32: A's registers", 'WGMMA_K8(32, "64", "%32", "%33"', "%32", "%33"),
    Mutation("wgmma: copies unfenced", "conv2d/9_wgmma.cu", "fence_proxy_async();          // and wgmma may", "//"),
    Mutation("wgmma: no wait at the end", "conv2d/9_wgmma.cu", "  wgmma_wait<0>(sums);\n", ""),
    Mutation(
        "wgmma: sums not settled",
        FILE,
        'asm volatile("" : "+f"(d[i])::"memory");',
        ";",
        equivalent="NVRTC 12.9 moves nothing across; where a compiler does, --check sees it (behind_fences)",
    ),
    Mutation("wgmma: nothing is added", FILE, 'b ", 1, 1, 1;"', 'b ", 0, 1, 1;"'),
]


def check(files: set[str]) -> None:
    if not nvrtc.is_available():
        raise KernelError(nvrtc.MISSING)
    with options(ptx=ptx.ARCHITECTURE):
        for rung in (7, 6, 8, 9, 11, 5):
            forced = {"rung": rung, "tile": 0}
            deep = rung in (9, 11)
            ptx.check_exact("forward", ptx.WIDE if deep else ptx.SMALL, **forced)
            ptx.check_exact("weight_grad", ptx.DEEP if rung > 6 else ptx.SMALL, **forced)
            ptx.check_exact("input_grad", ptx.STRIDED, **forced)
        for rung in (6, 7, 9):
            what, g = ladder.PASSES["forward"], ptx.STRIDED if rung != 6 else ptx.SINGLE
            arrays = ladder.random_inputs(what, g)
            result = ladder.run(what, g, arrays, rung=rung, tile=0)
            ladder.assert_right(what, g, arrays, result, precision=ladder.RUNGS[rung].precision)
