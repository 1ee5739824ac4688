"""Figures of a compiled program, read from its HLO text: kernels, memory traffic, collectives.

HLO prints one instruction per line, grouped into computations:

    %name = f32[8,128]{1,0:T(8,128)} fusion(%a, %b), kind=kLoop, calls=%computation
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Instructions that launch no kernel and move no data.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "get-dimension-size"),
    *("while", "conditional", "call", "async-update"),
}
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "Sharding", "GetDimensionSize")
_READS_A_PIECE = ("dynamic-slice", "slice", "gather")
_BITS = {"pred": 8, "token": 0, "opaque": 0}

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_OPERAND = re.compile(r"%([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program: its element type, its shape and its layout in memory."""

    dtype: str  # as in HLO: "bf16"
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes without padding."""
        return math.prod(self.shape) * _bits(self.dtype) // 8

    @property
    def padded_bytes(self) -> int:
        """Bytes that it occupies, with its dimensions padded to the tiles of a TPU."""
        order, _, tiling = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiling)
        if not tile or not self.shape:
            return self.nbytes
        sides = [self.shape[int(i)] for i in reversed(order.split(","))]
        for i, size in enumerate(reversed([int(n) for n in tile[1].split(",")]), 1):
            if i <= len(sides):
                sides[-i] = -(-sides[-i] // size) * size
        return math.prod(sides) * _bits(self.dtype) // 8

    @property
    def is_in_main_memory(self) -> bool:
        """Whether it lies in the main memory of the device: not in VMEM, on the host, a flag."""
        return "S(" not in self.layout

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@functools.cache
def _bits(dtype):
    bits = re.search(r"\d+", dtype)
    return _BITS[dtype] if dtype in _BITS else int(bits[0]) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # the result; several of a tuple
    operands: tuple[str, ...]
    attributes: str

    def called(self, *keys: str) -> list[str]:
        """List the computations that an attribute such as "calls" names."""
        found = re.findall(rf"\b(?:{'|'.join(keys)})=(\{{[^}}]*\}}|%?[\w.-]+)", self.attributes)
        return [name for names in found for name in re.findall(r"[\w.-]+", names)]

    @property
    def source(self) -> str:
        """The traced operation that it comes from, such as "jit(train_step)/dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1].replace("\\'", "'") if found else self.opcode


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of a kind and element type."""

    kind: str
    dtype: str
    is_async: bool  # whether computation may overlap it
    count: int
    nbytes: int  # of the larger of inputs and outputs of all of them, on one device


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Results of the same type and shape in main memory."""

    array: Array
    count: int
    source: str  # of the first one

    @property
    def nbytes(self) -> int:
        """Padded bytes of one of them."""
        return self.array.padded_bytes


class Program:
    """The instructions of a compiled program that run, with how often each does.

    The body of a loop counts as often as XLA states, or once if it does not: a multi-step takes as
    many steps as it is called for.
    """

    def __init__(self, text: str):
        self._computations, entry = _parse(text)
        self._runs = collections.defaultdict(float)
        self._count(entry, 1)

    def _count(self, name, times):
        self._runs[name] += times
        for one in self._computations[name].values():
            if one.opcode == "while":
                found = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.attributes)
                trips = times * (int(found[1]) if found else 1)
                for body in one.called("body"):
                    self._count(body, trips)
            elif one.opcode in ("call", "conditional"):
                keys = ("to_apply", "calls", "branch_computations")
                for called in one.called(*keys, "true_computation", "false_computation"):
                    self._count(called, times)

    def _instructions(self) -> Iterator[tuple[Instruction, dict[str, Instruction], float]]:
        """Yield the instructions that run, those of their computation, and how often they run."""
        for name, times in self._runs.items():
            computation = self._computations[name]
            for one in computation.values():
                yield one, computation, times

    @property
    def num_kernels(self) -> int:
        """How many kernels run: fusions, library calls, collectives; no background copies."""
        copies = ("copy-start", "slice-start")
        found = (n for one, _, n in self._instructions() if _is_kernel(one, *copies))
        return round(sum(found))

    @property
    def num_fusions(self) -> int:
        """How many of the kernels are fusions."""
        found = self._instructions()
        return round(sum(times for one, _, times in found if one.opcode == "fusion"))

    @property
    def library_calls(self) -> dict[str, int]:
        """How often each library function runs, such as "__cublas$lt$matmul"."""
        found = collections.Counter()
        for one, _, times in self._instructions():
            if one.opcode == "custom-call":
                found[_target(one)] += round(times)
        return dict(found)

    @property
    def estimated_cycles(self) -> int:
        """The sum of the cycles that XLA estimates for a TPU's kernels; 0 on a GPU."""
        total = 0.0
        for one, _, times in self._instructions():
            if found := re.search(r'"estimated_cycles":"(\d+)"', one.attributes):
                total += times * int(found[1])
        return round(total)

    @property
    def bytes_moved(self) -> int:
        """Bytes that all kernels read from main memory and write to it, without padding.

        An operand of which a kernel needs slices counts as those; results in a TPU's VMEM and the
        workspaces of libraries count as nothing.
        """
        return round(sum(n * self._traffic(one, block) for one, block, n in self._instructions()))

    def _traffic(self, one, computation):
        if not _is_kernel(one) or one.opcode.endswith("-done"):
            return 0
        inputs = [_main_bytes(_results(computation[name])) for name in one.operands]
        results = _results(one)
        if one.opcode.endswith("-start"):  # its result repeats the operands
            if one.opcode in ("copy-start", "slice-start"):
                source = next(iter(computation[one.operands[0]].arrays))
                moved = next((a for a in results if a.layout != source.layout), results[0])
                if one.opcode == "slice-start":
                    inputs = [moved.nbytes if source.is_in_main_memory else 0]
                return inputs[0] + _main_bytes([moved])
            return 2 * sum(inputs)
        written = _main_bytes(results)
        called = one.called("calls") if one.opcode == "fusion" else []
        if called:
            inside = self._computations[called[0]]
            for i, piece in self._pieces(inside).items():
                inputs[i] = min(inputs[i], piece)
            written = min(written, _updated(inside, written))
        elif one.opcode in _READS_A_PIECE:
            inputs[0] = min(inputs[0], written)
        elif one.opcode == "dynamic-update-slice":
            inputs[0], written = 0, inputs[1]
        return sum(inputs) + written

    def _pieces(self, inside):
        """Map the parameters of a fusion that are only sliced to the bytes that are read."""
        users = collections.defaultdict(list)
        for one in inside.values():
            for name in set(one.operands):
                users[name].append(one)
        pieces = {}
        for one in inside.values():
            if one.opcode != "parameter":
                continue
            index = int(re.match(r"\d+", one.attributes)[0])  # type: ignore
            readers = users[one.name]
            while len(readers) == 1 and readers[0].opcode == "bitcast":
                readers = users[readers[0].name]
            sliced = [u for u in readers if u.opcode in _READS_A_PIECE]
            if readers and len(sliced) == len(readers):
                pieces[index] = sum(a.nbytes for u in sliced for a in u.arrays)
            elif len(readers) == 1 and readers[0].opcode == "dynamic-update-slice":
                if readers[0].operands[0] == one.name:
                    pieces[index] = 0  # updated in place
        return pieces

    @property
    def collectives(self) -> list[Collective]:
        """The collectives that run, by kind, element type and whether they are asynchronous."""
        found = collections.defaultdict(lambda: [0.0, 0.0])
        for one, computation, times in self._instructions():
            kind, is_async = self._collective(one)
            if not kind or one.opcode.endswith("-done"):
                continue
            dones = [u for u in computation.values() if one.name in u.operands]
            results = [u for u in dones if u.opcode.endswith("-done")] if is_async else []
            inputs = [a for name in one.operands for a in _results(computation[name])]
            outputs = [a for u in results or [one] for a in u.arrays]
            dtypes = "+".join(sorted({a.dtype for a in inputs or outputs}))
            total = found[kind, dtypes, is_async]
            total[0] += times
            total[1] += times * max(sum(a.nbytes for a in arrays) for arrays in (inputs, outputs))
        return [
            Collective(kind, dtype, is_async, round(count), round(nbytes))
            for (kind, dtype, is_async), (count, nbytes) in sorted(found.items())
        ]

    def _collective(self, one):
        """Find the kind of collective that an instruction starts, and whether it is asynchronous.

        A GPU's "-start" may be synchronous; a TPU may fuse a collective with other operations.
        """
        base = one.opcode.removesuffix("-start")
        if base in _COLLECTIVES:
            is_sync = base == one.opcode or '"is_sync":true' in one.attributes
            return base, not is_sync
        if one.opcode in ("fusion", "async-start"):
            for name in one.called("calls"):
                for inner in self._computations.get(name, {}).values():
                    kind, _ = self._collective(inner)
                    if kind:
                        return kind, one.opcode == "async-start"
        return "", False

    def largest_buffers(self, count: int) -> list[Buffer]:
        """List the largest results in main memory; the program need not hold them all at once."""
        found = {}
        for one, _, times in self._instructions():
            if one.opcode in _FREE - {"parameter"} or one.opcode.endswith("-done"):
                continue
            for array in _results(one):
                if array.is_in_main_memory:
                    total, source = found.get(array, (0, one.source))
                    found[array] = total + times, source
        arrays = sorted(found, key=lambda array: array.padded_bytes, reverse=True)
        return [Buffer(a, round(found[a][0]), found[a][1]) for a in arrays[:count]]


def _parse(text):
    """Parse HLO text; return {computation: {name: instruction}} and the name of the entry."""
    computations, current, entry = {}, {}, ""
    for line in text.splitlines():
        if line[:1] in "%E" and line.rstrip().endswith("{"):
            name = re.match(r"(?:ENTRY )?%?([\w.-]+)", line)[1]  # type: ignore
            current = computations[name] = {}
            entry = name if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(line):
            one = _parse_instruction(*match.groups())
            current[one.name] = one
    return computations, entry


def _parse_instruction(name, rest):
    result, rest = _split_type(rest)
    opcode, _, rest = rest.partition("(")
    depth, end = 1, 0
    while depth:  # to the bracket that closes the operands
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    inner, attributes = rest[: end - 1], rest[end:]
    if opcode == "parameter":
        attributes = f"{inner} {attributes}"
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in shape.split(",") if n), layout)
        for dtype, shape, layout in _ARRAY.findall(result)
    )
    return Instruction(name, opcode, arrays, tuple(_OPERAND.findall(inner)), attributes)


def _split_type(text):
    """Split off the type, which may be a tuple, that precedes an opcode."""
    depth = 0
    for i, char in enumerate(text):
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(char, 0)
        if char == " " and not depth:
            return text[:i], text[i + 1 :]
    return text, ""


def _is_kernel(one, *others):
    if one.opcode == "custom-call":
        return _target(one) not in _FREE_CALLS
    return one.opcode not in (*_FREE, *others) and not one.opcode.endswith("-done")


def _target(one):
    found = re.search(r'custom_call_target="([^"]*)"', one.attributes)
    return found[1] if found else ""


def _results(one):
    """List the results of an instruction, without the workspace of a library."""
    is_library = one.opcode == "custom-call" and _target(one).startswith("__cu")
    if is_library and len(one.arrays) > 1 and one.arrays[-1].dtype in ("s8", "u8"):
        return list(one.arrays[:-1])
    return list(one.arrays)


def _main_bytes(arrays):
    return sum(array.nbytes for array in arrays if array.is_in_main_memory)


def _updated(inside, written):
    """Compute the bytes that a fusion writes, which may update a slice in place."""
    root = list(inside.values())[-1]
    while root.opcode == "bitcast":
        root = inside[root.operands[0]]
    if root.opcode != "dynamic-update-slice":
        return written
    return sum(a.nbytes for a in inside[root.operands[1]].arrays)
