"""From stages to C: where each number lies, the tables of taps, and a function per stage."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .c_kernels import LANES, kernels, preamble
from .c_layers import Pooling, Product, Shape, Stage

ROOM = 16  # floats past a buffer's end that ``span`` may touch
ABREAST_BYTES = 1 << 18  # 16 images are computed abreast from the stage on whose buffers then stay in a CPU's second cache
EIGHT = 8  # numbers of the input that are copied, and laid abreast, together
LINE = 120
BATCH = {"dot16", "pooled16", "turn"}  # kernels that batches alone use

Offsets = npt.NDArray[np.int64]


@dataclass
class Layout:
    """Where the pixel (c, y, x) of a stage's input lies: at ``c * channel + row(y) + column(x)``.

    A convolution's input has its padding around it, zeros that nobody writes; under a stride of s every s-th column and row
    lies together, so that the outputs' inputs are neighbours whatever the stride.
    """

    shape: Shape
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    padded: tuple[int, int] = (0, 0)  # height and width with padding on all sides
    packed: Offsets | None = None  # of the network's input, where only the eights that start here are read

    @classmethod
    def of(cls, stage: Stage) -> Layout:
        """The layout that ``stage`` reads."""
        if isinstance(stage, Pooling):
            return cls(stage.source, padded=stage.source[1:])
        needed = [
            max(size + before, (outputs - 1) * stride + dilation * (kernel - 1) + 1)
            for size, before, outputs, stride, dilation, kernel in zip(
                stage.source[1:],
                stage.padding,
                stage.made[1:],
                stage.stride,
                stage.dilation,
                stage.weight.shape[2:],
                strict=True,
            )
        ]
        return cls(stage.source, stage.stride, stage.padding, (needed[0], needed[1]))

    @property
    def phase(self) -> tuple[int, int]:
        """Height and width of the part of a channel that lies together."""
        height, width = (math.ceil(size / stride) for size, stride in zip(self.padded, self.stride, strict=True))
        return height, width

    @property
    def channel(self) -> int:
        """Floats from one channel to the next."""
        return math.prod(self.phase) * math.prod(self.stride)

    @property
    def size(self) -> int:
        """Floats of an image."""
        return self.shape[0] * self.channel if self.packed is None else EIGHT * len(self.packed)

    def place(self, c: Offsets, y: Offsets, x: Offsets) -> Offsets:
        """The offset of a pixel, counted from the padding's corner."""
        height, width = self.phase
        phase = (y % self.stride[0]) * self.stride[1] + x % self.stride[1]
        return c * self.channel + phase * height * width + y // self.stride[0] * width + x // self.stride[1]

    def row(self, y: str) -> str:
        """``place`` in C, its part that depends on y."""
        y, (height, width) = _plus(y, self.padding[0]), self.phase
        if self.stride[0] == 1:
            return f"{y} * {width}"
        return f"({y} % {self.stride[0]} * {self.stride[1] * height * width} + {y} / {self.stride[0]} * {width})"

    def column(self, x: str) -> str:
        """And that which depends on x."""
        x, (height, width) = _plus(x, self.padding[1]), self.phase
        if self.stride[1] == 1:
            return x
        return f"({x} % {self.stride[1]} * {height * width} + {x} / {self.stride[1]})"


def _plus(name: str, number: int) -> str:
    return f"({name} + {number})" if number else name


@dataclass
class Source:
    """One network's C file, its header, and what they say about its size."""

    name: str
    text: str
    header: str
    header_name: str
    inputs: int
    outputs: int
    table_bytes: int
    buffer_bytes: int
    batch_bytes: int


@dataclass
class Taps:
    """The nonzero weights of a product: those of output o are ``start[o] ... start[o + 1]`` of ``at`` and ``value``."""

    start: Offsets
    at: Offsets
    value: npt.NDArray[np.float32]

    @classmethod
    def of(cls, product: Product, layout: Layout) -> Taps:
        """In order of their place in the input."""
        o, c, y, x = (index.astype(np.int64) for index in product.weight.nonzero())
        at = layout.place(c, y * product.dilation[0], x * product.dilation[1])
        order = np.lexsort((at, o))
        start = np.concatenate([[0], np.cumsum(np.bincount(o, minlength=len(product.weight)))])
        return cls(start, at[order], product.weight[o, c, y, x][order])


@dataclass
class Writer:
    """Writes the file of a chain of stages."""

    name: str
    header_name: str
    stages: list[Stage]
    tables: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    abreast: list[str] = field(default_factory=list)
    table_bytes: int = 0
    plane: int = 0  # floats of the scratch image
    band: int = 0
    used: set[str] = field(default_factory=set)

    def write(self) -> Source:
        """All of it."""
        first, last = self.stages[0], self.stages[-1]
        source = math.prod(first.source)
        layouts = [Layout.of(stage) for stage in self.stages]
        outputs = Layout(last.shape, padded=last.shape[1:])
        taps = [Taps.of(s, layout) if isinstance(s, Product) else None for s, layout in zip(self.stages, layouts, strict=True)]
        if taps[0] is not None and _is_dot(first) and source >= EIGHT:
            starts = _eights(source)
            group = np.minimum(taps[0].at // EIGHT, len(starts) - 1)
            read, place = np.unique(group, return_inverse=True)
            layouts[0].packed = starts[read]
            taps[0].at = place * EIGHT + taps[0].at - starts[group]
        largest = max((int(t.at.max(initial=0)) for t in taps if t is not None), default=0)
        self.index = "uint16_t" if max(largest, source) < 1 << 16 else "uint32_t"
        layouts.append(outputs)
        start = self._abreast_from(layouts)
        self._load(layouts[0], start == 0)
        for i, (stage, found) in enumerate(zip(self.stages, taps, strict=True)):
            label = f"stage{i + 1}"
            if isinstance(stage, Product):
                assert found is not None
                self._taps(label, stage, found)
                self._product(label, stage, layouts[i], layouts[i + 1], 1)
                if i >= start:
                    self._product(label, stage, layouts[i], layouts[i + 1], LANES)
            else:
                self._pooling(label, stage, layouts[i + 1], 1)
                if i >= start:
                    self._pooling(label, stage, layouts[i + 1], LANES)
        return self._file(layouts, start, source, outputs.size)

    def _abreast_from(self, layouts: list[Layout]) -> int:
        """The first stage that is computed for 16 images abreast: from there on all are small enough."""
        start = len(self.stages)
        while start and 4 * LANES * (layouts[start - 1].size + layouts[start].size) <= ABREAST_BYTES:
            start -= 1
        return start

    def _table(self, kind: str, name: str, values: npt.NDArray[np.generic]) -> None:
        size = {"uint16_t": 2, "uint32_t": 4, "float": 4}[kind]
        self.table_bytes += size * max(len(values), 1)
        self.tables.append(_table(kind, name, values))

    def _taps(self, label: str, stage: Product, taps: Taps) -> None:
        self.tables.append(f"/* {stage.name}: {len(taps.at)} of {stage.weight.size} weights */\n")
        self._table("uint16_t" if taps.start[-1] < 1 << 16 else "uint32_t", f"{label}_start", taps.start)
        self._table(self.index, f"{label}_at", taps.at)
        self._table("float", f"{label}_weight", taps.value)
        self._table("float", f"{label}_bias", stage.bias)

    def _load(self, layout: Layout, abreast: bool) -> None:
        """Copy the network's input to where the first stage reads it."""
        (channels, height, width), inputs = layout.shape, math.prod(layout.shape)
        alike = layout.packed is None and layout.stride == (1, 1) and layout.size == inputs
        if layout.packed is not None or (alike and inputs >= EIGHT):
            self._load_eights(_eights(inputs) if layout.packed is None else layout.packed, inputs, alike, abreast)
            return
        loops = [
            f"for (int c = 0; c < {channels}; c++)",
            f"    for (int y = 0; y < {height}; y++)",
            f"        for (int x = 0; x < {width}; x++)",
        ]
        value = f"(c * {height} + y) * {width} + x"
        place = f"c * {layout.channel} + {layout.row('y')} + {layout.column('x')}"
        lines = [*loops, f"            out[{place}] = image[{value}];"]
        self.functions.append(_function("load(const float *image, float *restrict out)", lines))
        if abreast:
            lines = ["for (int l = 0; l < n; l++)", *_indented(loops)]
            lines.append(f"                out[16 * ({place}) + l] = images[(size_t)l * {inputs} + {value}];")
            self.abreast.append(_function("load_lanes(const float *images, int n, float *restrict out)", lines))

    def _load_eights(self, starts: Offsets, inputs: int, alike: bool, abreast: bool) -> None:
        """The same where eight neighbours stay neighbours: only those of which one is read."""
        self._table(self.index, "input_at", starts)
        loop = f"for (int i = 0; i < {len(starts)}; i++)"
        place = "input_at[i]" if alike else f"{EIGHT} * i"
        lines = [loop, f"    for (int j = 0; j < {EIGHT}; j++)", f"        out[{place} + j] = image[input_at[i] + j];"]
        self.functions.append(_function("load(const float *image, float *restrict out)", lines))
        if abreast:
            self.used.add("turn")
            lines = [f"{loop} {{", "    const float *from = images + input_at[i];", f"    float *to = out + 16 * ({place});"]
            lines += [
                "    if (n == 16) {",
                f"        turn(from, {inputs}, to);",
                f"        turn(from + 8 * {inputs}, {inputs}, to + 8);",
            ]
            lines += ["    } else {", "        for (int l = 0; l < n; l++)", f"            for (int j = 0; j < {EIGHT}; j++)"]
            lines += [f"                to[16 * j + l] = from[l * {inputs} + j];", "    }", "}"]
            self.abreast.append(_function("load_lanes(const float *images, int n, float *restrict out)", lines))

    def _product(self, label: str, stage: Product, source: Layout, target: Layout, lanes: int) -> None:
        arguments = f"{label}_at + first, {label}_weight + first, n, {label}_bias[o]"
        outer: list[str] = []
        if _is_dot(stage):
            inner = self._dot(stage, target, arguments, lanes)
        elif lanes == 1:
            inner = self._plane(stage, source, target, arguments)
        else:  # rows outermost: those of the input that they read stay in the first cache
            inner = self._band(stage, source, target, arguments)
            outer = [f"for (int y = 0; y < {stage.shape[1]}; y++)"]
        lines = [
            *outer,
            f"for (int o = 0; o < {stage.made[0]}; o++) {{",
            f"    const size_t first = {label}_start[o];",
            f"    const int n = (int)({label}_start[o + 1] - first);",
            *_indented(inner),
            "}",
        ]
        made = _function(
            f"{label}{'_lanes' if lanes > 1 else ''}(const float *in, float *restrict out)",
            [*lines[: len(outer)], *_indented(lines[len(outer) :], len(outer))],
            f"{stage.name}: {_shape(stage.source)} -> {_shape(stage.shape)}",
        )
        (self.abreast if lanes > 1 else self.functions).append(made)

    def _dot(self, stage: Product, target: Layout, arguments: str, lanes: int) -> list[str]:
        place = f"o * {target.channel} + {target.row('0')} + {target.column('0')}"
        self.used.add("dot" if lanes == 1 else "dot16")
        if lanes == 1:
            call = f"dot(in, {arguments})"
            return [f"out[{place}] = {f'relu({call})' if stage.relu else call};"]
        return [f"dot16(in, {arguments}, out + 16 * ({place}), {int(stage.relu)});"]

    def _plane(self, stage: Product, source: Layout, target: Layout, arguments: str) -> list[str]:
        """One image: a channel's whole plane is one span, with what lies between its rows computed in vain."""
        width = source.phase[1]
        count = (stage.made[1] - 1) * width + stage.made[2]
        self.plane = max(self.plane, count)
        self.used.add("span")
        _, height, columns = stage.shape
        halves = _halves(stage, target)
        lines = [
            f"span(in, {arguments}, plane, {count}, 1, {int(stage.relu and not halves)});",
            f"for (int y = 0; y < {height}; y++)",
        ]
        if halves:
            self.used.add("halve")
            place = f"o * {target.channel} + {target.row('y')} + {target.column('0')}"
            upper = f"plane + {2 * width} * y"
            return [*lines, f"    halve({upper}, {upper} + {width}, out + {place}, {columns}, {_rectifies(stage)});"]
        place = f"o * {target.channel} + {target.row('y')} + {target.column('x')}"
        value = _finished(stage, "plane", width, 1)
        return [*lines, f"    for (int x = 0; x < {columns}; x++)", f"        out[{place}] = {value};"]

    def _band(self, stage: Product, source: Layout, target: Layout, arguments: str) -> list[str]:
        """16 images: a span is a row of them, and the rows that are pooled together are made together."""
        rows = stage.pooling.kernel[0] if stage.pooling else 1
        count, columns, step = 16 * stage.made[2], stage.shape[2], 16 * source.phase[1]
        self.used.add("span")
        if _halves(stage, target):
            self.used.add("pooled16")
            place = f"16 * (o * {target.channel} + {target.row('y')} + {target.column('0')})"
            return [
                f"pooled16(in + {2 * step} * y, {arguments}, out + {place}, {columns}, {step}, {_rectifies(stage)});",
            ]
        place = f"o * {target.channel} + {target.row('y')} + {target.column('0')}"
        if stage.pooling is None and target.stride[1] == 1:
            return [f"span(in + {step} * y, {arguments}, out + 16 * ({place}), {count}, 16, {int(stage.relu)});"]
        self.band = max(self.band, rows * count)
        place = f"o * {target.channel} + {target.row('y')} + {target.column('x')}"
        return [
            f"for (int r = 0; r < {rows}; r++)",
            f"    span(in + {step} * (y * {rows} + r), {arguments}, band + r * {count}, {count}, 16, {int(stage.relu)});",
            f"for (int x = 0; x < {columns}; x++)",
            "    for (int l = 0; l < 16; l++)",
            f"        out[16 * ({place}) + l] = {_finished(stage, 'band', stage.made[2], 16)};",
        ]

    def _pooling(self, label: str, stage: Pooling, target: Layout, lanes: int) -> None:
        lines = _pool(stage, target, lanes)
        made = _function(
            f"{label}{'_lanes' if lanes > 1 else ''}(const float *in, float *restrict out)",
            lines,
            f"{stage.name}: {_shape(stage.source)} -> {_shape(stage.shape)}",
        )
        (self.abreast if lanes > 1 else self.functions).append(made)

    def _file(self, layouts: list[Layout], start: int, inputs: int, outputs: int) -> Source:
        single = [f"static float buffer{i + 1}[{layout.size + ROOM}] ALIGNED;" for i, layout in enumerate(layouts[:-1])]
        if self.plane:
            single.append(f"static float plane[{self.plane + ROOM}] ALIGNED;")
        last = len(self.stages)
        places = [f"buffer{i + 1}" for i in range(last)] + ["y"]
        calls = [f"stage{i + 1}({places[i]}, {places[i + 1]});" for i in range(last)]
        one = _function(
            f"{self.name}_predict(const float *x, float *y)", ["load(x, buffer1);", *calls], head="void", restrict=False
        )
        lanes = [f"static float lanes{i + 1}[{16 * layouts[i].size}] ALIGNED;" for i in range(start, last + 1) if start < last]
        if self.band:
            lanes.append(f"static float band[{self.band}] ALIGNED;")
        single_bytes = 4 * (sum(layout.size + ROOM for layout in layouts[:-1]) + (self.plane + ROOM if self.plane else 0))
        lanes_bytes = 4 * (16 * sum(layout.size for layout in layouts[start:]) + self.band) if start < last else 0
        guard = f"{self.name.upper()}_NO_BATCH"
        batch = _function(
            f"{self.name}_predict_batch(const float *x, float *y, int n)",
            self._batch(layouts, start, calls[:start], inputs, outputs),
            head="void",
            restrict=False,
        )
        needed = self.used
        sections = [
            f"/* Written by svdo. Compile with: cc -O3 -march=native -ffp-contract=fast -c {self.header_name[:-2]}.c */\n",
            f'#include "{self.header_name}"\n#include <stddef.h>\n#include <stdint.h>\n',
            preamble(self.name),
            *kernels(self.index, needed - BATCH),
            *self.tables,
            "\n".join(single) + "\n",
            *self.functions,
            one,
            f"#ifndef {guard}\n",
            *(kernels(self.index, needed & BATCH)),
            "\n".join(lanes) + "\n" if lanes else "",
            *self.abreast,
            batch,
            "#endif\n",
        ]
        text = "\n".join(section for section in sections if section)
        header = _header(self.name, inputs, outputs, (self.table_bytes, single_bytes, lanes_bytes))
        return Source(self.name, text, header, self.header_name, inputs, outputs, self.table_bytes, single_bytes, lanes_bytes)

    def _batch(self, layouts: list[Layout], start: int, calls: list[str], inputs: int, outputs: int) -> list[str]:
        last = len(self.stages)
        if start == last:
            return [
                "for (int i = 0; i < n; i++)",
                f"    {self.name}_predict(x + (size_t)i * {inputs}, y + (size_t)i * {outputs});",
            ]
        if start == 0:
            fill = ["    load_lanes(x, m, lanes1);"]
        else:
            fill = [
                "    for (int l = 0; l < m; l++) {",
                f"        load(x + (size_t)l * {inputs}, buffer1);",
                *(f"        {call}" for call in calls),
                f"        for (int i = 0; i < {layouts[start].size}; i++)",
                f"            lanes{start + 1}[16 * i + l] = buffer{start + 1}[i];",
                "    }",
            ]
        return [
            f"for (; n >= 4; n -= 16, x += 16 * {inputs}, y += 16 * {outputs}) {{",
            "    const int m = n < 16 ? n : 16;",
            *fill,
            *(f"    stage{i + 1}_lanes(lanes{i + 1}, lanes{i + 2});" for i in range(start, last)),
            "    for (int l = 0; l < m; l++)",
            f"        for (int i = 0; i < {outputs}; i++)",
            f"            y[l * {outputs} + i] = lanes{last + 1}[16 * i + l];",
            "}",
            "for (int i = 0; i < n; i++)",
            f"    {self.name}_predict(x + (size_t)i * {inputs}, y + (size_t)i * {outputs});",
        ]


def _eights(count: int) -> Offsets:
    """Where each eight of so many numbers starts; the last overlaps the one before it where that is needed."""
    return np.minimum(np.arange(0, count, EIGHT), count - EIGHT)


def _is_dot(stage: Stage) -> bool:
    return isinstance(stage, Product) and stage.made[1:] == (1, 1) and stage.pooling is None


def _halves(stage: Product, target: Layout) -> bool:
    """Whether what follows the product is the usual max pooling, 2 x 2, into rows whose pixels are neighbours."""
    pooling = stage.pooling
    return pooling is not None and pooling.kind == "max" and pooling.kernel == (2, 2) and target.stride[1] == 1


def _rectifies(stage: Product) -> int:
    return int(stage.relu or (stage.pooling is not None and stage.pooling.relu))


def _finished(stage: Product, array: str, width: int, lanes: int) -> str:
    """The C expression of output (y, x), from the numbers in ``array`` whose rows are ``width`` pixels apart.

    Of 16 images the array has the rows of this y only.
    """

    def pixel(place: str) -> str:
        return f"{array}[16 * ({place}) + l]" if lanes > 1 else f"{array}[{place}]"

    pooling = stage.pooling
    if pooling is None:
        return pixel("x" if lanes > 1 else f"y * {width} + x")
    height, across = pooling.kernel
    base = f"x * {across}" if lanes > 1 else f"y * {height * width} + x * {across}"
    values = [pixel(f"{base} + {i * width + j}") for i in range(height) for j in range(across)]
    if pooling.kind == "average":
        divisor = pooling.divisor or height * across
        joined = f"({' + '.join(values)}) * {_number(np.float32(1.0 / divisor))}"
    else:
        joined = _largest(values)
    return f"relu({joined})" if pooling.relu else joined


def _largest(values: list[str]) -> str:
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return f"larger({_largest(values[:half])}, {_largest(values[half:])})"


def _pool(stage: Pooling, target: Layout, lanes: int) -> list[str]:
    """Pooling with windows of any kind, one output at a time."""
    channels, height, width = stage.source
    (above, left), average = stage.padding, stage.kind == "average"
    place = f"c * {target.channel} + {target.row('y')} + {target.column('x')}"
    pixel = f"(c * {height} + i) * {width} + j"
    if lanes > 1:
        place, pixel = f"16 * ({place}) + l", f"16 * ({pixel}) + l"
    steps = "v += w;" if average else "v = first ? w : larger(v, w), first = 0;"
    inside = [
        f"for (int i = top; i < bottom; i += {stage.dilation[0]})",
        f"    for (int j = start; j < end; j += {stage.dilation[1]})",
        f"        if (i >= 0 && i < {height} && j >= 0 && j < {width}) {{",
        f"            const float w = in[{pixel}];",
        f"            {steps}",
        "        }",
    ]
    if average and stage.counts_padding and not stage.divisor:
        # as torch: a window that reaches past the padding counts only what lies within
        rows = f"((bottom < {height + above} ? bottom : {height + above}) - top)"
        columns = f"((end < {width + left} ? end : {width + left}) - start)"
    else:
        rows = f"((bottom < {height} ? bottom : {height}) - (top > 0 ? top : 0))"
        columns = f"((end < {width} ? end : {width}) - (start > 0 ? start : 0))"
    divisor = str(stage.divisor) if stage.divisor else f"({rows} * {columns})"
    value = f"v / (float){divisor}" if average else "v"
    value = f"relu({value})" if stage.relu else value
    lines = [
        f"const int top = y * {stage.stride[0]} - {above}, bottom = top + {stage.dilation[0] * (stage.kernel[0] - 1) + 1};",
        f"const int start = x * {stage.stride[1]} - {left}, end = start + {stage.dilation[1] * (stage.kernel[1] - 1) + 1};",
    ]
    body = ["float v = 0.0f;", *([] if average else ["int first = 1;"]), *inside, f"out[{place}] = {value};"]
    if lanes > 1:
        body = ["for (int l = 0; l < 16; l++) {", *_indented(body), "}"]
    return [
        f"for (int c = 0; c < {channels}; c++)",
        f"    for (int y = 0; y < {stage.shape[1]}; y++)",
        f"        for (int x = 0; x < {stage.shape[2]}; x++) {{",
        *_indented([*lines, *body], 3),
        "        }",
    ]


def _indented(lines: list[str], steps: int = 1) -> list[str]:
    return ["    " * steps + line for line in lines]


def _function(signature: str, lines: list[str], said: str = "", head: str = "static void", restrict: bool = True) -> str:
    comment = f"/* {said} */\n" if said else ""
    return f"{comment}{head} {signature}\n{{\n" + "\n".join(_indented(lines)) + "\n}\n"


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape)) if shape[1:] != (1, 1) else str(shape[0])


def _number(value: np.generic) -> str:
    if not isinstance(value, np.float32):
        return str(value)
    text = str(value)  # the shortest that reads back as the same float
    return f"{text}f" if set(text) & set(".e") else f"{text}.0f"


def _table(kind: str, name: str, values: npt.NDArray[np.generic]) -> str:
    items = [_number(value) for value in values] or ["0"]
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) + 2 > LINE:
            lines.append(line)
            line = "   "
        line += f" {item},"
    lines.append(line)
    return f"static const {kind} {name}[{len(items)}] = {{\n" + "\n".join(lines) + "\n};\n"


def _header(name: str, inputs: int, outputs: int, sizes: tuple[int, int, int]) -> str:
    guard = f"{name.upper()}_H"
    tables, single, batch = sizes
    return f"""\
/* Written by svdo. {inputs} numbers in, {outputs} out; C99, no allocation, no library.

   Tables {tables} bytes (const), buffers {single} bytes (static), and {batch} more for batches, which
   {name.upper()}_NO_BATCH leaves out. Not for two threads at once: the buffers are shared. Inputs must be finite. */
#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

/* One image: x[{inputs}], channels outermost, to y[{outputs}]. */
void {name}_predict(const float *x, float *y);

#ifndef {name.upper()}_NO_BATCH
/* n images, one after the other: x[n * {inputs}] to y[n * {outputs}]. */
void {name}_predict_batch(const float *x, float *y, int n);
#endif

#ifdef __cplusplus
}}
#endif

#endif
"""
