"""The house: imports point downwards only, CuPy stands in one place, the engine is small, and importing it is cheap."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "minigan"

# design.md's order, from the ground up; what stands on one floor may know each other, but not in a circle.
FLOORS = [
    {"kernels", "version"},
    {"backend", "block_counters", "kernel_launch", "capture", "cpu", "debugging", "half", "progress", "serialization"},
    {"tensor"},
    {"distributed"},
    {"gradcheck", "ops", "random"},
    {"functional"},
    {"init", "loss_scale", "nn", "optim"},
    {"minigan"},  # the package itself: the names that users know
    {"data", "metrics", "models"},
    {"training"},
    {"onnx_export"},
    {"commands"},
    {"__main__"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
SCRIPTS = len(FLOORS)  # examples, benchmarks and tests stand on top

# Only these may import CuPy.
CUPY = {"minigan.backend", "minigan.kernel_launch"}

ENGINE = ["tensor", "ops", "functional", "nn", "init", "loss_scale", "optim", "gradcheck"]
ENGINE_LINES = 2500
# How the devices compute convolutions, batch norm ...: the counterpart of kernels/, not what a reader of the engine has
# to know.
LEAVES = {"conv2d_cpu.py", "conv2d_im2col.py", "conv2d_turned.py", "patches.py"}
LEAVES |= {"conv2d_winograd.py", "winograd.py", "winograd_loops.py"}
LEAVES |= {"conv2d_cuda.py", "conv2d_ladder.py", "conv2d_launch.py", "conv2d_tune.py"}
LEAVES |= {"batch_norm_arrays.py", "batch_norm_cpu.py", "batch_norm_cuda.py", "column_sums.py"}
LEAVES |= {"elements.py", "losses_cuda.py", "max_pool2d_cpu.py", "matmul_cuda.py", "max_pool2d_cuda.py", "rounded.py"}
LEAVES |= {"moments.py", "upsample_nearest2d_cpu.py", "upsample_nearest2d_cuda.py"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "kernels":  # packaged as minigan.kernels
        parts = ("minigan", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for folder in (PACKAGE, ROOT / "kernels") for path in sorted(folder.rglob("*.py"))}
parse = cache(ast.parse)
SCRIPT_FILES = [path for folder in ("examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(source: str, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[str, int]]:
    """The full names of all modules that a source file imports, anywhere in it, with the line."""
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *([base] if base else [])])
            for alias in node.names:
                # `from minigan import nn` imports a module, `from minigan import Tensor` a name of the package.
                full = f"{base}.{alias.name}"
                yield (full if full in known else base), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value, node.lineno


def is_type_checking(source: str, line: int) -> bool:
    """Whether a line stands under `if TYPE_CHECKING:`, and so imports nothing."""
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            first, last = node.body[0].lineno, node.body[-1].end_lineno or 0
            if first <= line <= last:
                return True
    return False


def floor_of(module: str) -> int:
    name = module.split(".")[1] if "." in module else "minigan"
    assert name in FLOOR, f"{module} stands on no floor: give it its place in FLOORS"
    return FLOOR[name]


@cache
def edges() -> list[tuple[str, str, str]]:
    """(importing module, imported module, where) for all that minigan imports of itself."""
    found = []
    for module, path in FILES.items():
        source = path.read_text()
        for imported, line in imports(source, module, path.name == "__init__.py", set(FILES)):
            if imported.split(".")[0] == "minigan" and not is_type_checking(source, line):
                found.append((module, imported, f"{path.relative_to(ROOT)}:{line}"))
    return found


def test_every_module_has_its_floor() -> None:
    for module in FILES:
        floor_of(module)
    assert {"minigan.tensor", "minigan.backend", "minigan.nn", "minigan.ops.conv2d"} <= set(FILES)


def test_imports_point_downwards() -> None:
    found = edges()
    assert ("minigan.nn", "minigan.init") in {(a, b) for a, b, _ in found}  # the parser sees something
    wrong = [
        f"{where}: {module} imports {imported}"
        for module, imported, where in found
        if floor_of(imported) > floor_of(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_gradcheck_and_ops_do_not_know_each_other() -> None:
    for module, imported, where in edges():
        if floor_of(module) == FLOOR["ops"]:
            assert module.split(".")[1] == imported.split(".")[1] or floor_of(imported) < FLOOR["ops"], where


def test_no_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for module, imported, _ in edges():
        if imported in graph and imported != module:
            graph[module].add(imported)
    while graph:
        free = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert free, f"a circle among {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in free}


def test_nothing_in_the_library_imports_what_stands_above_it() -> None:
    for module, path in FILES.items():
        for imported, line in imports(path.read_text(), module, path.name == "__init__.py", set(FILES)):
            assert imported.split(".")[0] not in {"examples", "benchmarks", "tests", "torch"}, f"{path}:{line}"


def test_only_the_backend_imports_cupy() -> None:
    users = set()
    scripts = {str(path.relative_to(ROOT)): path for path in SCRIPT_FILES}
    for module, path in {**FILES, **scripts}.items():
        found = imports(path.read_text(), module, path.name == "__init__.py", set(FILES))
        if any(imported.split(".")[0] in {"cupy", "cupyx", "cupy_backends"} for imported, _ in found):
            users.add(module)
    # Benchmarks measure CuPy itself, too.
    assert {user for user in users if not user.startswith("benchmarks")} <= CUPY
    assert "minigan.backend" in users


def test_the_parser_sees_every_form_of_import() -> None:
    source = (
        "import a.b, c\nfrom minigan import nn, Tensor\nfrom . import x\nfrom ..q import y\n"
        "def f():\n    import late\n    importlib.import_module('named')\n"
    )
    found = {name for name, _ in imports(source, "minigan.ops.conv2d", False, {"minigan.nn", "minigan.ops.x"})}
    assert found == {"a.b", "c", "minigan.nn", "minigan", "minigan.ops.x", "minigan.q", "late", "named"}
    guarded = "if TYPE_CHECKING:\n    import a\nimport b\n"
    assert [is_type_checking(guarded, line) for line in (2, 3)] == [True, False]


def code_lines(source: str) -> int:
    """Lines with code on them: blank ones, comments and docstrings are not counted."""
    documentation: set[int] = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            documentation |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    covered = {line for t in tokens if t.type not in silent for line in range(t.start[0], t.end[0] + 1)}
    return len(covered - documentation)


def test_code_lines_are_what_they_should_be() -> None:
    top = '"""Module,\ntwo lines."""\n\n# comment\nx = [\n    1,  # one\n]\n\n\n'
    source = top + 'def f():\n    """Doc."""\n    return """a\nb"""\n'
    assert code_lines(source) == 6


def test_the_engine_is_small() -> None:
    """Below 2,500 lines of code, without the leaves."""
    counts = {}
    for name in ENGINE:
        path = PACKAGE / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        counts |= {file.name: code_lines(file.read_text()) for file in files if file.name not in LEAVES}
    assert len(counts) > 10
    assert sum(counts.values()) < ENGINE_LINES, counts


HEAVY = ["mpi4py", "numba", "PIL", "matplotlib", "torch", "cupy", "scipy", "pandas", "safetensors", "tqdm", "onnx"]


@pytest.mark.parametrize("statement", ["import minigan", "import minigan; minigan.tensor([1.0]) + 1.0"])
def test_importing_minigan_is_cheap(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    # CuPy may be asked whether there is a GPU, where it is installed, once a device is needed.
    allowed = "['cupy']" if "tensor" in statement else "[]"
    assert (done.stdout.strip() in ("[]", allowed), done.stderr) == (True, ""), done.stdout


def test_what_stands_above_is_loaded_when_it_is_asked_for() -> None:
    code = (
        "import sys, minigan as mg\n"
        "above = ['minigan.' + name for name in mg._ABOVE]\n"
        "print(set(above) & set(sys.modules))\n"
        "print(mg.models.build.__name__, mg.training.load_generator.__name__, mg.data.decode.__name__)\n"
        "print(hasattr(mg, 'model'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.splitlines() == ["set()", "build load_generator decode", "False"], done.stderr
