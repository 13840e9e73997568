"""launch() refuses every argument that a kernel would read wrongly; sources are read by their rules."""

import re
from pathlib import Path

import numpy as np
import pytest
from minigan.kernels import KernelError, load, read_source, sources
from minigan.kernels.emulator import builder

from minigan import kernel_launch
from minigan.kernel_launch import launch

HERE = Path(__file__).resolve().parent
N = 100


def scale(condition=None, x=None, y=None, slope=0.5, n=N, real="float", **settings):
    ones = np.ones(N, np.float32)
    args = [ones if a is None else a for a in (condition, x, y)]
    settings = {"grid": 1, "block": 256, "device": "emulated", "macros": {"REAL": real}, **settings}
    grid, block = settings.pop("grid"), settings.pop("block")
    launch("leaky_relu.cu", "scale_negative", grid, block, [*args, slope, n], **settings)


@pytest.mark.parametrize(("real", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_scale_negative(real, dtype):
    x = np.random.default_rng(0).standard_normal(1001).astype(dtype)
    gy = np.random.default_rng(1).standard_normal(1001).astype(dtype)
    y = np.full(1002, np.nan, dtype)
    x_before, gy_before = x.copy(), gy.copy()
    scale(x, gy, y[:1001], 0.25, 1001, real, grid=4)
    np.testing.assert_array_equal(y[:1001], np.where(x > 0, gy, gy * dtype(0.25)))
    assert np.isnan(y[1001])
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(gy, gy_before)


def f32(*shape):
    return np.ones(shape or N, np.float32)


def read_only():
    array = f32()
    array.flags.writeable = False
    return array


def unaligned():
    return np.frombuffer(bytearray(4 * N + 1), np.float32, N, offset=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.ones(N)}, TypeError, "argument 'const REAL* x': expected dtype float32, got float64"),
        ({"x": np.ones(N, np.int32)}, TypeError, "expected dtype float32, got int32"),
        (
            {"real": "double"},
            TypeError,
            "argument 'const REAL* condition': expected dtype float64, got float32",
        ),
        (
            {"x": f32(2 * N)[::2]},
            ValueError,
            "expected a C-contiguous array, got shape (100,) with strides (8,)",
        ),
        ({"x": f32(10, 10).T[1:]}, ValueError, "C-contiguous"),
        ({"y": read_only()}, ValueError, "argument 'REAL* y': the array is read-only"),
        ({"x": unaligned()}, ValueError, "the array is unaligned"),
        ({"x": [1.0] * N}, TypeError, "expected a NumPy array on 'emulated', got [1.0, "),
        ({"x": 3.0}, TypeError, "expected a NumPy array on 'emulated', got 3.0 (float)"),
        ({"slope": 1}, TypeError, "argument 'REAL slope': expected a float, got 1 (int)"),
        ({"slope": f32()}, TypeError, "expected a float, got a numpy array of shape (100,), dtype float32"),
        ({"slope": 1e39}, ValueError, "1e+39 is more than a float32 can hold"),
        ({"n": 100.0}, TypeError, "argument 'int n': expected an int, got 100.0 (float)"),
        ({"n": True}, TypeError, "expected an int, got True (bool)"),
        ({"n": 2**31}, ValueError, "expected -2147483648 to 2147483647, got 2147483648"),
        ({"grid": 0}, ValueError, "grid (0, 1, 1) is not between (1, 1, 1) and (2147483647, 65535, 65535)"),
        ({"grid": (1, 65536)}, ValueError, "grid (1, 65536, 1)"),
        ({"grid": 1.0}, TypeError, "grid is one to three ints, got 1.0"),
        ({"block": (1, 1, 65)}, ValueError, "block (1, 1, 65) is not between (1, 1, 1) and (1024, 1024, 64)"),
        ({"block": (32, 33)}, ValueError, "at most 1024 threads, got (32, 33, 1)"),
        ({"block": 512}, KernelError, "a block of 512 threads, but __launch_bounds__(256)"),
        ({"shared_bytes": -1}, ValueError, "shared_bytes is a number of bytes, got -1"),
        ({"shared_bytes": 300000}, ValueError, "300000 bytes of shared memory; a block has at most 232448"),
        ({"device": "cpu"}, ValueError, "kernels run on 'cuda', 'cuda:N' or 'emulated', got device 'cpu'"),
        ({"device": "cuda:"}, ValueError, "got device 'cuda:'"),
        ({"real": "half"}, ValueError, "macros {'REAL': 'half'} are no variant of this source"),
        ({"macros": None}, ValueError, "Declared in its head comment: REAL=float; REAL=double"),
        ({"macros": {"REAL": 1.5}}, TypeError, "macro REAL: expected a str, int or bool, got 1.5"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        scale(**arguments)
    assert "leaky_relu.cu" in str(caught.value)


def test_numpy_numbers_are_taken():
    scale(slope=np.float32(0.5), n=np.int64(N))


def test_wrong_number_of_arguments():
    with pytest.raises(TypeError, match=r"expected 5 arguments \(const REAL\* condition, .*int n\), got 1"):
        launch("leaky_relu.cu", "scale_negative", 1, 1, [f32()], device="emulated", macros={"REAL": "float"})


def test_unknown_names():
    with pytest.raises(KernelError, match=r"no kernel source 'nothing\.cu'; there are .*leaky_relu\.cu"):
        launch("nothing.cu", "f", 1, 1, [], device="emulated")
    with pytest.raises(KernelError, match=r"has no kernel 'f'; it has scale_negative"):
        launch("leaky_relu.cu", "f", 1, 1, [], device="emulated", macros={"REAL": "float"})


def kernel_file(tmp_path, text):
    path = tmp_path / "kernel.cu"
    path.write_text(text)
    return path


def empty_kernel(tmp_path, parameters, head=""):
    return kernel_file(tmp_path, f'{head}#include "common.cuh"\nextern "C" __global__ void f({parameters}) {{}}\n')


def test_huge_arrays_need_a_kernel_that_declares_it(tmp_path):
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2**31,), (1,))  # no memory behind it
    narrow = empty_kernel(tmp_path, "const unsigned char* x")
    with pytest.raises(ValueError, match="2147483648 elements, but the kernel counts with int"):
        launch(narrow, "f", 1, 1, [huge], device="emulated")
    wide = empty_kernel(tmp_path, "const unsigned char* x", "// 64-bit indices: f\n")
    launch(wide, "f", 1, 1, [huge], device="emulated")


def test_every_type_arrives_whole(tmp_path):
    """One value of each type, one behind the other: a wrong size would shift the rest."""
    types = {**kernel_launch.SCALARS, "REAL": np.dtype(np.float32)}
    parameters = ", ".join(f"{name} value{i}, {name}* y{i}" for i, name in enumerate(types))
    body = "".join(f"y{i}[1] = value{i}; " for i in range(len(types)))
    source = kernel_file(tmp_path, f'#include "common.cuh"\nextern "C" __global__ void f({parameters}) {{ {body} }}\n')
    values = {"b": True, "f": 0.375}
    args = []
    for dtype in types.values():
        args += [values.get(dtype.kind) or int(np.iinfo(dtype).max) - 1, np.zeros(2, dtype)]
    launch(source, "f", 1, 1, args, device="emulated")
    for value, y in zip(args[::2], args[1::2], strict=True):
        assert y.tolist() == [0, value]


@pytest.mark.parametrize(
    ("parameters", "value", "error", "message"),
    [
        ("unsigned n", -1, ValueError, "expected 0 to 4294967295, got -1"),
        ("long long n", 2**63, ValueError, "got 9223372036854775808"),
        ("size_t n", 1.0, TypeError, "expected an int, got 1.0"),
        ("bool b", 1, TypeError, "expected a bool, got 1 (int)"),
        ("long n", 1, TypeError, "C type 'long' cannot be passed; use one of float, double, int,"),
        ("const void* x", np.zeros(1), TypeError, "arrays of C type 'void' cannot be passed"),
        ("const float4* x", f32(6), ValueError, "a multiple of 4 elements"),
        ("const float4* x", f32(12)[1:9], ValueError, "expected 16-byte aligned memory"),
        ("const double2* x", f32(4), TypeError, "expected dtype float64, got float32"),
        ("const uchar4* x", f32(4), TypeError, "expected dtype uint8, got float32"),
        ("fp16* x", f32(4), TypeError, "expected dtype float16, got float32"),
        ("int* x", None, None, ""),
    ],
)
def test_types(parameters, value, error, message, tmp_path):
    source = empty_kernel(tmp_path, parameters)
    if error is None:
        launch(source, "f", 1, 1, [value], device="emulated")
        return
    with pytest.raises(error, match=re.escape(message)):
        launch(source, "f", 1, 1, [value], device="emulated")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "expected a mapping of the fields rows, columns, offset, scale, got 3 (int)"),
        ({"rows": 1}, "expected the fields rows, columns, offset, scale, got rows"),
        ({"rows": 1.0, "columns": 1, "offset": 1, "scale": 1.0}, "field rows: expected an int, got 1.0"),
    ],
)
def test_structs_are_checked(value, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        launch(HERE / "warps.cu", "by_struct", 1, 1, [f32(4), f32(4), None, value], device="emulated")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.arange(5, dtype=np.uint32), None),
        (np.arange(3, dtype=np.uint32), None),  # the rest is 0
        (np.arange(6, dtype=np.uint32), "field rows: expected a NumPy array of at most 5 uint32, got a numpy array"),
        (np.arange(5, dtype=np.int32), "at most 5 uint32"),
        (np.zeros((1, 5), np.uint32), "at most 5 uint32"),
        (3, "got 3 (int)"),
    ],
)
def test_structs_may_have_arrays(rows, message, tmp_path):
    source = tmp_path / "arrays.cu"
    struct = "struct Rows {\n  unsigned char n;\n  unsigned rows[LENGTH];\n  double end;\n};\n"
    source.write_text(
        f'#include "common.cuh"\n#define LENGTH 5\n{struct}'
        'extern "C" __global__ void f(const Rows r, double* y) {\n'
        "  y[threadIdx.x] = threadIdx.x < LENGTH ? r.rows[threadIdx.x] : r.n + r.end;\n}\n"
    )
    y = np.empty(6)

    def run():
        launch(source, "f", 1, 6, [{"n": 200, "rows": rows, "end": 0.5}, y], device="emulated")

    if message is not None:
        with pytest.raises(TypeError, match=re.escape(message)):
            run()
        return
    run()
    np.testing.assert_array_equal(y, [*rows, *[0] * (5 - len(rows)), 200.5])


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_sources_are_read_with_their_headers():
    assert "leaky_relu.cu" in sources()
    text = read_source("leaky_relu.cu")
    assert not re.search(r"^ *#include", text, re.MULTILINE)
    assert text.count('#line 1 "kernels/common.cuh"') == 1
    assert "ceil_div" in text
    both = load(HERE / "gemm_tensor.cu")
    assert both.text.count('#line 1 "kernels/common.cuh"') == 1  # ptx.cuh includes it too
    lines = both.text.splitlines()
    mark = max(number for number, line in enumerate(lines) if line.startswith("#line"))
    start = int(lines[mark].split()[1])
    own = (HERE / "gemm_tensor.cu").read_text().splitlines()
    assert lines[mark + 1 :] == own[start - 1 :]


def test_an_edited_source_is_read_again(tmp_path):
    path = kernel_file(tmp_path, 'extern "C" __global__ void f(int* x) { *x = 1; }\n')
    x = np.zeros(1, np.int32)
    launch(path, "f", 1, 1, [x], device="emulated")
    path.write_text('extern "C" __global__ void f(int* x) { *x = 20; }\n')
    launch(path, "f", 1, 1, [x], device="emulated")
    assert x[0] == 20


def test_head_comment(tmp_path):
    path = kernel_file(
        tmp_path,
        """// kernel.cu: one.
// variants: [{"BM": [64, 128], "REAL": "float"},
//            {"BM": 32, "REAL": ["float", "double"], "requires": "sm_90a"}]
// requires: sm_80
//
// spills: f on sm_75: few registers
// spills: f: many
extern "C" __global__ void f(int* x) {}
""",
    )
    source = load(path)
    assert [str(v) for v in source.variants] == [
        "BM=64 REAL=float",
        "BM=128 REAL=float",
        "BM=32 REAL=float",
        "BM=32 REAL=double",
    ]
    assert [v.requires for v in source.variants] == ["sm_80", "sm_80", "sm_90a", "sm_90a"]
    assert source.variant({"REAL": "float", "BM": 64}) is source.variants[0]
    assert [(s.kernel, s.arch, s.reason) for s in source.spills] == [
        ("f", "75", "few registers"),
        ("f", None, "many"),
    ]
    with pytest.raises(ValueError, match="no variant"):
        source.variant({"REAL": "float"})


def test_a_macro_that_any_variant_may_have_besides(tmp_path):
    head = '// variants: {"BM": [64, 128]}\n// option: ELU=1\n// requires: sm_80\n'
    source = load(kernel_file(tmp_path, head + 'extern "C" __global__ void f(int* x) {}\n'))
    assert [str(v) for v in source.variants] == ["BM=64", "BM=128"]
    assert [str(v) for v in source.checked] == ["BM=64", "BM=128", "BM=128 ELU=1"]
    assert (str(source.variant({"ELU": 1, "BM": 64})), source.checked[2].requires) == ("BM=64 ELU=1", "sm_80")
    with pytest.raises(ValueError, match=r"BM=64; BM=128, each perhaps with ELU=1\. Use"):
        source.variant({"BM": 128, "ELU": 2})
    with pytest.raises(KernelError, match=r"expected `// option: NAME=VALUE`, one macro, got 'ELU'"):
        load(kernel_file(tmp_path, head.replace("=1", "") + 'extern "C" __global__ void g(int* x) {}\n'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '#include <cuda_fp16.h>\nextern "C" __global__ void f() {}',
            r"kernel\.cu:1: #include <cuda_fp16\.h>, but",
        ),
        (
            '#include "no.cuh"\nextern "C" __global__ void f() {}',
            r'kernel\.cu:1: no "no\.cuh" beside this file',
        ),
        ("__global__ void f() {}", 'a __global__ without extern "C"'),
        ('// extern "C" __global__ void f() {}', "no kernel"),
        ('extern "C" __global__ int f() {}', r'expected extern "C" __global__ void name'),
        ('extern "C" __global__ void f(float** x) {}', r"expected a parameter like .*, got 'float\*\* x'"),
        ('extern "C" __global__ void f(float& x) {}', r"got 'float& x'"),
        (
            'extern "C" __global__ void f() { extern __shared__ int s[]; }',
            r"extern __shared__; write DYN_SHARED",
        ),
        ('// variants: {"A": [1}\nextern "C" __global__ void f() {}', "is no JSON"),
        ('// requires: 80\nextern "C" __global__ void f() {}', "expected one line `// requires: sm_NN`"),
        (
            '// spills: f because\nextern "C" __global__ void f() {}',
            "expected `// spills: kernel on sm_NN: reason`",
        ),
        ('// 64-bit indices: g\nextern "C" __global__ void f() {}', "has no kernel 'g'; it has f"),
    ],
)
def test_sources_that_break_the_rules(text, message, tmp_path):
    with pytest.raises(KernelError, match=message):
        _ = load(kernel_file(tmp_path, text + "\n")).kernels


def test_signatures(tmp_path):
    path = kernel_file(
        tmp_path,
        """extern "C" __global__
void __launch_bounds__(THREADS * 2, (1 + 1))  // a comment (with a parenthesis
    f(const float* __restrict__ x, float const *a, /* unused, */ unsigned  long long n,
      float* const __restrict__ y) {}
extern "C" __global__ __launch_bounds__(64) void g() {}
""",
    )
    kernels = load(path).kernels
    assert [str(p) for p in kernels["f"].parameters] == [
        "const float* x",
        "const float* a",
        "unsigned long long n",
        "float* y",
    ]
    assert kernels["f"].launch_bounds == "THREADS * 2, (1 + 1)"
    assert (kernels["g"].parameters, kernels["g"].launch_bounds) == ((), "64")


@pytest.mark.parametrize(
    ("declaration", "names"),
    [
        ("float a[2][N + 1], b", ["a", "b"]),
        ("__align__(16) unsigned char raw[A < B ? 1 : 2], other[f(3, 4)]", ["raw", "other"]),
        ("Pair<float, 3> pairs[4]", ["pairs"]),
        ("union { float x[4]; int y; } both", ["both"]),
    ],
)
def test_names_of_shared_arrays(declaration, names):
    assert builder._shared_names(declaration) == names


def test_shared_arrays_everywhere_are_poisoned(tmp_path):
    """In a template, in an inline function, in a union, in the file, in an inner block; twice the same name."""
    path = kernel_file(
        tmp_path,
        """#include "common.cuh"
__shared__ float in_file[8];
template <class T, int n> __device__ T in_template(int i) { __shared__ T s[n < 9 ? 8 : 9], t; return s[i] + t; }
__device__ __forceinline__ float in_inline(int i) { __shared__ float s[2][4]; return s[i / 4][i % 4]; }
extern "C" __global__ void f(float* y, int write) {
  __shared__ union { float x[8]; int i[8]; } both;
  int i = threadIdx.x;
  float sum = 0;
  { __shared__ float s[8]; sum += s[i] == s[i]; if (write) s[i] = 1; }
  { __shared__ float s[8]; sum += s[i] == s[i]; if (write) s[i] = 1; }
  float others[5] = {in_file[i], in_template<float, 3>(i), in_template<float, 30>(i), in_inline(i), both.x[i]};
  for (float v : others) sum += v == v;
  if (write) in_file[i] = both.x[i] = 1;
  y[i] = sum;
}
""",
    )
    y = np.ones(8, np.float32)
    for write in (1, 0):
        launch(path, "f", 2, 8, [y, write], device="emulated")
        assert not y.any()


# ---- CUDA, as far as it goes without a GPU ---------------------------------------------------------------------------


def test_the_cuda_executor_is_only_loaded_when_asked_for():
    text = (Path(kernel_launch.__file__)).read_text()
    assert re.findall(r"^( *)import cupy", text, re.MULTILINE) == ["        "]


class FakeFunction:
    """Stands for a compiled CuPy kernel, and remembers its launches."""

    def __init__(self):
        self.shared_size_bytes, self.max_threads_per_block, self.max_dynamic_shared_size_bytes = (
            1024,
            512,
            49152,
        )
        self.launches = []

    def __call__(self, grid, block, args, *, shared_mem):
        self.launches.append((grid, block, args, shared_mem))


@pytest.fixture
def fake_cupy(monkeypatch):
    """CuPy with one device, whose arrays are NumPy's: shows what would be handed over."""

    class Array(np.ndarray):
        device = type("Device", (), {"id": 0})
        data = type("Memory", (), {"ptr": 4096})

    class Device:
        attributes = {"MaxSharedMemoryPerBlockOptin": 101376}
        compute_capability = "86"
        current = []

        def __init__(self, index):
            self.index = index

        def __enter__(self):
            self.current.append(self.index)
            return self

        def __exit__(self, *_):
            self.current.pop()

    class Module:
        made = []

        def __init__(self, **settings):
            self.settings, self.functions = settings, {}
            self.made.append(self)

        def get_function(self, name):
            return self.functions.setdefault(name, FakeFunction())

    class Nvrtc:
        programs, NVRTCError = [], ZeroDivisionError
        getVersion = staticmethod(lambda: (12, 9))

        @classmethod
        def createProgram(cls, *settings):
            cls.programs.append([*settings])
            return len(cls.programs) - 1

        @classmethod
        def compileProgram(cls, program, options):
            cls.programs[program].append(options)
            1 / ("undeclared" not in cls.programs[program][0])

        getCUBIN = staticmethod(lambda program: b"machine code %d" % program)
        getProgramLog = staticmethod(lambda program: "undeclared is undefined")
        destroyProgram = staticmethod(lambda program: Nvrtc.programs[program].append("destroyed"))

    compiler = type("compiler", (), {"CompileException": OSError})
    cuda = type("cuda", (), {"Device": Device, "compiler": compiler, "nvrtc": Nvrtc})
    module = type("cupy", (), {"ndarray": Array, "cuda": cuda, "RawModule": Module})
    monkeypatch.setattr(kernel_launch, "_cupy", lambda: module)
    for cached in (kernel_launch._cuda_module, kernel_launch._cuda_function):
        cached.cache_clear()
    yield module
    for cached in (kernel_launch._cuda_module, kernel_launch._cuda_function):
        cached.cache_clear()


def test_cuda_arguments_have_the_sizes_of_the_signature(fake_cupy):
    x = f32().view(fake_cupy.ndarray)
    for _ in range(2):
        scale(x, x, x, device="cuda", shared_bytes=60000, grid=(2, 3))
    (module,) = fake_cupy.RawModule.made  # compiled once
    assert module.settings["options"] == ("-std=c++17", "-lineinfo", "-DREAL=float")
    assert module.settings["code"] == read_source("leaky_relu.cu")
    function = module.functions["scale_negative"]
    assert function.max_dynamic_shared_size_bytes == 60000
    grid, block, args, shared = function.launches[0]
    assert (len(function.launches), grid, block, shared) == (2, (2, 3, 1), (256, 1, 1), 60000)
    assert all(arg is x for arg in args[:3])
    assert [(type(arg), arg.dtype, arg.shape) for arg in args[3:]] == [
        (np.ndarray, np.float32, ()),  # CuPy passes a NumPy array of one element by value, in its own size
        (np.ndarray, np.int32, ()),
    ]


def test_cuda_refusals(fake_cupy):
    x = f32().view(fake_cupy.ndarray)
    with pytest.raises(TypeError, match="expected a CuPy array on 'cuda:0', got a numpy array"):
        scale(device="cuda")
    with pytest.raises(ValueError, match="expected an array on 'cuda:1', got one on 'cuda:0'"):
        scale(x, x, x, device="cuda:1")
    with pytest.raises(ValueError, match="101000 bytes of dynamic shared memory, but 'cuda:0' has 100352 for it"):
        scale(x, x, x, device="cuda", shared_bytes=101000)
    with pytest.raises(ValueError, match="blocks of 1024 threads, but its registers or __launch_bounds__ allow 512"):
        scale(x, x, x, device="cuda", block=1024)
    fake_cupy.cuda.Device.compute_capability = "75"
    with pytest.raises(KernelError, match=r"requires sm_80, but 'cuda:0' is an sm_75"):
        launch(HERE / "bugs.cu", "racy_blocks", 1, 1, [x], device="cuda")


def test_code_for_sm_90a_is_compiled_here_and_loaded_by_cupy(fake_cupy, tmp_path, monkeypatch):
    """CuPy compiles for sm_90 alone; so NVRTC is asked for sm_90a, once, and the cubin stays in the cache."""
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "cache"))
    path = empty_kernel(tmp_path, "float* x", "// requires: sm_90a\n")
    x = f32().view(fake_cupy.ndarray)
    programs = fake_cupy.cuda.nvrtc.programs
    for capability in ("80", "89", "100", "120"):
        fake_cupy.cuda.Device.compute_capability = capability
        with pytest.raises(KernelError, match=rf"requires sm_90a, but 'cuda:0' is an sm_{capability}; choose another"):
            launch(path, "f", 1, 1, [x], device="cuda")
    fake_cupy.cuda.Device.compute_capability = "90"
    assert programs == []
    for _ in range(2):
        launch(path, "f", 1, 1, [x], device="cuda")
        kernel_launch._cuda_module.cache_clear()
        kernel_launch._cuda_function.cache_clear()
    options = ("-std=c++17", "-lineinfo", "-ftz=true", "-arch=sm_90a")
    assert programs == [[read_source(path), str(path), (), (), options, "destroyed"]]
    (file,) = (tmp_path / "cache" / "cubin").iterdir()
    assert file.read_bytes() == b"machine code 0"
    modules = fake_cupy.RawModule.made[-2:]
    assert [module.settings for module in modules] == [{"path": str(file)}] * 2
    assert [len(module.functions["f"].launches) for module in modules] == [1, 1]

    path.write_text(path.read_text().replace("{}", "{ *x = undeclared; }"))
    with pytest.raises(KernelError, match=r"does not compile for sm_90a:\nundeclared is undefined"):
        launch(path, "f", 1, 1, [x], device="cuda")
    assert programs[-1][-1] == "destroyed"
    assert [*(tmp_path / "cache" / "cubin").iterdir()] == [file]


@pytest.mark.parametrize("capability", ["75", "80", "90"])
def test_all_is_compiled_that_a_gpu_can_run(fake_cupy, tmp_path, monkeypatch, capability):
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path))
    fake_cupy.cuda.Device.compute_capability = capability
    oldest = {"sm_75", *({"sm_80"} if capability >= "80" else ()), *({"sm_90a"} if capability == "90" else ())}
    able = [v for source in map(load, sources()) for v in source.variants if v.requires in oldest]
    assert {v.requires for v in able} == oldest
    before = len(fake_cupy.RawModule.made)
    assert kernel_launch.compile_all() == len(able) == len(fake_cupy.RawModule.made) - before
    assert all(len(module.functions) == 1 for module in fake_cupy.RawModule.made[before:])
    files = [*tmp_path.glob("cubin/*.cubin")]
    assert len(files) == sum(v.requires == "sm_90a" for v in able)


@pytest.mark.cuda
def test_scale_negative_on_a_gpu():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("there is no NVIDIA GPU")
    x = cupy.random.default_rng(0).standard_normal(1001, dtype=np.float32)
    y = cupy.full_like(x, np.nan)
    scale(x, x, y, 0.25, 1001, grid=4, device="cuda")
    np.testing.assert_array_equal(y.get(), np.where(x.get() > 0, x.get(), x.get() * np.float32(0.25)))
