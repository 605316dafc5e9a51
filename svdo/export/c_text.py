"""The C text of single steps: expressions, loops, tables, the header."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .c_layout import Layout
from .c_stages import Pooling, Product, Shape, Stage

LINE = 120


def is_dot(stage: Stage) -> bool:
    """Whether the stage is a product whose outputs are single numbers, as a dense layer's."""
    return isinstance(stage, Product) and stage.made[1:] == (1, 1) and stage.pooling is None


def halves(stage: Product, target: Layout) -> bool:
    """Whether what follows the product is the usual max pooling, 2 x 2, into rows whose pixels are neighbours."""
    pooling = stage.pooling
    return pooling is not None and pooling.kind == "max" and pooling.kernel == (2, 2) and target.stride[1] == 1


def rectifies(stage: Product) -> int:
    """Whether ReLU follows a product or its pooling, as C says it."""
    return int(stage.relu or (stage.pooling is not None and stage.pooling.relu))


def finished(stage: Product, array: str, width: int, lanes: int) -> str:
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


def pool(stage: Pooling, target: Layout, lanes: int) -> list[str]:
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
        body = ["for (int l = 0; l < 16; l++) {", *indented(body), "}"]
    return [
        f"for (int c = 0; c < {channels}; c++)",
        f"    for (int y = 0; y < {stage.shape[1]}; y++)",
        f"        for (int x = 0; x < {stage.shape[2]}; x++) {{",
        *indented([*lines, *body], 3),
        "        }",
    ]


def indented(lines: list[str], steps: int = 1) -> list[str]:
    """The lines, so many steps further in."""
    return ["    " * steps + line for line in lines]


def function(signature: str, lines: list[str], said: str = "", head: str = "static void") -> str:
    """A C function, with a comment above it where there is something to be said."""
    comment = f"/* {said} */\n" if said else ""
    return f"{comment}{head} {signature}\n{{\n" + "\n".join(indented(lines)) + "\n}\n"


def size(shape: Shape) -> str:
    """A shape in words."""
    return " x ".join(map(str, shape)) if shape[1:] != (1, 1) else str(shape[0])


def _number(value: np.generic) -> str:
    if not isinstance(value, np.float32):
        return str(value)
    text = str(value)  # the shortest that reads back as the same float
    return f"{text}f" if set(text) & set(".e") else f"{text}.0f"


def table(kind: str, name: str, values: npt.NDArray[np.generic]) -> str:
    """A constant array; one number, 0, where there are none, since no array in C may be empty."""
    items = [_number(value) for value in values] or ["0"]
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) + 2 > LINE:
            lines.append(line)
            line = "   "
        line += f" {item},"
    lines.append(line)
    return f"static const {kind} {name}[{len(items)}] = {{\n" + "\n".join(lines) + "\n};\n"


def header(name: str, inputs: int, outputs: int, sizes: tuple[int, int, int]) -> str:
    """The header: what can be called, and the bytes of tables, of buffers, and of those for batches."""
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
