"""Every kernel compiles for every GPU, and the check that says so notices errors and spills."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from minigan.kernels import KernelError, check, load, nvrtc, sources
from minigan.kernels.occupancy import occupancy

HERE = Path(__file__).resolve().parent

needs_nvrtc = pytest.mark.skipif(not nvrtc.is_available(), reason=nvrtc.MISSING)


def compile_all(paths, archs=check.ARCHITECTURES):
    return check.check([load(path) for path in paths], archs)


@needs_nvrtc
def test_kernels_of_the_emulators_tests_compile():
    """For the first architecture that can, for each of them; that kernels compile for all, `--check` shows."""
    rows, failures = compile_all(sorted(HERE.glob("*.cu")), ("75", "80", "90a"))
    assert failures == []
    assert {row.arch for row in rows} == {"75", "80", "90a"}
    assert not any(row.failed for row in rows)
    gemm = next(row for row in rows if (row.kernel, row.arch, row.variant) == ("sgemm_tiled", "80", "REAL=float"))
    assert gemm.shared_bytes == 2 * 16 * 68 * 4
    assert 32 <= gemm.registers <= 255
    assert not any(row.kernel == "gemm_tf32" and row.arch == "75" for row in rows)  # requires: sm_80


@needs_nvrtc
def test_command_prints_a_row_for_each_kernel_and_architecture():
    command = [
        sys.executable,
        "-m",
        "minigan.kernels",
        "--check",
        "--arch",
        "75,90a",
        "--kernel",
        "scale_negative",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(
        r"^kernels/leaky_relu\.cu +scale_negative +REAL=(\w+) +(\w+) +\d+ +0 +0 +0$",
        done.stdout,
        re.MULTILINE,
    )
    assert sorted(rows) == [("double", "75"), ("double", "90a"), ("float", "75"), ("float", "90a")]
    assert "4 compiled, 0 errors, 0 unexplained spills" in done.stdout


@needs_nvrtc
def test_an_error_fails_and_names_the_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "wrong.cu"
    path.write_text('#include "common.cuh"\nextern "C" __global__ void f(int* x) {\n  *x = undeclared;\n}\n')
    assert check.main([str(path)], ["80"], None) == 1
    said = capsys.readouterr().out
    assert 'wrong.cu(3): error: identifier "undeclared" is undefined' in said
    assert "0 compiled, 1 errors" in said


SPILLING = """{head}#include "common.cuh"
extern "C" __global__ void __launch_bounds__(1024, 2) f(const float* x, float* y) {{
  float v[100];
#pragma unroll
  for (int i = 0; i < 100; i++) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 100; i++) y[(99 - i) * 1024 + threadIdx.x] = v[i] * v[99 - i];
}}
"""


@needs_nvrtc
def test_a_spill_must_be_explained(tmp_path, capsys):
    path = tmp_path / "spilling.cu"
    path.write_text(SPILLING.format(head=""))
    assert check.main([str(path)], ["80"], None) == 1
    assert "UNEXPLAINED SPILL" in capsys.readouterr().out
    path.write_text(SPILLING.format(head="// spills: f on sm_80: a test\n"))
    assert check.main([str(path)], ["80"], None) == 0
    assert "a test" in capsys.readouterr().out
    assert check.main([str(path)], ["80", "90a"], None) == 1  # explained for sm_80 only


@needs_nvrtc
def test_too_much_static_shared_memory_fails(tmp_path, capsys):
    path = tmp_path / "large.cu"
    path.write_text(
        'extern "C" __global__ void f(float* x) { __shared__ float s[20000]; s[threadIdx.x] = *x; __syncthreads(); '
        "*x = s[threadIdx.x + 1]; }\n"
    )
    assert check.main([str(path)], ["80"], None) == 1
    assert "80000 bytes of static shared memory; above 49152 use DYN_SHARED" in capsys.readouterr().out


@needs_nvrtc
def test_products_of_warpgroups_run_beside_each_other(tmp_path):
    """Where a thread touches accumulators before the wait, the compiler makes each product wait for the last one."""
    text, results = (HERE / "wgmma.cu").read_text(), []
    end = "B_BY_LINES ? 8192 : 16, 1024));\n"
    for name, new in (("right", end), ("touched", end + "    sums[3] += 1;\n")):
        assert text.count(end) == 1
        path = tmp_path / f"{name}.cu"
        path.write_text(text.replace(end, new))
        results.append(check.check_one(load(path), load(path).variants[0], "90a"))
    assert not isinstance(results[0], check.Failure)
    assert isinstance(results[1], check.Failure)
    assert "serialized due to" in results[1].message


@needs_nvrtc
def test_registers_of_products_are_complete_before_the_fence(tmp_path):
    """What the emulator cannot see: there, A is in the registers as soon as the source says so."""
    text = (HERE / "wgmma_tf32.cu").read_text()
    fence, rounded = (
        "    wgmma_fence(sums, registers);\n",
        "registers[i][e] = to_tf32(__uint_as_float(registers[i][e]));\n",
    )
    loops = "#pragma unroll\n    for (int i = 0; i < 4; i++)\n#pragma unroll\n      for (int e = 0; e < 4; e++) "
    assert text.count(fence) == 1
    for name, new, fails in (
        ("before", loops + rounded + fence, False),
        ("behind", fence + loops + rounded, True),
    ):
        path = tmp_path / f"{name}.cu"
        path.write_text(text.replace(fence, new))
        result = check.check_one(load(path), load(path).variants[0], "90a")
        assert isinstance(result, check.Failure) == fails
        if fails:
            assert "the compiler writes a register of the products: cvt.rna.tf32.f32" in result.message


def test_what_is_written_behind_a_fence():
    writes = ["mov.f32 \t%f1, 0f00000000;", "@%p1 cvt.rna.tf32.f32 %r3, %f9;", "ld.shared.v2.u32 {%r8, %r4}, [%r5];"]
    others = ["add.s64 \t%rd1, %rd2, 32;", "mov.f32 \t%f11, %f1;"]  # the descriptor, and registers of nothing here
    product = "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%f1, %f2}, {%r3, %r4, %r5, %r6}, %rd1, 1, 1, 1;"
    group = ["wgmma.fence.sync.aligned;", *writes, *others, product, "wgmma.commit_group.sync.aligned;"]
    assert check.behind_fences("\n\t".join([*writes, *group, *writes])) == writes


def test_wrong_requests(capsys):
    assert check.main(sources(), ["sm_80"], None) == 2
    assert "--arch: expected e.g. 80,90a, got sm_80" in capsys.readouterr().out
    assert check.main(sources(), ["80"], "no_such_kernel") == 2
    assert "no source has a kernel 'no_such_kernel'" in capsys.readouterr().out


PTX = """.version 8.8
.extern .shared .align 128 .b8 dynamic_shared_bytes[];
	// .globl	one
.visible .entry one(
	.param .u64 .ptr .align 1 one_param_0
)
.maxntid 16, 8, 2
{
	mov.u64 	%rd1, dynamic_shared_bytes;
}
.entry two()
.maxntid 96
.minnctapersm 1
{
}
.entry three()
{
}
"""


def test_ptx_code():
    assert check.parse_ptx(PTX) == {"one": (256, True), "two": (96, False), "three": (1024, False)}


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "expected"),
    [
        # Worked out by hand, from the limits in the programming guide. 124 registers: 16 units of 256 a warp, so 4
        # warps in each quarter of the 65,536, 16 warps, 2 blocks of 8.
        ("80", 256, 124, 8448, (2, 16, 0.25, "registers")),
        # 168: 21 units, 3 warps a quarter, 12 warps: one block, and a half that does not fit.
        ("80", 256, 168, 61440, (1, 8, 0.125, "registers")),
        ("80", 32, 32, 0, (32, 32, 0.5, "blocks")),
        ("80", 1024, 32, 0, (2, 64, 1.0, "warps")),
        ("90a", 1024, 16, 0, (2, 64, 1.0, "warps")),
        # 30,720 and 1,024 for the system: 3 of them in 102,400, 7 in 233,472.
        ("86", 128, 40, 30720, (3, 12, 0.25, "shared memory")),
        ("90a", 128, 40, 30720, (7, 28, 28 / 64, "shared memory")),
        # On sm_75 the system takes nothing: two halves of 64 KiB.
        ("75", 128, 40, 32768, (2, 8, 0.25, "shared memory")),
        # 100 bytes and 1,024, in units of 128: 1,152, of which 88 would fit.
        ("120", 64, 32, 100, (24, 48, 1.0, "blocks")),
        ("120", 32, 32, 100, (24, 24, 0.5, "blocks")),
        ("120", 96, 32, 100, (16, 48, 1.0, "warps")),
        ("80", 1024, 255, 0, (0, 0, 0.0, "registers")),
        # 33: 5 units and not 4.1, 12 warps a quarter. 84: 11 units, 5 warps a quarter, although 23 would fit in all.
        ("80", 64, 33, 0, (24, 48, 0.75, "registers")),
        ("80", 32, 84, 0, (20, 20, 20 / 64, "registers")),
        # 19,457 and 1,024: one byte more than a fifth of 102,400. 33 threads are two warps.
        ("86", 128, 32, 19457, (4, 16, 1 / 3, "shared memory")),
        ("80", 33, 32, 0, (32, 64, 1.0, "blocks")),
    ],
)
def test_occupancy(arch, threads, registers, shared, expected):
    held = occupancy(arch, threads, registers, shared)
    assert (held.blocks, held.warps, held.share, held.limit) == expected


def test_occupancy_of_an_unknown_architecture_is_an_error(capsys):
    with pytest.raises(ValueError, match=r"expected one of sm_75, sm_80, .*, got sm_87"):
        occupancy("87", 256, 32, 0)
    assert check.main(sources(), ["87"], None, occupancies=True) == 2
    assert "--arch: expected some of 75, 80, " in capsys.readouterr().out


@needs_nvrtc
def test_the_table_of_occupancies(tmp_path, capsys):
    path = tmp_path / "both.cu"
    head = '// variants: {"N": [64, 256]}\n// dynamic shared: f: 2 * (N + 16) * 4 * N\n'
    code = (
        '#include "common.cuh"\nextern "C" __global__ void __launch_bounds__(2 * N) f(float* x) {\n'
        "  DYN_SHARED(float, d);\n  __shared__ float s[32];\n  s[threadIdx.x % 32] = *x;\n  d[threadIdx.x] = *x;\n"
        "  __syncthreads();\n  *x = d[threadIdx.x ^ 1] + s[threadIdx.x % 31];\n}\n"
    )
    path.write_text(head + code)
    assert check.main([str(path)], ["80"], None, occupancies=True) == 0
    said = capsys.readouterr().out
    # 128 + 2 * 80 * 256 = 41,088 and 1,024 in 167,936: 3 blocks of 4 warps.
    assert re.search(r"both\.cu +f +N=64 +80 +128 +\d+ +41088 +0 +3 +12 +19% +shared memory\n", said)
    # 128 + 2 * 272 * 1024 bytes are more than any SM has.
    assert re.search(r"both\.cu +f +N=256 +80 +512 +\d+ +557184 +0 +0 +0 +0% +shared memory\n", said)
    path.write_text(code.replace("N)", "32)"))
    assert check.main([str(path)], ["80"], None) == 1
    assert "kernel f: expected a line `// dynamic shared: f: bytes` in the head comment" in capsys.readouterr().out


def test_dynamic_shared_memory_is_a_formula_of_macros(tmp_path):
    path = tmp_path / "f.cu"
    code = 'extern "C" __global__ void f(float* x) { *x = 1; }\n'
    for formula, message in (
        ("f: N - 1", r"expected \+ and \* of numbers and the macros N, got 'N - 1'"),
        ("f: M * 2", "got 'M' in 'M \\* 2'"),
        ("f: open('x')", "got \"open\\('x'\\)\""),
    ):
        path.write_text(f'// variants: {{"N": [3]}}\n// dynamic shared: {formula}\n{code}')
        source = load(path)
        with pytest.raises(KernelError, match=message):
            source.dynamic_shared["f"].of(source.variants[0])
    path.write_text(f"// dynamic shared: 12\n{code}")
    with pytest.raises(KernelError, match="expected `// dynamic shared: kernel: bytes`, got '12'"):
        load(path)
    path.write_text(f"// dynamic shared: g: 12\n{code}")
    with pytest.raises(KernelError, match="no kernel 'g'"):
        load(path)


LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8704 bytes smem, 388 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_80'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 380 bytes cmem[0]
"""


def test_assembler_log():
    assert check.parse_log(LOG) == {"one": (255, 8704, 16, 20), "two": (8, 0, 0, 0)}
    with pytest.raises(nvrtc.NvrtcError, match="no register count for kernel two"):
        check.parse_log(LOG[: LOG.index("ptxas info    : Used 8")])


def test_of_an_option_one_variant_is_compiled(monkeypatch):
    monkeypatch.setattr(check, "check_one", lambda source, variant, arch: [(str(variant), arch)])
    source = load("conv2d/6_tensor_cores_tf32.cu")
    rows, _ = check.check([source], ["80", "90a"])
    last = "BK=16 BM=128 BN=128 ELU=1 STAGES=4 VECTOR_A=4 VECTOR_B=4"
    assert [row for row in rows if "ELU" in row[0]] == [(last, "80"), (last, "90a")]
    assert len(rows) == 2 * (len(source.variants) + 1)
