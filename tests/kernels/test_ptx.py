"""The PTX interpreter itself: arithmetic to the last bit, and each thing that a GPU punishes is an error."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import test_warpgroups
from minigan.kernels import KernelError, nvrtc
from minigan.kernels.emulator import options
from minigan.kernels.ptx_interpreter import PtxError, interpreter, rounding
from minigan.kernels.ptx_interpreter.block import Block
from minigan.kernels.ptx_interpreter.memory import GlobalMemory
from minigan.kernels.ptx_interpreter.text import parse

# ---- a kernel of a few instructions ----------------------------------------------------------------------------------

TEXT = """
.version 8.0
.target sm_90a
.extern .shared .align 128 .b8 dynamic_shared_bytes[];
.visible .entry k(
 .param .u64 k_param_0,
 .param .u64 k_param_1
)
.maxntid 256, 1, 1
{{
 .reg .pred %p<9>;
 .reg .b16 %rs<9>;
 .reg .b32 %r<40>;
 .reg .f32 %f<40>;
 .reg .b64 %rd<20>;
 .reg .f64 %fd<9>;
 .shared .align 8 .b8 words[2048];
 ld.param.u64 %rd1, [k_param_0];
 ld.param.u64 %rd2, [k_param_1];
 cvta.to.global.u64 %rd1, %rd1;
 cvta.to.global.u64 %rd2, %rd2;
 mov.u32 %r1, %tid.x;
 mul.wide.u32 %rd3, %r1, 4;
 add.s64 %rd4, %rd1, %rd3;
 add.s64 %rd5, %rd2, %rd3;
 shl.b32 %r2, %r1, 2;
 mov.u32 %r3, words;
 add.s32 %r3, %r3, %r2;
{body}
 ret;
}}
"""
# Of thread t: %rd4 is the address of x[t], %rd5 that of y[t], %r3 that of words[t].
COPY = "ld.global.u32 %r4, [%rd4];\n"


def execute(body: str, threads: int = 64, dynamic: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x, which counts from 1, and y, which the kernel writes."""
    x, y = np.arange(1, threads + 1, dtype=np.uint32), np.zeros(threads, np.uint32)
    kernel = parse(TEXT.format(body=body), "k")
    steps = [interpreter._step(i, kernel) for i in kernel.instructions]
    parameters = np.array([x.ctypes.data, y.ctypes.data], np.uint64).view(np.uint8)
    sizes = {"ntid": (threads, 1, 1), "nctaid": (1, 1, 1), "ctaid": (0, 0, 0)}
    with np.errstate(all="ignore"):
        Block(kernel, steps, parameters, GlobalMemory([(x, False), (y, True)]), dynamic, sizes).run()
    return x, y


def test_a_copy() -> None:
    x, y = execute(COPY + "st.global.u32 [%rd5], %r4;")
    np.testing.assert_array_equal(y, x)


def test_threads_part_and_meet() -> None:
    """A loop of as many turns as the lane's number; behind it the warp's lanes shuffle together."""
    body = """
     and.b32 %r5, %r1, 31; mov.u32 %r6, 0; mov.u32 %r7, 0;
     $LOOP: setp.ge.s32 %p1, %r7, %r5; @%p1 bra $END;
     add.s32 %r6, %r6, %r7; add.s32 %r7, %r7, 1; bra.uni $LOOP;
     $END: mov.u32 %r8, 31; mov.u32 %r9, -1; mov.u32 %r10, 1;
     shfl.sync.bfly.b32 %r11|%p2, %r6, %r10, %r8, %r9;
     st.global.u32 [%rd5], %r11;"""
    _, y = execute(body)
    lane = np.arange(64) % 32 ^ 1
    np.testing.assert_array_equal(y, lane * (lane - 1) // 2)


def test_the_threads_with_a_predicate_execute() -> None:
    _, y = execute("setp.lt.u32 %p1, %r1, 40; @!%p1 st.global.u32 [%rd5], %r1;")
    np.testing.assert_array_equal(y, np.where(np.arange(64) < 40, 0, np.arange(64)))


EXCHANGE = """
 st.shared.u32 [%r3], %r1;
 {between}
 xor.b32 %r5, %r2, 128; mov.u32 %r6, words; add.s32 %r6, %r6, %r5; ld.shared.u32 %r7, [%r6];
 st.global.u32 [%rd5], %r7;"""
ASYNC = "cp.async.ca.shared.global [%r3], [%rd4], 4;"
READ = "ld.shared.u32 %r7, [%r3]; st.global.u32 [%rd5], %r7;"
MATRIX = "mov.u32 %r4, dynamic_shared_bytes; shl.b32 %r5, %r1, 4; add.s32 %r4, %r4, %r5;"
FILL = MATRIX + "st.shared.v4.u32 [%r4], {%r1, %r1, %r1, %r1}; bar.sync 0;"
LOAD = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r20}, [%r4];"
ARRIVE = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], %r7;"
MBARRIER = f"""mov.u32 %r4, dynamic_shared_bytes; mov.u32 %r5, words; mov.u32 %r6, 1; mov.u32 %r7, 64; mov.u32 %r8, 0;
 setp.ne.s32 %p1, %r1, 0; @%p1 bra $INIT;
 mbarrier.init.shared::cta.b64 [%r5], %r6;
 fence.proxy.async.shared::cta;
 $INIT: bar.sync 0; @%p1 bra $WAIT;
 {ARRIVE}
 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r4], [%rd1], %r7, [%r5];
 $WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r5], %r8; @!%p2 bra $WAIT;
 and.b32 %r9, %r2, 63; add.s32 %r9, %r4, %r9; ld.shared.u32 %r10, [%r9]; st.global.u32 [%rd5], %r10;"""


def test_what_is_right_is_no_error() -> None:
    """What the errors below are made of."""
    lanes = np.arange(64)
    np.testing.assert_array_equal(execute(EXCHANGE.format(between="bar.sync 0;"))[1], lanes ^ 32)
    np.testing.assert_array_equal(
        execute(f"{ASYNC} cp.async.commit_group; cp.async.wait_group 0; {READ}")[1], lanes + 1
    )
    execute(FILL + LOAD, dynamic=1024)
    np.testing.assert_array_equal(execute(MBARRIER, dynamic=64)[1], lanes % 16 + 1)


# (what the error says, what the kernel does)
FORBIDDEN = [
    ("thread 0 reads %r30, which it has never written", "st.global.u32 [%rd5], %r30;"),
    (
        "thread 40 reads %r4, which it has never written",
        "setp.lt.u32 %p1, %r1, 40; @%p1 mov.u32 %r4, 1; st.global.u32 [%rd5], %r4;",
    ),
    ("is no multiple of 8", "ld.global.v2.u32 {%r4, %r5}, [%rd4];"),
    ("lie in none of the launch's arrays", "ld.global.u32 %r4, [%rd4+256];"),
    ("lie in none of the launch's arrays", "ld.global.u32 %r4, [%rd1+-4];"),
    ("lie in none of the launch's arrays", "cp.async.ca.shared.global [%r3], [%rd4+256], 4;"),
    ("signature calls const", "st.global.u32 [%rd4], %r1;"),
    ("two threads write different values to one address", "st.global.u32 [%rd2], %r1;"),
    ("shared address 0x1400 is not in", "ld.shared.u32 %r4, [%r3+4096];"),
    ("reads shared memory that nobody has written, at 0x400", READ),
    ("a race: no barrier between this read and warp 1's write of 0x480", EXCHANGE.format(between="")),
    (
        "a race: no barrier between this write and warp 1's read of 0x400",
        EXCHANGE.format(between="bar.sync 0;") + "st.shared.u32 [%r3], %r1;",
    ),
    ("a race: two threads write to one address", "mov.u32 %r4, words; st.shared.u32 [%r4], %r1;"),
    ("copy may not have landed yet", f"{ASYNC} cp.async.commit_group; cp.async.wait_group 1; {READ}"),
    ("copy may not have landed yet", f"{ASYNC} cp.async.wait_group 0; {READ}"),
    ("to which an asynchronous copy is under way", f"{ASYNC} st.shared.u32 [%r3], %r1;"),
    ("this copy, which nobody waited for", f"{ASYNC} cp.async.commit_group;"),
    ("is no multiple of 16", "cp.async.cg.shared.global [%r3], [%rd4], 16;"),
    (
        "a race: no barrier between this read and warp 1's write of 0x480",
        f"{ASYNC} cp.async.wait_all; xor.b32 %r5, %r2, 128; mov.u32 %r6, words; add.s32 %r6, %r6, %r5; "
        "ld.shared.u32 %r7, [%r6];",
    ),
    ("thread 32 has ended", "setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 0;"),
    (
        "deadlock: .*31 at .*shfl",
        "mov.u32 %r4, 31; mov.u32 %r5, -1; setp.eq.s32 %p1, %r1, 3; @%p1 bra $OUT; "
        "shfl.sync.idx.b32 %r6|%p2, %r1, 0, %r4, %r5; $OUT: ret;",
    ),
    ("is no multiple of 16", FILL + LOAD.replace("[%r4]", "[%r4+4]")),
    ("expected 1 registers", FILL + LOAD.replace("{%r20}", "{%r20, %r21}")),
    ("does not know this instruction", "prmt.b32 %r4, %r1, %r1, 0;"),
    ("does not know this modifier", "add.sat.s32 %r4, %r1, %r1;"),
    ("does not know this type", "add.s128 %r4, %r1, %r1;"),
    ("no such register: %r99", "mov.u32 %r4, %r99;"),
    ("%f1 is a float32, not a uint64", "mov.b64 %rd6, %f1;"),
    ("no fence.proxy.async behind the mbarrier's init", MBARRIER.replace(" fence.proxy.async.shared::cta;\n", "")),
    ("copy may not have landed yet", MBARRIER.replace("mov.u32 %r8, 0;", "mov.u32 %r8, 1;")),
    ("expects 16 bytes more than were copied", MBARRIER.replace("%rd1], %r7", "%rd1], 48")),
    ("a race: no barrier between this read and warp 0's write", MBARRIER.replace("bar.sync 0;", "")),
    ("more than the 1 arrivals of a phase", MBARRIER.replace(" cp.async.bulk", f" {ARRIVE}\n cp.async.bulk")),
    ("deadlock: .*64 at .*try_wait", MBARRIER.replace(f" {ARRIVE}\n", "")),
    ("the source, .* is no multiple of 16", MBARRIER.replace("[%rd1]", "[%rd1+4]")),
]


@pytest.mark.parametrize(("message", "body"), FORBIDDEN)
def test_what_a_gpu_punishes(message: str, body: str) -> None:
    with pytest.raises(PtxError, match=message):
        execute(body, dynamic=1024)


def test_errors_say_where_and_what() -> None:
    with pytest.raises(PtxError, match=r"^k, PTX line \d+: ld.shared.u32 %r7, \[%r3\]: reads"):
        execute(READ)


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def random_floats(dtype: str, seed: int) -> np.ndarray:
    """Of all sizes that leave products and sums finite, and many that meet half way between two numbers."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(3000) * 2.0 ** rng.integers(-20, 20, 3000)
    x[::2] = np.rint(x[::2] * 8) / 8 + 2.0 ** -rng.integers(1, 23, 1500)
    return x.astype(dtype)


def nearest(exact: Fraction, dtype: str) -> float:
    """To nearest even. Double by Python; float by comparing the neighbours of that."""
    if dtype == "float64":
        return float(exact)
    around = np.float32(float(exact))
    candidates = [np.nextafter(around, np.float32(-np.inf)), around, np.nextafter(around, np.float32(np.inf))]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.uint32)) & 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fma_rounds_once(dtype: str) -> None:
    """The last products lie half way between two numbers, and what decides is beyond all bits of a double."""
    real, half = np.dtype(dtype).type, {"float32": (12, 12), "float64": (26, 27)}[dtype]
    first, second = (np.full(4, 1 + 2.0**-bits, dtype) for bits in half)
    a, b = (np.append(random_floats(dtype, seed), ties) for seed, ties in ((0, first), (1, second)))
    tiny = np.array([2.0**-110, -(2.0**-110), 0, 2.0**-90], dtype)
    for c in (random_floats(dtype, 2), (a * b)[:-4] * real(-1), (a * b)[:-4] * real(2.0**20)):
        c = np.append(c, tiny)
        sums = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
        expected = [nearest(exact, dtype) for exact in sums]
        np.testing.assert_array_equal(rounding.fma(a, b, c), np.array(expected, dtype))


def test_directed_roundings() -> None:
    a, b = random_floats("float32", 3), random_floats("float32", 4)
    towards_zero, down = rounding.add(a, b, "rz"), rounding.fma(a, b, b, "rm")
    for x, y, z, d in zip(a, b, towards_zero, down, strict=True):
        total, product = (
            Fraction(float(x)) + Fraction(float(y)),
            Fraction(float(x)) * Fraction(float(y)) + Fraction(float(y)),
        )
        away = np.nextafter(z, np.float32(math.copysign(np.inf, total)))
        assert abs(Fraction(float(z))) <= abs(total)
        assert abs(total) < abs(Fraction(float(away)))
        assert Fraction(float(d)) <= product < Fraction(float(np.nextafter(d, np.float32(np.inf))))


def test_formats() -> None:
    x = np.array(
        [1.0, -1.0009765625, 3.0000002, 65519.996, 65520.0, np.inf, -0.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8], np.float32
    )
    with np.errstate(over="ignore"):
        fp16 = rounding.to_fp16(x)
    np.testing.assert_array_equal(
        rounding.widen(fp16, "f16"), [1, -1.0009765625, 3, 65504, np.inf, np.inf, 0, 1 + 2.0**-8, 1 + 3 * 2.0**-8]
    )
    np.testing.assert_array_equal(
        rounding.widen(rounding.to_bf16(x), "bf16")[[0, 1, 2, 5, 7, 8]], [1, -1, 3, np.inf, 1, 1 + 2.0**-6]
    )
    tie = np.array([1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-12], np.float32)
    np.testing.assert_array_equal(rounding.to_tf32(tie).view(np.float32), [1 + 2.0**-10, -1 - 2.0**-10, 1])
    assert all(
        np.isnan(rounding.widen(f(np.array([np.nan], np.float32)), k))[0]
        for f, k in ((rounding.to_fp16, "f16"), (rounding.to_bf16, "bf16"))
    )


def test_denormals_are_flushed() -> None:
    tiny = np.float32(2.0**-126)
    x = np.array([tiny, tiny / 2, -tiny / 2, 0, -0.0, np.nan, np.inf], np.float32)
    flushed = rounding.flush(x)
    np.testing.assert_array_equal(flushed, [tiny, 0, 0, 0, 0, np.nan, np.inf])
    np.testing.assert_array_equal(np.signbit(flushed)[:5], [False, False, True, False, True])


INTEGERS = {
    "div.s32 %r4, %r20, 7;": lambda t: int((t - 32) / 7),
    "rem.s32 %r4, %r20, 7;": lambda t: int(math.fmod(t - 32, 7)),
    "mul.hi.s32 %r4, %r20, 1717986919;": lambda t: (t - 32) * 1717986919 >> 32,
    "shr.s32 %r4, %r20, 40;": lambda t: -1 if t < 32 else 0,
    "shl.b32 %r4, %r20, 32;": lambda t: 0,
    "bfi.b32 %r4, %r1, %r20, 8, 4;": lambda t: (t - 32) & ~0xF00 | (t & 15) << 8,
    "clz.b32 %r4, %r1;": lambda t: 32 - t.bit_length(),
    "mad.lo.s32 %r4, %r20, 3, %r1;": lambda t: 3 * (t - 32) + t,
    "cvt.rn.f32.s32 %f1, %r20; cvt.rzi.s32.f32 %r4, %f1;": lambda t: t - 32,
    "mov.b32 {%rs1, %rs2}, %r20; mov.b32 %r4, {%rs2, %rs1};": lambda t: (
        (v := t - 32 & 0xFFFFFFFF) >> 16 | (v & 0xFFFF) << 16
    ),
}


@pytest.mark.parametrize("body", INTEGERS)
def test_integers(body: str) -> None:
    _, y = execute(f"sub.s32 %r20, %r1, 32; {body} st.global.u32 [%rd5], %r4;")
    np.testing.assert_array_equal(y, [INTEGERS[body](t) & 0xFFFFFFFF for t in range(64)])


# ---- planted bugs ----------------------------------------------------------------------------------------------------

# The emulator sees all of these. What NVRTC makes of three of them is right.
HARMLESS = {
    "plain stores are not seen": "behind a fence of the thread that stored, they are",
    "accumulators before the wait": "the compiler copies the accumulator behind the wait",
    "registers overwritten before the wait": "PTX has registers without number: each group of A has its own",
}
PLANTED = [(name, *change[:2], False) for name, change in test_warpgroups.WRONG.items()]
PLANTED += [(name, *change[:2], True) for name, change in test_warpgroups.WRONG_TF32.items()]


@pytest.mark.skipif(not nvrtc.is_available(), reason=nvrtc.MISSING)
@pytest.mark.parametrize(("name", "old", "new", "tf32"), PLANTED, ids=[p[0] for p in PLANTED])
def test_bugs_in_products_of_warpgroups(name: str, old: str, new: str, tf32: bool, tmp_path: Path) -> None:
    source = test_warpgroups.TF32 if tf32 else test_warpgroups.SOURCE
    path = test_warpgroups.planted(tmp_path, old, new, source)
    with options(ptx=80):
        try:
            found, expected = test_warpgroups.product_tf32(path) if tf32 else test_warpgroups.product(path)
        except KernelError:
            assert name not in HARMLESS
            return
    assert np.array_equal(found, expected) == (name in HARMLESS)
