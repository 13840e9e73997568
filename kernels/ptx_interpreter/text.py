"""Reads PTX text: of each kernel its parameters, registers, shared arrays and instructions.

NVRTC's dialect is enough: one `.entry` a kernel, no functions, labels and registers that are declared. Braces open a
scope with registers of its own, as inline assembly does. What is not known raises, with the line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..source import KernelError

# Types as NumPy has them. A .bN holds N bits of anything.
TYPES: dict[str, np.dtype] = {
    **{f"{kind}{8 * size}": np.dtype(f"{code}{size}") for kind, code in ("si", "uu") for size in (1, 2, 4, 8)},
    **{f"b{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    **{f"f{8 * size}": np.dtype(f"f{size}") for size in (4, 8)},
    "pred": np.dtype(bool),
}

# Where shared memory begins in its window: the first 1,024 bytes are the system's. Dynamic memory, behind the static
# one, begins at a multiple of 128, as DYN_SHARED asks, and never of 1,024, which no kernel may rely on.
SHARED_BEGIN = 1024


class PtxError(KernelError):
    """PTX that the interpreter does not know, or that does what a GPU would punish, or leave undefined."""


@dataclass(frozen=True)
class Register:
    name: str
    dtype: np.dtype
    number: int


@dataclass(frozen=True)
class Name:
    """A shared array, a parameter, a label, a special register (%tid.x), or _, which nobody reads."""

    name: str


@dataclass(frozen=True)
class Number:
    text: str

    def of(self, dtype: np.dtype) -> np.ndarray:
        """As an array of one element, which broadcasts."""
        bits = re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", self.text)
        if bits:
            exact = np.dtype("f4" if bits[1] in "fF" else "f8")
            if exact != dtype and dtype.kind != "u":
                raise PtxError(f"{self.text} is no {dtype}")
            return np.array([int(bits[2], 16)], f"u{exact.itemsize}").view(exact if dtype.kind == "f" else dtype)
        if dtype.kind == "f":
            raise PtxError(f"{self.text} is no {dtype}")
        value = int(self.text.removesuffix("U"), 0)
        return np.array([value % 2 ** (8 * dtype.itemsize)], f"u{dtype.itemsize}").view(dtype)


@dataclass(frozen=True)
class Address:
    base: "Operand"
    offset: int


@dataclass(frozen=True)
class Vector:
    """{a, b, c, d}, or a|b."""

    elements: tuple["Operand", ...]


Operand = Register | Name | Number | Address | Vector


@dataclass(frozen=True)
class Instruction:
    opcode: str
    parts: tuple[str, ...]  # of the opcode, between the dots
    operands: tuple[Operand, ...]
    guard: Register | None  # it executes where this is true,
    negated: bool  # or false
    place: str  # for errors

    def __str__(self) -> str:
        return self.place


@dataclass
class Kernel:
    name: str
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)  # offset and bytes of each
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)  # address and bytes of each static array
    shared_end: int = SHARED_BEGIN
    registers: list[Register] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # of the source, by number

    @property
    def dynamic_begin(self) -> int:
        begin = -(-self.shared_end // 128) * 128
        return begin if begin % 1024 else begin + 128


def parse(text: str, name: str) -> Kernel:
    """The kernel of this name in a PTX text."""
    lines = [re.sub(r"//.*", "", line).replace("\t", " ") for line in text.splitlines()]
    kernel = Kernel(name, files=dict(re.findall(r'\.file\s+(\d+)\s+"(?:.*/)?([^"/]+)"', text)))
    for number, line in enumerate(lines):
        if line.startswith(".shared"):
            _declare_shared(kernel, line)
        if re.match(rf"(?:\.visible )?\.entry {name}\(", line):
            _read_kernel(kernel, lines, number + 1)
            return kernel
    raise PtxError(f"no kernel {name} in this PTX")


# .ptr says what a pointer points to: for the optimiser.
_PARAMETER = r"\s*\.param (?:\.align (\d+) )?\.(\w+) (?:\.ptr \.align \d+ )?(\w+)(?:\[(\d+)\])?,?$"


def _read_kernel(kernel: Kernel, lines: list[str], number: int) -> None:
    """Reads from behind the line of .entry."""
    offset = 0
    while lines[number].strip() != "{":
        parameter = re.match(_PARAMETER, lines[number])
        if parameter:
            size = TYPES[parameter[2]].itemsize * int(parameter[4] or 1)
            offset = _aligned(offset, int(parameter[1] or size))
            kernel.parameters[parameter[3]] = offset, size
            offset += size
        elif not re.match(r"\)?\s*(\.maxntid .*|\.minnctapersm .*)?$", lines[number]):
            raise PtxError(f"PTX line {number + 1}: not understood: {lines[number]}")
        number += 1
    _read_body(kernel, lines, number)


def _read_body(kernel: Kernel, lines: list[str], number: int) -> None:
    scopes: list[dict[str, Register]] = [{}]
    where, depth = "", 1
    for at, statement in _statements(lines, number + 1):
        if statement == "{":
            scopes.append({})
            depth += 1
        elif statement == "}":
            scopes.pop()
            depth -= 1
            if depth == 0:
                return
        elif statement.endswith(":"):
            kernel.labels[statement[:-1]] = len(kernel.instructions)
        elif statement.startswith(".loc"):
            _, file, line, *_ = statement.split()
            where = f" ({kernel.files[file]}:{line})"
        elif statement.startswith(".reg"):
            _declare_registers(kernel, scopes[-1], statement)
        elif statement.startswith(".shared"):
            _declare_shared(kernel, statement)
        elif not statement.startswith(".pragma"):
            shown = statement if len(statement) < 120 else f"{statement[:80]} ... {statement[-35:]}"
            place = f"{kernel.name}, PTX line {at + 1}{where}: {shown}"
            kernel.instructions.append(_instruction(statement, scopes, place))
    raise PtxError(f"kernel {kernel.name} has no end")


def _statements(lines: list[str], number: int) -> Iterator[tuple[int, str]]:
    """(line, text) of each brace, label, directive and instruction, these without the semicolon."""
    rest = ""
    while number < len(lines):
        rest = (rest + " " + lines[number]).strip()
        while rest:
            found = re.match(r"[{}]|[$\w]+:|\.loc .*$|[^;]*;", rest)
            if found is None:
                break  # the instruction goes on
            yield number, found[0].rstrip(";").strip()
            rest = rest[found.end() :].strip()
        number += 1


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _declare_shared(kernel: Kernel, statement: str) -> None:
    found = re.match(r"\.shared \.align (\d+) \.(\w+) ([$\w]+)(?:\[(\d+)\])?;?$", statement)
    if found is None or found[2] not in TYPES:
        raise PtxError(f"kernel {kernel.name}: not understood: {statement}")
    begin, size = _aligned(kernel.shared_end, int(found[1])), TYPES[found[2]].itemsize * int(found[4] or 1)
    kernel.shared[found[3]] = begin, size
    kernel.shared_end = begin + size


def _declare_registers(kernel: Kernel, scope: dict[str, Register], statement: str) -> None:
    found = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement)
    if found is None or found[1] not in TYPES:
        raise PtxError(f"kernel {kernel.name}: not understood: {statement}")
    for declarator in found[2].split(","):
        many = re.fullmatch(r"(%\w+)<(\d+)>", declarator.strip())
        for name in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [declarator.strip()]:
            scope[name] = Register(name, TYPES[found[1]], len(kernel.registers))
            kernel.registers.append(scope[name])


def _instruction(statement: str, scopes: list[dict[str, Register]], place: str) -> Instruction:
    guard, negated = None, False
    guarded = re.match(r"@(!?)(%?\w+)\s+", statement)
    if guarded:
        statement, negated = statement[guarded.end() :], bool(guarded[1])
        operand = _operand(guarded[2], scopes, place)
        if not isinstance(operand, Register):
            raise PtxError(f"{place}: no predicate")
        guard = operand
    opcode, _, rest = statement.partition(" ")
    operands = tuple(_operand(part, scopes, place) for part in _split(rest))
    return Instruction(opcode, tuple(opcode.split(".")), operands, guard, negated, place)


def _split(text: str) -> list[str]:
    """At the commas that stand in no brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", text) if part.strip()]


def _operand(text: str, scopes: list[dict[str, Register]], place: str) -> Operand:
    if text[0] == "{" or "|" in text:
        parts = text.strip("{}").split("|" if "|" in text else ",")
        return Vector(tuple(_operand(part.strip(), scopes, place) for part in parts))
    if text[0] == "[":
        found = re.fullmatch(r"\[([^+\]]+)(?:\+(-?\d+))?\]", text.replace(" ", ""))
        if found is None:
            raise PtxError(f"{place}: no such address: {text}")
        return Address(_operand(found[1], scopes, place), int(found[2] or 0))
    for scope in reversed(scopes):
        if text in scope:
            return scope[text]
    if re.fullmatch(r"-?\d\w*", text):
        return Number(text)
    if re.fullmatch(r"%(tid|ntid|ctaid|nctaid)\.[xyz]|[$_A-Za-z][$\w]*", text):
        return Name(text)
    raise PtxError(f"{place}: no such register: {text}")
