"""The emulator: CUDA kernels on the CPU give the right numbers, and wrong kernels are caught."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from minigan.kernels import KernelError, load
from minigan.kernels.emulator import builder, options, sanitizer_environment

from minigan.kernel_launch import launch

HERE = Path(__file__).resolve().parent
SIMT, TENSOR, WARPS, BUGS = (HERE / f"{name}.cu" for name in ("gemm_simt", "gemm_tensor", "warps", "bugs"))
TF32_SHARED = 3 * 2 * 64 * 20 * 4
SEEDS = (0, 1, 2, 3)


def run(source, kernel, grid, block, args, **settings):
    launch(source, kernel, grid, block, args, device="emulated", **settings)


def nans(*shape, dtype=np.float32):
    return np.full(shape, np.nan, dtype)


def sgemm(a, b, source=SIMT):
    (m, k), n = a.shape, b.shape[1]
    c = nans(m, n, dtype=a.dtype)
    real = {"float32": "float", "float64": "double"}[a.dtype.name]
    grid = (-(-n // 64), -(-m // 64))
    run(source, "sgemm_tiled", grid, (16, 16), [a, b, c, m, n, k], macros={"REAL": real})
    return c


def gemm_tf32(a, b, source=TENSOR):
    (m, k), n = a.shape, b.shape[1]
    c = nans(m, n)
    args = [a, np.ascontiguousarray(b.T), c, m, n, k]
    run(source, "gemm_tf32", (-(-n // 64), -(-m // 64)), 128, args, shared_bytes=TF32_SHARED)
    return c


def matrices(m, n, k, dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)


def round_mantissa(x, bits, ties):
    """x (float32) with `bits` mantissa bits, by float64 arithmetic and not by bit tricks."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scaled = mantissa * 2.0 ** (bits + 1)
    whole = np.rint(scaled) if ties == "even" else np.trunc(scaled + np.copysign(0.5, scaled))
    return np.ldexp(whole, exponent - bits - 1)


# ---- right kernels, right numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (19, 33, 5), (64, 64, 64), (111, 70, 52)], ids=str)
def test_tiled_gemm(sizes, dtype):
    a, b = matrices(*sizes, dtype)
    exact = a.astype(np.float64) @ b
    assert np.linalg.norm(sgemm(a, b) - exact) <= 8 * np.finfo(dtype).eps * np.linalg.norm(exact)


@pytest.mark.parametrize("sizes", [(1, 1, 4), (19, 33, 8), (64, 64, 16), (111, 70, 52)], ids=str)
def test_tf32_gemm(sizes):
    a, b = matrices(*sizes)
    exact = round_mantissa(a, 10, "away") @ round_mantissa(b, 10, "away")
    assert np.linalg.norm(gemm_tf32(a, b) - exact) <= 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("fibers", ["fast", "ucontext"])
def test_every_order_gives_identical_results(fibers):
    a, b = matrices(111, 150, 52)
    for product in (sgemm, gemm_tf32):
        results = []
        for seed in SEEDS:
            with options(seed=seed, ucontext=fibers == "ucontext"):
                results.append(product(a, b))
        assert all(np.array_equal(results[0], result) for result in results[1:])


@pytest.mark.parametrize("kernel", ["tile_bf16", "tile_fp16"])
def test_sixteen_bit_products_are_exact(kernel):
    # Small integers: every product and sum is exact in both formats, so the smallest error of layout shows.
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, 16), (16, 8)))
    c = nans(16, 8)
    run(TENSOR, kernel, 1, 32, [a, b, c])
    np.testing.assert_array_equal(c, a @ b)


def test_ldmatrix():
    x = np.random.default_rng(2).integers(0, 2**16, (32, 8)).astype(np.uint16)
    y = np.zeros((14, 32), np.uint32)
    run(TENSOR, "all_ldmatrix", 1, 32, [x, y])
    matrices_ = x.reshape(4, 8, 8)
    as_is = matrices_.reshape(4, 32, 2).copy().view(np.uint32)[..., 0]
    transposed = matrices_.transpose(0, 2, 1).reshape(4, 32, 2).copy().view(np.uint32)[..., 0]
    parts = [part[:count] for part in (as_is, transposed) for count in (1, 2, 4)]
    np.testing.assert_array_equal(y, np.concatenate(parts))


def test_number_formats():
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, 20000).astype(np.uint32)
    ties = (bits & 0xFFFF0000) | 0x8000, (bits & 0xFFFFE000) | 0x1000
    special = np.array([0, -0.0, np.inf, -np.inf, 1, 65504, 65519.996, 65520, 2.0**-24, 2.0**-25, 1e-40], np.float32)
    x = np.concatenate([bits.view(np.float32), *(t.view(np.float32) for t in ties), special])
    x = np.concatenate([x, np.float32(2.0) ** rng.uniform(-30, 18, 20000).astype(np.float32)])
    n = x.size
    tf32, bf16 = np.zeros(n, np.uint32), np.zeros(n, np.uint16)
    fp16, bf16_back, fp16_back = np.zeros(n, np.float16), nans(n), nans(n)
    run(TENSOR, "round_numbers", -(-n // 256), 256, [x, tf32, bf16, fp16, bf16_back, fp16_back, n])

    normal = np.abs(x) >= np.finfo(np.float32).tiny  # the reference has no denormals
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(
            tf32.view(np.float32)[normal], round_mantissa(x, 10, "away")[normal].astype(np.float32)
        )
        np.testing.assert_array_equal(bf16_back[normal], round_mantissa(x, 7, "even")[normal].astype(np.float32))
        np.testing.assert_array_equal(fp16, x.astype(np.float16))
    np.testing.assert_array_equal(fp16_back, fp16.astype(np.float32))
    np.testing.assert_array_equal(bf16_back.view(np.uint32) >> 16, bf16)
    assert np.isnan(x).any()
    assert np.isnan(tf32.view(np.float32)[np.isnan(x)]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_asynchronous_copies(seed):
    x, y = np.arange(1, 97, dtype=np.float32), nans(96)
    with options(seed=seed):
        run(TENSOR, "copy_all_sizes", 1, 8, [x, y, 5])
    expected = x.copy()
    expected[20:32] = expected[42:48] = expected[69:72] = 0  # those of threads 5 to 7
    np.testing.assert_array_equal(np.concatenate([y[:48], y[64:72]]), np.concatenate([expected[:48], expected[64:72]]))
    assert np.isnan(y[48:64]).all()
    assert np.isnan(y[72:]).all()


def test_warp_sum():
    x, y = np.random.default_rng(4).standard_normal(320).astype(np.float32), nans(10)
    run(WARPS, "sum_warps", 10, 32, [x, y])
    np.testing.assert_allclose(y, x.reshape(10, 32).sum(1, dtype=np.float64), rtol=1e-5)


def test_collectives():
    lane = np.arange(32)
    x = np.random.default_rng(5).standard_normal(32) * 100
    y = nans(9, 32, dtype=np.float64)
    run(WARPS, "collectives", 1, 32, [x, y])
    eights = np.where(lane % 8 + 2 < 8, lane + 2, lane).clip(max=31)
    expected = [
        x[np.full(32, 5)],
        x[np.where(lane < 3, lane, lane - 3)],
        x[np.where(lane > 28, lane, lane + 3).clip(max=31)],
        x[lane ^ 6],
        x.astype(np.float32)[lane ^ 9],
        np.trunc(x)[eights],
        np.full(32, sum(1 << int(i) for i in lane[x > 0])),
        lane < 16,
        np.ones(32),
    ]
    np.testing.assert_array_equal(y, np.array(expected, np.float64))


def test_block_votes():
    x = np.random.default_rng(6).standard_normal(200).astype(np.float32)
    for values, every in ((x, 0), (np.abs(x), 1)):
        y = np.zeros(4, np.int32)
        run(WARPS, "block_votes", 1, 200, [values, y])
        assert y.tolist() == [(values > 0).sum(), 1, every, (values > 0).sum()]


def test_atomics():
    n = 1000
    i, u = np.zeros(4, np.int32), np.zeros(1, np.uint32)
    f, d, l8 = np.zeros(2, np.float32), np.zeros(1), np.zeros(1, np.uint64)
    run(WARPS, "atomics", 4, 256, [i, u, f, d, l8, n])
    assert i.tolist() == [n * (n - 1) // 2, n - 1, 1 - n, 1]
    assert (u[0], f[0], f[1], d[0], l8[0]) == (n, n / 2, 3, n / 4, 7)


@pytest.mark.parametrize("seed", SEEDS)
def test_last_block_sums(seed):
    x = np.arange(50, dtype=np.float32)
    partial, finished, y = nans(50), np.zeros(1, np.uint32), nans(1)
    with options(seed=seed):
        run(WARPS, "last_block_sums", 50, 64, [x, partial, finished, y])
    assert y[0] == 2 * x.sum()


def test_integer_intrinsics():
    x = np.random.default_rng(7).integers(0, 2**32, 60).astype(np.uint32)
    x[:4] = 0, 1, 2**31, 2**32 - 1
    y = np.zeros((6, 60), np.uint32)
    run(WARPS, "integers", 1, 64, [x, y, 60])
    text = [f"{int(v):032b}" for v in x]
    np.testing.assert_array_equal(y[0], x.astype(np.uint64) * 0xD2511F53 >> np.uint64(32))
    assert y[1].tolist() == [t.count("1") for t in text]
    assert y[2].tolist() == [int(t[::-1], 2) for t in text]
    assert y[3].tolist() == [32 - len(t.lstrip("0")) for t in text]
    np.testing.assert_allclose(y[4].view(np.float32), 1 / np.sqrt(x.astype(np.float64) + 1), rtol=1e-6)
    assert y[5].tolist() == [t[::-1].find("1") + 1 for t in text]


@pytest.mark.parametrize("bias", [None, 2.0])
def test_struct_by_value_and_null_pointer(bias):
    rows, columns = 7, 5
    x = np.arange(rows * columns * 4, dtype=np.float32)
    y = nans(3 + x.size)
    shape = {"rows": rows, "columns": columns, "offset": 3, "scale": 0.5}
    bias_array = None if bias is None else np.array([bias], np.float32)
    run(WARPS, "by_struct", (2, 4), (4, 4, 2), [x, y, bias_array, shape])
    assert np.isnan(y[:3]).all()
    np.testing.assert_array_equal(y[3:], x / 2 + (bias or 0))


# ---- wrong kernels are caught ----------------------------------------------------------------------------------------


def results_by_seed(kernel, block, *arrays, grid=1):
    results = []
    for seed in SEEDS:
        y = nans(block)
        with options(seed=seed):
            run(BUGS, kernel, grid, block, [*arrays, y])
        results.append(y)
    return results


def test_shared_memory_is_poisoned():
    y = np.zeros(32, np.float32)
    for _ in range(2):
        run(BUGS, "unwritten", 3, 32, [y], shared_bytes=128)
        assert np.isnan(y).all()


def test_missing_barrier_is_seen():
    x = np.arange(256, dtype=np.float32)
    for y in results_by_seed("racy", 256, x):
        assert not np.array_equal(y, np.roll(x, -128))


def test_missing_syncwarp_is_seen():
    x = np.arange(32, dtype=np.float32)
    assert any(not np.array_equal(y, np.roll(x, 1)) for y in results_by_seed("racy_warp", 32, x))


def test_racing_blocks_are_seen():
    assert len({y[0] for y in results_by_seed("racy_blocks", 1, grid=100)}) > 1


def test_copy_into_a_slot_still_read_is_seen():
    x = np.arange(512, dtype=np.float32)
    expected = x[:256] + x[255::-1] + x[:255:-1]
    right = [np.array_equal(y, expected) for y in results_by_seed("early_copy", 256, x)]
    assert right == [seed % 2 == 0 for seed in SEEDS]  # odd seeds let copies land at once


MUTANTS = {
    "the wait is too lax": ("cp_async_wait<STAGES - 2>()", "cp_async_wait<STAGES - 1>()"),
    "no barrier behind the wait": (
        "cp_async_wait<STAGES - 2>();\n    __syncthreads();",
        "cp_async_wait<STAGES - 2>();",
    ),
    "the wrong slot is filled": ("load((step + STAGES - 1) % STAGES,", "load((step + STAGES - 2) % STAGES,"),
    "the last step is missing": ("ceil_div(K, BK)", "K / BK"),
    "rows of B swapped": (
        "b_tile[(wn + j * 8 + g) * LD + k + q + 4]",
        "b_tile[(wn + j * 8 + q) * LD + k + g + 4]",
    ),
    "the tiles are not full": ("__syncthreads();  // the tiles are full", ""),
    "the tiles are overwritten": ("__syncthreads();  // the tiles are read", ""),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_caught(mutant, tmp_path):
    old, new = MUTANTS[mutant]
    path = SIMT if "the tiles" in mutant else TENSOR
    product = sgemm if path == SIMT else gemm_tf32
    text = path.read_text()
    assert text.count(old) == 1
    (tmp_path / "mutant.cu").write_text(text.replace(old, new))
    a, b = matrices(100, 130, 84)
    exact = a.astype(np.float64) @ b
    caught = []
    for seed in (0, 1):
        with options(seed=seed):
            error = np.linalg.norm(product(a, b, tmp_path / "mutant.cu") - exact) / np.linalg.norm(exact)
        caught.append(not error <= 1e-3)
    assert any(caught)


def fails(kernel, block, *args, **settings):
    with pytest.raises(KernelError) as caught:
        run(BUGS, kernel, 1, block, args, **settings)
    return str(caught.value)


@pytest.mark.parametrize("fibers", ["fast", "ucontext"])
def test_deadlock_names_the_threads(fibers):
    y = np.zeros(256, np.float32)
    with options(ucontext=fibers == "ucontext"):
        message = fails("divergent", 256, y)
        assert "kernel divergent, block (0, 0, 0): deadlock" in message
        assert "threads 0-99 wait at __syncthreads; threads 100-255 have exited" in message
        # The emulator goes on working.
        a, b = matrices(20, 20, 20)
        np.testing.assert_allclose(sgemm(a, b), a @ b, rtol=1e-4, atol=1e-5)
    message = fails("warp_against_block", 64, y)
    assert (
        "threads 0-4, 6-36, 38-63 wait at __syncwarp with mask 0xffffffff; threads 5, 37 wait at __syncthreads"
        in message
    )


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("mixed_instructions", "different instructions: lane 0 is at __shfl_xor_sync"),
        (
            "wrong_mask",
            r"thread (16, 0, 0): __shfl_sync with mask 0x0000ffff, which leaves out the calling lane 16",
        ),
    ],
)
def test_misused_warp_instructions(kernel, expected):
    assert expected in fails(kernel, 32, np.zeros(32, np.float32))


def test_bad_asynchronous_copies():
    x, y = np.zeros(8, np.float32), np.zeros(8, np.float32)
    message = fails("misaligned_copy", 1, x, y)
    assert "thread (0, 0, 0): cp_async16: the shared address is no multiple of 16" in message
    assert "cp_async16: the global address is no multiple of 16" in fails("misaligned_source", 1, x, y)
    assert "the destination does not lie in shared memory" in fails("copy_to_global", 1, x, y)


def test_uncommitted_copies_do_not_land():
    y = np.ones(64, np.float32)
    run(BUGS, "uncommitted_copy", 1, 64, [y])
    np.testing.assert_array_equal(y, 5)


def test_unfinished_copies_are_forgotten():
    x, y = np.ones(64, np.float32), np.ones(64, np.float32)
    run(BUGS, "unfinished_copies", 1, 64, [x, y, 1])
    run(BUGS, "racy_blocks", 1, 1, [y])  # fewer threads
    run(BUGS, "unfinished_copies", 1, 64, [x, y, 0])
    np.testing.assert_array_equal(y, 5)


def test_write_behind_dynamic_shared_memory():
    y = np.zeros(32, np.float32)
    run(BUGS, "beyond_dynamic_shared", 1, 32, [y, 0], shared_bytes=128)
    message = fails("beyond_dynamic_shared", 32, y, 1, shared_bytes=128)
    assert "behind the end of dynamic shared memory (128 bytes)" in message


def test_large_local_arrays_are_refused(tmp_path):
    source = tmp_path / "large.cu"
    source.write_text("""extern "C" __global__ void f(int* x) {
      int local[20000];
      for (int i = 0; i < 20000; i++) local[i] = x[i];
      __syncthreads();
      *x = local[*x];
    }""")
    with pytest.raises(KernelError, match=r"frame size of \d+ bytes is larger than 65536 bytes"):
        run(source, "f", 1, 1, [np.zeros(20000, np.int32)])


# ---- the sanitizers, in a process of their own -----------------------------------------------------------------------

SANITIZED = """
import sys
import numpy as np
from minigan.kernel_launch import launch
kernel, n = sys.argv[2], int(sys.argv[3])
x, y = np.ones(1024, np.float32), np.zeros(1024, np.float32)
arguments = {"beyond_global": [x, y, n], "misaligned_vector": [x, y, n], "divergent": [y]}.get(kernel, [y, n])
shared = {"beyond_dynamic_shared": 128}.get(kernel, 0)
grid, block = (32, 33) if kernel == "beyond_global" else (2, 32 if kernel != "divergent" else 128)
try:
    launch(sys.argv[1], kernel, grid, block, arguments, device="emulated", shared_bytes=shared)
except Exception as error:
    print(error)
launch(sys.argv[1], "beyond_row", 1, 32, [y, 1], device="emulated")
print("finished")
"""


@pytest.mark.parametrize(
    ("kernel", "right", "wrong", "report"),
    [
        ("beyond_global", 1023, 1024, "heap-buffer-overflow"),
        ("beyond_static_shared", 0, 1, "global-buffer-overflow"),
        ("beyond_dynamic_shared", 0, 1, "heap-buffer-overflow"),
        ("beyond_row", 1, 2, "index 33 out of bounds for type 'float [33]'"),
        ("misaligned_vector", 4, 1, "misaligned address"),
        ("divergent", 0, None, "deadlock"),
    ],
)
def test_sanitizers(kernel, right, wrong, report):
    try:
        environment = sanitizer_environment()
    except KernelError as error:
        pytest.skip(str(error))
    command = [
        sys.executable,
        "-m",
        "minigan.kernels",
        "--sanitize",
        sys.executable,
        "-c",
        SANITIZED,
        str(BUGS),
        kernel,
    ]
    done = subprocess.run([*command, str(right)], capture_output=True, text=True)
    assert "finished" in done.stdout, done.stderr
    if wrong is None:
        assert report in done.stdout
        return
    done = subprocess.run([*command, str(wrong)], capture_output=True, text=True)
    assert "finished" not in done.stdout
    assert report in done.stderr
    assert "bugs.cu:" in done.stderr  # the real file and line
    assert set(environment) >= {"LD_PRELOAD", "ASAN_OPTIONS"}


def test_sanitizer_without_preloading_says_how():
    with options(asan=True), pytest.raises(KernelError, match=r"python -m minigan\.kernels --sanitize"):
        run(BUGS, "racy_blocks", 1, 1, [np.zeros(1, np.float32)])


# ---- building --------------------------------------------------------------------------------------------------------


def build(path, macros=()):
    """With debugging information, which is built sooner."""
    return builder.build(load(path), macros, debug=True, asan=False, ucontext=False)


def test_builds_are_cached_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "one.cu"
    header = tmp_path / "two.cuh"
    source.write_text('#include "two.cuh"\nextern "C" __global__ void f(int* x) { *x = VALUE; }\n')
    header.write_text("#define VALUE 5\n")
    first = build(source)
    stamp = first.stat().st_mtime_ns
    assert build(source) == first
    assert first.stat().st_mtime_ns == stamp
    header.write_text("#define VALUE 66\n")
    second = build(source)
    assert second != first
    assert build(source, (("NAME", "1"),)) not in (first, second)
    x = np.zeros(1, np.int32)
    with options(debug=True):
        run(source, "f", 1, 1, [x])
    assert x[0] == 66
    assert [path.name for path in first.parent.iterdir() if path.name.startswith("tmp")] == []


def test_compile_errors_name_the_real_line(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text('#include "common.cuh"\n\nextern "C" __global__ void f(int* x) {\n  *x = undeclared;\n}\n')
    with pytest.raises(KernelError, match=r"wrong\.cu:4:8: error: .undeclared. was not declared"):
        run(source, "f", 1, 1, [np.zeros(1, np.int32)])


def test_missing_compiler_says_what_to_install(tmp_path, monkeypatch):
    source = tmp_path / "one.cu"
    source.write_text('extern "C" __global__ void f(int* x) { *x = 1; }\n')
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelError, match=r"sudo apt install g\+\+.*macOS: xcode-select --install.*no-such-compiler"):
        run(source, "f", 1, 1, [np.zeros(1, np.int32)])


def test_gdb_sees_the_kernels_own_lines():
    library = build("leaky_relu.cu", (("REAL", "float"),))
    try:
        command = [
            "gdb",
            "-batch",
            "-ex",
            "info scope scale_negative",
            "-ex",
            "info line scale_negative",
            str(library),
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("gdb is not installed")
    assert "Symbol slope is" in said
    assert 'of "kernels/leaky_relu.cu"' in said
