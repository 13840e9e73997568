"""Reads kernel sources: the text with our headers in it, the kernels' C signatures, the head comment's declarations.

common.cuh says how a source is written.
"""

import ast
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def cache_folder(what: str) -> Path:
    """Where compiled kernels are kept; deleting it is always safe."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MINIGAN_CACHE") or Path(home) / "minigan") / what


Macros = Mapping[str, str | int]  # bool is an int


class KernelError(RuntimeError):
    """A kernel source that does not hold to the rules, does not compile, or went wrong while it ran."""


class EmulatorError(KernelError):
    """What the emulator needs of this machine is not there: a compiler, a folder that can be written."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: `const REAL* x` is name "x", type "REAL", pointer and const."""

    name: str
    type: str
    pointer: bool
    const: bool

    def __str__(self) -> str:
        return f"{'const ' if self.const else ''}{self.type}{'*' if self.pointer else ''} {self.name}"


@dataclass(frozen=True)
class Kernel:
    name: str
    parameters: tuple[Parameter, ...]
    parameter_text: str
    launch_bounds: str  # "256" or "256, 2" or ""
    start: int  # where `extern "C" __global__` stands in the text


@dataclass(frozen=True)
class Variant:
    """One combination of macros that may be compiled, and the oldest architecture that can."""

    macros: tuple[tuple[str, str], ...]
    requires: str

    @property
    def nvrtc_options(self) -> tuple[str, ...]:
        """The compiler's options besides the architecture: for a launch on a GPU, and for `--check`."""
        return ("-std=c++17", "-lineinfo", *(f"-D{name}={value}" for name, value in self.macros))

    def with_macro(self, macro: tuple[str, str]) -> "Variant":
        return replace(self, macros=tuple(sorted((*self.macros, macro))))

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.macros) or "-"


@dataclass(frozen=True)
class Spill:
    """A declared spill to local memory; `arch` is None for every architecture."""

    kernel: str
    arch: str | None
    reason: str


@dataclass(frozen=True)
class SharedBytes:
    """How much dynamic shared memory a kernel is given: sums and products of numbers and of a variant's macros."""

    kernel: str
    formula: str

    def of(self, variant: Variant) -> int:
        macros = {name: int(value) for name, value in variant.macros if value.isdecimal()}

        def value(node: ast.expr) -> int:
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
                left, right = value(node.left), value(node.right)
                return left + right if isinstance(node.op, ast.Add) else left * right
            if isinstance(node, ast.Constant) and isinstance(node.value, int):
                return node.value
            if isinstance(node, ast.Name) and node.id in macros:
                return macros[node.id]
            raise KernelError(
                f"dynamic shared memory of {self.kernel}: expected + and * of numbers and the macros "
                f"{', '.join(macros)}, got {ast.unparse(node)!r} in {self.formula!r}"
            )

        return value(ast.parse(self.formula, mode="eval").body)


class Source:
    """A `.cu` file with its headers inlined."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = _label(path)
        self.files: list[Path] = []
        self.text = "\n".join(self._inline(path)) + "\n"
        head = _head_lines(path)
        self.variants = _parse_variants(head, self.label)
        self.options = _parse_options(head, self.label)
        self.wide_kernels = _parse_names(head, "64-bit indices")
        self.spills = _parse_spills(head, self.label)
        self.dynamic_shared = _parse_dynamic_shared(head, self.label)
        self._file_names = [str(file) for file in self.files]
        self.stamp = self.current_stamp()
        for name in [*self.wide_kernels, *(spill.kernel for spill in self.spills), *self.dynamic_shared]:
            self.kernel(name)

    def current_stamp(self) -> tuple[tuple[int, int], ...]:
        """Changes when one of the files is edited."""
        return tuple((status.st_mtime_ns, status.st_size) for status in map(os.stat, self._file_names))

    def _inline(self, path: Path) -> Iterator[str]:
        self.files.append(path)
        label = _label(path)
        yield f'#line 1 "{label}"'
        for number, line in enumerate(path.read_text().splitlines(), 1):
            include = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
            if include is None:
                yield "" if re.match(r"\s*#\s*pragma\s+once\b", line) else line
                continue
            if include[1] == "<":
                raise KernelError(
                    f"{label}:{number}: #include <{include[2]}>, but the GPU's compiler (NVRTC) has no system "
                    'headers: use only "x.cuh" headers of kernels/'
                )
            header = _find_header(path, include[2])
            if header is None:
                raise KernelError(f'{label}:{number}: no "{include[2]}" beside this file, nor in {_label(FOLDER)}')
            if header not in self.files:
                yield from self._inline(header)
            yield f'#line {number + 1} "{label}"'

    @cached_property
    def kernels(self) -> dict[str, Kernel]:
        """The kernels of this source by name, in the order of the text."""
        text = without_comments(self.text)
        if re.search(r"\bextern\s+__shared__", text[self._own_text_start(text) :]):
            raise KernelError(f"{self.label}: extern __shared__; write DYN_SHARED(type, name) (common.cuh)")
        found: dict[str, Kernel] = {}
        starts = set()
        for match in re.finditer(r'\bextern\s+"C"\s+__global__\b', text):
            kernel = _parse_kernel(text, match, self.label)
            found[kernel.name] = kernel
            starts.add(match.end())
        for match in re.finditer(r"\b__global__\b", text):
            if match.end() not in starts:
                line = text[match.start() : match.end() + 40]
                raise KernelError(f'{self.label}: a __global__ without extern "C" before it: {line!r}...')
        if not found:
            raise KernelError(f'{self.label}: no kernel (extern "C" __global__ void name(...)) in it')
        return found

    def _own_text_start(self, text: str) -> int:
        return text.rfind(f'"{self.label}"')  # behind the last header

    @cached_property
    def structs(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """(field, type) of each plain struct of scalars, for parameters that are passed by value."""
        found = {}
        for match in re.finditer(r"\bstruct\s+(\w+)\s*\{([^{}()]*)\}\s*;", without_comments(self.text)):
            fields = []
            for declaration in match[2].split(";"):
                words = declaration.replace(",", " , ").split()
                if not words:
                    continue
                comma = words.index(",") if "," in words else len(words)
                kind = " ".join(words[: comma - 1])
                fields += [(name, kind) for name in words[comma - 1 :] if name != ","]
            found[match[1]] = tuple(fields)
        return found

    @cached_property
    def defines(self) -> dict[str, str]:
        """The #defines of one word or type, such as the default `#define REAL float`."""
        pattern = r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+([\w ]+?)[ \t]*$"
        return dict(reversed(re.findall(pattern, without_comments(self.text), re.MULTILINE)))

    def kernel(self, name: str) -> Kernel:
        if name not in self.kernels:
            raise KernelError(f"{self.label} has no kernel {name!r}; it has {', '.join(self.kernels)}")
        return self.kernels[name]

    @property
    def checked(self) -> tuple[Variant, ...]:
        """What `--check` compiles: all variants; with an option only the last, as its registers are scarcest."""
        return (*self.variants, *(self.variants[-1].with_macro(option) for option in self.options))

    def variant(self, macros: Macros | None) -> Variant:
        """The declared variant with exactly these macros, one option among them perhaps."""
        try:
            given = tuple(sorted((name, _macro_value(name, value)) for name, value in (macros or {}).items()))
        except TypeError as error:
            raise TypeError(f"{self.label}: {error}") from error
        optional = (variant.with_macro(option) for option in self.options for variant in self.variants)
        for variant in (*self.variants, *optional):
            if variant.macros == given:
                return variant
        raise ValueError(
            f"{self.label}: macros {dict(given)} are no variant of this source. "
            f"Declared in its head comment: {'; '.join(str(v) for v in self.variants)}"
            f"{''.join(f', each perhaps with {name}={value}' for name, value in self.options)}. "
            "Use one of these, or add it there, so that `python -m minigan.kernels --check` compiles it too"
        )


_loaded: dict[str | Path, Source] = {}


def load(name: str | Path) -> Source:
    """The source of this name in kernels/, or of any absolute path; read again when a file has changed."""
    source = _loaded.get(name)
    if source is None or source.stamp != source.current_stamp():
        path = FOLDER / name  # an absolute path stays as it is
        if not path.is_file():
            raise KernelError(f"no kernel source {str(name)!r}; there are {', '.join(sources())}")
        source = _loaded[name] = Source(path)
    return source


def read_source(name: str | Path) -> str:
    """The source's text with our headers in it, each once; #line marks keep the real files and lines."""
    return load(name).text


def sources() -> list[str]:
    """The names of all kernel sources: "leaky_relu.cu", "conv2d/...cu"."""
    return sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.cu"))


def without_comments(text: str) -> str:
    """The text with comments turned into spaces: every offset and line stays."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(
        pattern,
        lambda match: match[0] if match[0][0] == '"' else re.sub(r"[^\n]", " ", match[0]),
        text,
        flags=re.DOTALL,
    )


def supports(arch: str, requires: str) -> bool:
    """Whether code that requires e.g. "sm_80" runs on an architecture like "90a". "sm_90a" is 90a alone."""
    if requires.endswith("a"):
        return f"sm_{arch}" == requires
    return int(arch.rstrip("a")) >= int(requires.removeprefix("sm_"))


def _label(path: Path) -> str:
    """The name that compilers and gdb show: kernels/x.cu, or the whole path elsewhere."""
    return path.relative_to(FOLDER.parent).as_posix() if path.is_relative_to(FOLDER) else str(path)


def _find_header(includer: Path, name: str) -> Path | None:
    for folder in (includer.parent, FOLDER):
        if (folder / name).is_file():
            return (folder / name).resolve()
    return None


def _macro_value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str | int):
        raise TypeError(f"macro {name}: expected a str, int or bool, got {value!r}")
    return str(value)


def _head_lines(path: Path) -> list[str]:
    """The comment lines before the first line of code, without their slashes."""
    lines = itertools.takewhile(lambda line: not line.strip() or line.startswith("//"), path.read_text().splitlines())
    return [line.removeprefix("//").strip() for line in lines]


def _entries(head: list[str], key: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of each `key: text` in the head comment."""
    for number, line in enumerate(head):
        if line.startswith(f"{key}:"):
            yield number, line.removeprefix(f"{key}:").strip()


def _parse_variants(head: list[str], label: str) -> tuple[Variant, ...]:
    requires = [text for _, text in _entries(head, "requires")] or ["sm_75"]
    if len(requires) > 1 or not re.fullmatch(r"sm_\d+a?", requires[0]):
        raise KernelError(f"{label}: expected one line `// requires: sm_NN` or `sm_NNa`, got {'; '.join(requires)}")
    entries = list(_entries(head, "variants"))
    if not entries:
        return (Variant((), requires[0]),)
    if len(entries) > 1:
        raise KernelError(f"{label}: expected one `// variants:` entry, got {len(entries)}")
    number, text = entries[0]
    declared: Any = None
    for line in [*head[number + 1 :], None]:  # JSON may go on over several lines
        try:
            declared = json.loads(text)
            break
        except json.JSONDecodeError as error:
            if line is None:
                raise KernelError(f"{label}: `// variants:` is no JSON: {error}") from error
            text += " " + line
    variants = []
    for group in declared if isinstance(declared, list) else [declared]:
        choices = dict(group)
        needed = choices.pop("requires", requires[0])
        lists = [value if isinstance(value, list) else [value] for value in choices.values()]
        for values in itertools.product(*lists):
            macros = ((name, _macro_value(name, value)) for name, value in zip(choices, values, strict=True))
            variants.append(Variant(tuple(sorted(macros)), needed))
    return tuple(variants)


def _parse_options(head: list[str], label: str) -> tuple[tuple[str, str], ...]:
    options = []
    for _, text in _entries(head, "option"):
        match = re.fullmatch(r"(\w+)=(\w+)", text)
        if match is None:
            raise KernelError(f"{label}: expected `// option: NAME=VALUE`, one macro, got {text!r}")
        options.append((match[1], match[2]))
    return tuple(options)


def _parse_names(head: list[str], key: str) -> tuple[str, ...]:
    return tuple(name.strip() for _, text in _entries(head, key) for name in text.split(","))


def _parse_spills(head: list[str], label: str) -> tuple[Spill, ...]:
    spills = []
    for _, text in _entries(head, "spills"):
        match = re.fullmatch(r"(\w+)(?: on sm_(\d+a?))?: (.+)", text)
        if match is None:
            raise KernelError(
                f"{label}: expected `// spills: kernel on sm_NN: reason` (`on sm_NN` may be left out), got {text!r}"
            )
        spills.append(Spill(match[1], match[2], match[3]))
    return tuple(spills)


def _parse_dynamic_shared(head: list[str], label: str) -> dict[str, SharedBytes]:
    found = {}
    for _, text in _entries(head, "dynamic shared"):
        match = re.fullmatch(r"(\w+): (.+)", text)
        if match is None:
            raise KernelError(f"{label}: expected `// dynamic shared: kernel: bytes`, got {text!r}")
        found[match[1]] = SharedBytes(match[1], match[2])
    return found


def _closing(text: str, opening: int) -> int:
    """The position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return -1


def _parse_kernel(text: str, match: re.Match[str], label: str) -> Kernel:
    """The kernel whose `extern "C" __global__` is `match`. __launch_bounds__ stands before or behind `void`."""
    position, bounds, name = match.end(), "", ""
    while True:
        word = re.compile(r"\s*(\w+)\s*(\(?)").match(text, position)
        close = -1 if word is None or not word[2] else _closing(text, word.end() - 1)
        if word is None or (word[2] and close < 0) or (not word[2] and word[1] != "void"):
            line = text[match.start() : match.end() + 60]
            raise KernelError(f'{label}: expected extern "C" __global__ void name(...), got {line!r}...')
        if not word[2]:
            position = word.end()
        elif word[1] == "__launch_bounds__":
            bounds, position = text[word.end() : close].strip(), close + 1
        else:
            name, parameter_text = word[1], " ".join(text[word.end() : close].split())
            break
    parts = [part for part in parameter_text.split(",") if part.strip()]
    parameters = tuple(_parse_parameter(part, f"{label}: kernel {name}") for part in parts)
    return Kernel(name, parameters, parameter_text, bounds, match.start())


def _parse_parameter(text: str, where: str) -> Parameter:
    tokens = [token for token in re.findall(r"\w+|\S", text) if token not in ("__restrict__", "__restrict")]
    stars = tokens.count("*")
    words = [token for token in tokens if token not in ("*", "const")]
    if stars > 1 or len(words) < 2 or not all(re.fullmatch(r"\w+", word) for word in words):
        raise KernelError(f"{where}: expected a parameter like `const float* x` or `int n`, got {text.strip()!r}")
    const = "const" in (tokens[: tokens.index("*")] if stars else tokens)
    return Parameter(words[-1], " ".join(words[:-1]), bool(stars), const)
