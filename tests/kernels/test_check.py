"""Every kernel compiles for every GPU, and the check that says so notices errors and spills."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from minigan.kernels import check, load, nvrtc, sources

HERE = Path(__file__).resolve().parent

needs_nvrtc = pytest.mark.skipif(not nvrtc.is_available(), reason=nvrtc.MISSING)


def compile_all(paths, archs=check.ARCHITECTURES):
    return check.check([load(path) for path in paths], archs)


@needs_nvrtc
def test_kernels_of_the_emulators_tests_compile():
    rows, failures = compile_all(sorted(HERE.glob("*.cu")))
    assert failures == []
    assert {row.arch for row in rows} == set(check.ARCHITECTURES)
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


def test_wrong_requests(capsys):
    assert check.main(sources(), ["sm_80"], None) == 2
    assert "--arch: expected e.g. 80,90a, got sm_80" in capsys.readouterr().out
    assert check.main(sources(), ["80"], "no_such_kernel") == 2
    assert "no source has a kernel 'no_such_kernel'" in capsys.readouterr().out


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
