"""From stages to C: the tables of taps, a function per stage, and the file around them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .c_kernels import LANES, kernels, preamble
from .c_layout import EIGHT, Layout, Offsets, Taps, eights
from .c_stages import Pooling, Product, Stage
from .c_text import finished, function, halves, header, indented, is_dot, pool, rectifies, size, table

ROOM = 16  # floats past a buffer's end that ``span`` may touch
ABREAST_BYTES = 1 << 18  # 16 images are computed abreast from the stage on whose buffers then stay in a CPU's second cache
BATCH = {"dot16", "pooled16", "turn"}  # kernels that batches alone use


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
        if taps[0] is not None and is_dot(first) and source >= EIGHT:
            starts = eights(source)
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
        self.tables.append(table(kind, name, values))

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
            self._loadeights(eights(inputs) if layout.packed is None else layout.packed, inputs, alike, abreast)
            return
        loops = [
            f"for (int c = 0; c < {channels}; c++)",
            f"    for (int y = 0; y < {height}; y++)",
            f"        for (int x = 0; x < {width}; x++)",
        ]
        value = f"(c * {height} + y) * {width} + x"
        place = f"c * {layout.channel} + {layout.row('y')} + {layout.column('x')}"
        lines = [*loops, f"            out[{place}] = image[{value}];"]
        self.functions.append(function("load(const float *image, float *restrict out)", lines))
        if abreast:
            lines = ["for (int l = 0; l < n; l++)", *indented(loops)]
            lines.append(f"                out[16 * ({place}) + l] = images[(size_t)l * {inputs} + {value}];")
            self.abreast.append(function("load_lanes(const float *images, int n, float *restrict out)", lines))

    def _loadeights(self, starts: Offsets, inputs: int, alike: bool, abreast: bool) -> None:
        """The same where eight neighbours stay neighbours: only those of which one is read."""
        self._table(self.index, "input_at", starts)
        loop = f"for (int i = 0; i < {len(starts)}; i++)"
        place = "input_at[i]" if alike else f"{EIGHT} * i"
        lines = [loop, f"    for (int j = 0; j < {EIGHT}; j++)", f"        out[{place} + j] = image[input_at[i] + j];"]
        self.functions.append(function("load(const float *image, float *restrict out)", lines))
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
            self.abreast.append(function("load_lanes(const float *images, int n, float *restrict out)", lines))

    def _product(self, label: str, stage: Product, source: Layout, target: Layout, lanes: int) -> None:
        arguments = f"{label}_at + first, {label}_weight + first, n, {label}_bias[o]"
        outer: list[str] = []
        if is_dot(stage):
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
            *indented(inner),
            "}",
        ]
        made = function(
            f"{label}{'_lanes' if lanes > 1 else ''}(const float *in, float *restrict out)",
            [*lines[: len(outer)], *indented(lines[len(outer) :], len(outer))],
            f"{stage.name}: {size(stage.source)} -> {size(stage.shape)}",
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
        halved = halves(stage, target)
        lines = [
            f"span(in, {arguments}, plane, {count}, 1, {int(stage.relu and not halved)});",
            f"for (int y = 0; y < {height}; y++)",
        ]
        if halved:
            self.used.add("halve")
            place = f"o * {target.channel} + {target.row('y')} + {target.column('0')}"
            upper = f"plane + {2 * width} * y"
            return [*lines, f"    halve({upper}, {upper} + {width}, out + {place}, {columns}, {rectifies(stage)});"]
        place = f"o * {target.channel} + {target.row('y')} + {target.column('x')}"
        value = finished(stage, "plane", width, 1)
        return [*lines, f"    for (int x = 0; x < {columns}; x++)", f"        out[{place}] = {value};"]

    def _band(self, stage: Product, source: Layout, target: Layout, arguments: str) -> list[str]:
        """16 images: a span is a row of them, and the rows that are pooled together are made together."""
        rows = stage.pooling.kernel[0] if stage.pooling else 1
        count, columns, step = 16 * stage.made[2], stage.shape[2], 16 * source.phase[1]
        self.used.add("span")
        if halves(stage, target):
            self.used.add("pooled16")
            place = f"16 * (o * {target.channel} + {target.row('y')} + {target.column('0')})"
            return [
                f"pooled16(in + {2 * step} * y, {arguments}, out + {place}, {columns}, {step}, {rectifies(stage)});",
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
            f"        out[16 * ({place}) + l] = {finished(stage, 'band', stage.made[2], 16)};",
        ]

    def _pooling(self, label: str, stage: Pooling, target: Layout, lanes: int) -> None:
        lines = pool(stage, target, lanes)
        made = function(
            f"{label}{'_lanes' if lanes > 1 else ''}(const float *in, float *restrict out)",
            lines,
            f"{stage.name}: {size(stage.source)} -> {size(stage.shape)}",
        )
        (self.abreast if lanes > 1 else self.functions).append(made)

    def _file(self, layouts: list[Layout], start: int, inputs: int, outputs: int) -> Source:
        single = [f"static float buffer{i + 1}[{layout.size + ROOM}] ALIGNED;" for i, layout in enumerate(layouts[:-1])]
        if self.plane:
            single.append(f"static float plane[{self.plane + ROOM}] ALIGNED;")
        last = len(self.stages)
        places = [f"buffer{i + 1}" for i in range(last)] + ["y"]
        calls = [f"stage{i + 1}({places[i]}, {places[i + 1]});" for i in range(last)]
        one = function(f"{self.name}_predict(const float *x, float *y)", ["load(x, buffer1);", *calls], head="void")
        lanes = [f"static float lanes{i + 1}[{16 * layouts[i].size}] ALIGNED;" for i in range(start, last + 1) if start < last]
        if self.band:
            lanes.append(f"static float band[{self.band}] ALIGNED;")
        single_bytes = 4 * (sum(layout.size + ROOM for layout in layouts[:-1]) + (self.plane + ROOM if self.plane else 0))
        lanes_bytes = 4 * (16 * sum(layout.size for layout in layouts[start:]) + self.band) if start < last else 0
        guard = f"{self.name.upper()}_NO_BATCH"
        batch = function(
            f"{self.name}_predict_batch(const float *x, float *y, int n)",
            self._batch(layouts, start, calls[:start], inputs, outputs),
            head="void",
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
        sizes = (self.table_bytes, single_bytes, lanes_bytes)
        return Source(self.name, text, header(self.name, inputs, outputs, sizes), self.header_name, inputs, outputs, *sizes)

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
