"""The emulator's twins of sm_90a's instructions: right products are right, and each missing fence or wait is seen."""

from pathlib import Path

import numpy as np
import pytest
from minigan.kernels import KernelError
from minigan.kernels.emulator import options

from minigan.kernel_launch import launch

SOURCE = Path(__file__).resolve().parent / "wgmma.cu"
TF32 = SOURCE.with_name("wgmma_tf32.cu")
SEEDS = (0, 1, 2, 3)
STORED = {"fp16": lambda x: x.astype(np.float16), "bf16": lambda x: (x.view(np.uint32) >> 16).astype(np.uint16)}


def swizzled(rows):
    """(R, 64), or 32 floats -> the 128-byte swizzle: the eight pieces of row r, piece i in place i ^ r % 8."""
    pieces = rows.reshape(len(rows), 8, -1)
    out = np.empty_like(pieces)
    for r, row in enumerate(pieces):
        out[r, np.arange(8) ^ (r % 8)] = row
    return out.reshape(rows.shape)


def product(source=SOURCE, half="bf16", n=64, a_by_lines=0, b_by_lines=0, block=128):
    """C and what it should be. Small integers: products and sums are exact, so the smallest error of layout shows."""
    rng = np.random.default_rng(n)
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((64, 64), (n, 64)))
    a_rows = np.ascontiguousarray(a.T) if a_by_lines else a
    # Blocks of 64 lines, each a row a step.
    b_rows = np.ascontiguousarray(b.reshape(-1, 64, 64).transpose(0, 2, 1)).reshape(-1, 64) if b_by_lines else b
    c = np.full((64, n), np.nan, np.float32)
    args = [STORED[half](a_rows), swizzled(STORED[half](b_rows)), c]
    macros = {"HALF": half, "BN": n, "A_BY_LINES": a_by_lines, "B_BY_LINES": b_by_lines}
    launch(source, "product", 1, block, args, device="emulated", macros=macros, shared_bytes=(64 + n) * 128 + 1024)
    return c, a @ b.T


@pytest.mark.parametrize("half", ["bf16", "fp16"])
@pytest.mark.parametrize("n", [64, 128, 256])
@pytest.mark.parametrize("b_by_lines", [0, 1])
@pytest.mark.parametrize("a_by_lines", [0, 1])
def test_every_layout(a_by_lines, b_by_lines, n, half):
    for seed in SEEDS:
        with options(seed=seed):
            np.testing.assert_array_equal(*product(SOURCE, half, n, a_by_lines, b_by_lines))


def product_tf32(source=TF32, n=64, scale=1.0):
    """C and what it should be; scale: of what is added behind the numbers, beyond TF32's precision."""
    rng = np.random.default_rng(n)
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((64, 64), (n, 64)))
    c = np.full((64, n), np.nan, np.float32)
    tiles = np.concatenate([swizzled(np.ascontiguousarray(b[:, i : i + 32])) for i in (0, 32)])
    args = [a * np.float32(scale), tiles * np.float32(scale), c]
    launch(source, "product", 1, 128, args, device="emulated", macros={"BN": n}, shared_bytes=2 * n * 128 + 1024)
    return c, a @ b.T


@pytest.mark.parametrize("n", [64, 128, 256])
def test_tf32(n):
    for seed in SEEDS:
        with options(seed=seed):
            np.testing.assert_array_equal(*product_tf32(TF32, n))
            # What is beyond 10 bits of the mantissa is not seen: towards zero, in both operands.
            np.testing.assert_array_equal(*product_tf32(TF32, n, 1 + 2.0**-12))


def planted(tmp_path, old, new, source=SOURCE):
    text = source.read_text()
    assert text.count(old) == 1, old
    path = tmp_path / "planted.cu"
    path.write_text(text.replace(old, new))
    return path


# What is changed -> which seeds give wrong numbers: even ones read operands early, odd ones late.
WRONG = {
    "A is not swizzled": ("(piece ^ row % 8) * 8", "piece * 8", SEEDS),
    "the tile does not begin at 1024 bytes": (" + (-shared_address(memory) & 1023)", "", SEEDS),
    "no fence of the copies": ("cp_async_wait_all();\n  fence_proxy_async();", "cp_async_wait_all();", SEEDS),
    "the fence before the wait": (
        "cp_async_wait_all();\n  fence_proxy_async();",
        "fence_proxy_async();\n  cp_async_wait_all();",
        (0, 2),
    ),
    "no wait for the copies": ("  cp_async_wait_all();\n", "", (0, 2)),
    "no barrier behind the copies": ("  __syncthreads();\n", "", None),
    "plain stores are not seen": (
        "cp_async16(a_tile + row * 64 + (piece ^ row % 8) * 8, A + i * 8)",
        "for (int e = 0; e < 8; e++) a_tile[row * 64 + (piece ^ row % 8) * 8 + e] = A[i * 8 + e]",
        SEEDS,
    ),
    "the wrong phase": ("mbarrier_wait(&full, 0)", "mbarrier_wait(&full, 1)", None),
    "wrong stride": ("A_BY_LINES ? 8192 : 16, 1024", "A_BY_LINES ? 8192 : 16, 512", SEEDS),
    "steps too far apart": ("A_BY_LINES ? step * 128 : step * 2", "A_BY_LINES ? step * 128 : step", SEEDS),
    "A by the other majorness": ("<A_BY_LINES, B_BY_LINES>", "<!A_BY_LINES, B_BY_LINES>", SEEDS),
    "accumulators before the wait": (
        "  wgmma_commit();\n  wgmma_wait<0>(sums);",
        "  wgmma_commit();\n  const float early = sums[0];\n  wgmma_wait<0>(sums);\n  sums[0] = early;",
        SEEDS,
    ),
    "operands overwritten before the wait": (
        "  wgmma_commit();\n",
        "  wgmma_commit();\n  __syncthreads();\n  cp_async16(a_tile + t * 8, A);\n  cp_async_wait_all();\n"
        "  fence_proxy_async();\n  __syncthreads();\n",
        (1, 3),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers(name, tmp_path):
    old, new, seeds = WRONG[name]
    path, wrong = planted(tmp_path, old, new), []
    for seed in SEEDS:
        with options(seed=seed):
            try:
                c, expected = product(path)
                seen = not np.array_equal(c, expected)
            except KernelError:  # an mbarrier that is not there yet, a copy that nobody waited for
                assert seeds is None
                seen = True
        wrong += [seed] * seen
    assert wrong == list(seeds) if seeds is not None else wrong


WRONG_TF32 = {
    "rows 8 apart swapped with steps 4 apart": ("e % 2 * 8) * 64", "e / 2 * 8) * 64", SEEDS),
    "warps' rows swapped": ("(t / 32 * 16 + g + e", "(t / 32 * 8 + g + e", SEEDS),
    "steps in pairs, as in 16 bits": ("q + e / 2 * 4]", "q * 2 + e / 2]", SEEDS),
    "steps too far apart": ("b + i * 32", "b + i * 64 % 128", SEEDS),
    "wrong stride": ("16, 1024)", "16, 512)", SEEDS),
    "registers overwritten before the wait": ("group(1, a[1])", "group(1, a[0])", (1, 3)),
    "the tile does not begin at 1024 bytes": (" + (-shared_address(memory) & 1023)", "", SEEDS),
}


@pytest.mark.parametrize("name", WRONG_TF32)
def test_wrong_numbers_in_tf32(name, tmp_path):
    old, new, seeds = WRONG_TF32[name]
    path, wrong = planted(tmp_path, old, new, TF32), []
    for seed in SEEDS:
        with options(seed=seed):
            wrong += [] if np.array_equal(*product_tf32(path)) else [seed]
    assert wrong == list(seeds)


REFUSED_TF32 = {
    "no wgmma_fence() since the last group, so A may not be there yet": (
        "    wgmma_fence(sums, registers);\n",
        "    if (number == 0) wgmma_fence(sums, registers);\n",
    ),
    "ends while a wgmma that nobody waited for is under way": ("wgmma_wait<0>(sums)", "wgmma_wait<1>(sums)"),
    "give different descriptors": ("matrix_descriptor(b + i", "matrix_descriptor(b + t % 2 * 1024 + i"),
    "outside of dynamic shared memory": ("b_tiles + number * BN * 32", "b_tiles + (number + 1) * BN * 32"),
}


@pytest.mark.parametrize("message", REFUSED_TF32)
def test_refused_in_tf32(message, tmp_path):
    path = planted(tmp_path, *REFUSED_TF32[message], TF32)
    with pytest.raises(KernelError) as caught:
        product_tf32(path)
    assert message in str(caught.value)


def test_wrong_lead(tmp_path):
    """The distance of the second 64 lines."""
    path = planted(tmp_path, "B_BY_LINES ? 8192 : 16, 1024));", "B_BY_LINES ? 4096 : 16, 1024));")
    c, expected = product(path, n=128, b_by_lines=1)
    np.testing.assert_array_equal(c[:, :64], expected[:, :64])
    assert not np.array_equal(c[:, 64:], expected[:, 64:])


REFUSED = {
    "no wgmma_fence() since the accumulators were the threads' own": ("  wgmma_fence(sums);\n", ""),
    "ends while a wgmma that nobody waited for is under way": ("  wgmma_wait<0>(sums);\n", ""),
    "ends while a bulk copy that nobody waited for is under way": ("  mbarrier_wait(&full, 0);\n", ""),
    "ends while a wgmma that nobody": ("  wgmma_commit();\n", ""),  # it is in no group
    "no thread has initialised this mbarrier": ("    mbarrier_init(&full, 1);\n", ""),
    "no fence_proxy_async() behind mbarrier_init()": (
        "mbarrier_init(&full, 1);\n    fence_proxy_async();",
        "mbarrier_init(&full, 1);",
    ),
    "threads 0-127 wait at an mbarrier": (
        "mbarrier_arrive_expect(&full, BN * 128)",
        "mbarrier_arrive_expect(&full, BN * 128 + 16)",
    ),
    "0-127 wait at an mbarrier (of": ("mbarrier_init(&full, 1);", "mbarrier_init(&full, 2);"),
    "more than the 1 arrivals of a phase": (
        "mbarrier_arrive_expect(&full, BN * 128);",
        "mbarrier_arrive_expect(&full, BN * 128); mbarrier_arrive_expect(&full, 0);",
    ),
    "addresses and size are no multiples of 16": (
        "copy_bulk(b_tile, B, BN * 128,",
        "copy_bulk(b_tile, B, BN * 128 - 8,",
    ),
    "copy_bulk: the destination does not lie in dynamic shared memory": ("copy_bulk(b_tile, B,", "copy_bulk(C, B,"),
    "expected 8 aligned bytes of shared memory": (
        "mbarrier_init(&full, 1)",
        "mbarrier_init(reinterpret_cast<unsigned long long*>(C), 1)",
    ),
    "give different descriptors": ("shared_address(a_tile) + (A", "shared_address(a_tile) + t * 16 + (A"),
    "of a warpgroup give different descriptors": (
        "shared_address(a_tile) + (A",
        "shared_address(a_tile) + t / 32 * 1024 + (A",
    ),
    "executed different numbers of wgmma": (
        "step < 64; step += 16) {",
        "step < 64; step += 16) {\n    if (t < 32 && step == 48) break;",
    ),
    "outside of dynamic shared memory": ("shared_address(b_tile) + (B", "shared_address(b_tile) + 16384 + (B"),
    "knows the 128-byte swizzle (1) only, not mode 0": (
        "matrix_descriptor(a, A_BY_LINES ? 8192 : 16, 1024)",
        "matrix_descriptor(a, 16, 1024) & ~0ull >> 2",
    ),
    "this does not lie in dynamic shared memory": ("shared_address(a_tile)", "shared_address(&full)"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message, tmp_path):
    path = planted(tmp_path, *REFUSED[message])
    with pytest.raises(KernelError) as caught:
        product(path)
    assert message in str(caught.value)


def test_a_block_without_a_whole_warpgroup(tmp_path):
    with pytest.raises(KernelError, match=r"wgmma\.fence needs warpgroups of 128 threads, the block has 96 threads"):
        product(planted(tmp_path, "i += 128", "i += 96"), block=96)
