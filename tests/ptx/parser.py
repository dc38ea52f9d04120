"""PTX text → kernels: their parameters, variables in shared memory, registers, instructions and labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.ptx import dtypes
from tests.ptx.errors import Unsupported


@dataclass(frozen=True)
class Instruction:
    """@!%p1 opcode operands;"""

    opcode: str
    operands: tuple[str, ...]
    guard: str | None = None  # a predicate register
    negated: bool = False
    line: int = field(default=0, compare=False)  # of the module's text, from 0

    def __str__(self) -> str:
        guard = f"@{'!' * self.negated}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".rstrip()


@dataclass(frozen=True)
class Parameter:
    name: str
    size: int
    alignment: int


@dataclass
class Kernel:
    name: str
    parameters: list[Parameter]
    threads: int | None = None  # of a block, where the text says so: .reqntid
    registers: dict[str, str] = field(default_factory=dict)  # "%r" or "%r1" → "b32"
    shared: dict[str, int] = field(default_factory=dict)  # variable → offset
    static_shared: int = 0  # bytes; dynamic shared memory begins behind them
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # → index of an instruction

    def offsets(self) -> dict[str, int]:
        """Where each parameter begins."""
        found, end = {}, 0
        for p in self.parameters:
            begin = -(-end // p.alignment) * p.alignment
            found[p.name], end = begin, begin + p.size
        return found


_ENTRY = re.compile(r"^(?:\.visible\s+)?\.entry\s+([\w$]+)", re.M)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+\.b8\s+(?P<struct>[\w$]+)\[(?P<size>\d+)\]"
    r"|\.(?P<type>[bsuf]\d+)(?:\s+\.ptr(?:\s+\.(?!align)\w+)*(?:\s+\.align\s+\d+)?)?\s+(?P<name>[\w$]+))"
)
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]")
_REGISTERS = re.compile(r"^\.reg\s+\.(\w+)\s+(.*)$", re.S)
_LABEL = re.compile(r"^([$\w]+):\s*")
_INSTRUCTION = re.compile(r"^(?:@(!?)(%?[\w$]+)\s+)?([a-z]\w*(?:\.[\w:]+)*)\s*(.*)$", re.S)


def modules(text: str) -> list[str]:
    """The modules of what cuobjdump prints; a module alone is one."""
    return [".version" + part.split("\nFatbin", 1)[0] for part in re.split(r"(?m)^\.version", text)[1:]]


def entries(module: str) -> Iterator[tuple[str, str]]:
    """Name and text of each kernel, in order."""
    found = list(_ENTRY.finditer(module))
    ends = [entry.start() for entry in found[1:]] + [len(module)]
    for entry, end in zip(found, ends, strict=False):
        yield entry[1], module[entry.start() : end]


def parse(module: str, name: str | None = None) -> Kernel:
    """A kernel of a module, by default the only one."""
    texts = dict(entries(module))
    if name is None:
        (name,) = texts
    text = re.sub(r"//[^\n]*|/\*[^\n]*?\*/", "", texts[name])
    end = text.index(")")
    kernel = Kernel(name, [_parameter(m) for m in _PARAMETER.finditer(text[:end])])
    begin = text.index("{", end)
    if threads := re.search(r"\.reqntid\s+(\d+)", text[end:begin]):
        kernel.threads = int(threads[1])
    _place_shared(kernel, module, text)
    lines_before = module.count("\n", 0, module.index(texts[name])) + text.count("\n", 0, begin + 1)
    _read_body(kernel, text[begin + 1 :], lines_before)
    return kernel


def _parameter(m: re.Match[str]) -> Parameter:
    if m["struct"]:
        return Parameter(m["struct"], int(m["size"]), int(m["align"]))
    return Parameter(m["name"], dtypes.size(m["type"]), dtypes.size(m["type"]))


def _place_shared(kernel: Kernel, module: str, text: str) -> None:
    """Variables that the kernel names, one behind the other, then those of dynamic size."""
    dynamic = []
    for align, name, length in _SHARED.findall(re.sub(r"//[^\n]*", "", module)):
        if name not in text or name in kernel.shared:
            continue
        if not length:
            dynamic.append(name)
            continue
        begin = -(-kernel.static_shared // int(align)) * int(align)
        kernel.shared[name], kernel.static_shared = begin, begin + int(length)
    kernel.static_shared = -(-kernel.static_shared // 16) * 16
    kernel.shared |= dict.fromkeys(dynamic, kernel.static_shared)


def _read_body(kernel: Kernel, body: str, line: int) -> None:
    body = re.sub(r"(?m)^\s*?\.(?:loc|section|file)\b.*", "", body.split("\n\t.section", 1)[0])
    for part in body.split(";"):
        statement = part.strip()
        line += part.count("\n")
        while True:  # what may stand before an instruction
            statement = re.sub(r"^[{}\s]+", "", statement)
            if label := _LABEL.match(statement):
                kernel.labels[label[1]] = len(kernel.instructions)
                statement = statement[label.end() :]
                continue
            break
        if not statement:
            continue
        if statement.startswith("."):
            _read_directive(kernel, statement)
            continue
        m = _INSTRUCTION.match(statement)
        if m is None:
            raise Unsupported(f"no instruction: {statement}")
        operands = tuple(_operands(" ".join(m[4].split())))
        kernel.instructions.append(Instruction(m[3], operands, m[2], m[1] == "!", line))


def _read_directive(kernel: Kernel, statement: str) -> None:
    if m := _REGISTERS.match(statement):
        for name in m[2].split(","):
            kernel.registers[name.strip().partition("<")[0]] = m[1]
    elif not statement.startswith((".pragma", ".shared")):
        raise Unsupported(f"directive {statement.split()[0]}")


def _operands(text: str) -> Iterator[str]:
    """Split at commas outside of braces and brackets."""
    depth, begin = 0, 0
    for i, c in enumerate(text):
        depth += (c in "{[") - (c in "}]")
        if c == "," and depth == 0:
            yield text[begin:i].strip()
            begin = i + 1
    if text[begin:].strip():
        yield text[begin:].strip()


def vector(operand: str) -> list[str]:
    """The registers of {%r1, %r2}, or of %r1."""
    return [part.strip() for part in operand.strip("{} ").split(",")]
