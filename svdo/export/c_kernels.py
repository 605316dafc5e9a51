"""The C text that every generated file shares: sums over taps, with GCC's and clang's vectors where they are there.

A tap is one nonzero weight: an offset into the input and a value. ``dot`` sums the taps of one number, ``dot16`` those of one
number for 16 images abreast, and ``span`` those of a stretch of neighbouring pixels, or images, which share their weights.
"""

from __future__ import annotations

LANES = 16  # images abreast

_PREAMBLE = """\
#if defined(__GNUC__) && !defined(@NAME@_PLAIN)
#define VECTORS 1
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#if defined(WIDTH) /* numbers in a vector, given at compile time */
#elif defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define ALIGNED __attribute__((aligned(64)))
#define INLINE static inline __attribute__((always_inline))
typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#ifdef __SSE__
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef float four_aligned __attribute__((vector_size(16)));
typedef float eight_aligned __attribute__((vector_size(32)));

INLINE four most4(four a, four b) { return (four)__builtin_ia32_maxps((four_aligned)a, (four_aligned)b); }

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES 1
#endif
#endif
#endif

INLINE vector most(vector a, vector b)
{
#if WIDTH == 16 && defined(__AVX512F__)
    return (vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif WIDTH == 8 && defined(__AVX__)
    return (vector)__builtin_ia32_maxps256((eight_aligned)a, (eight_aligned)b);
#elif WIDTH == 4 && defined(__SSE__)
    return (vector)most4((four)a, (four)b);
#else
    for (int k = 0; k < WIDTH; k++)
        b[k] = a[k] > b[k] ? a[k] : b[k];
    return b;
#endif
}

INLINE vector finished(vector a, int rectify)
{
    const vector zero = {0};
    return rectify ? most(zero, a) : a;
}

#else
#define ALIGNED
#define INLINE static
#endif

INLINE float larger(float a, float b) { return a > b ? a : b; }

INLINE float relu(float a) { return a < 0.0f ? 0.0f : a; }
"""

_DOT = """\
/* bias + the sum of w[t] * in[at[t]] */
INLINE float dot(const float *in, const @INDEX@ *at, const float *w, int n, float bias)
{
    float a = bias, b = 0.0f, c = 0.0f, d = 0.0f;
    int t = 0;
    for (; t + 4 <= n; t += 4) {
        a += w[t] * in[at[t]];
        b += w[t + 1] * in[at[t + 1]];
        c += w[t + 2] * in[at[t + 2]];
        d += w[t + 3] * in[at[t + 3]];
    }
    for (; t < n; t++)
        a += w[t] * in[at[t]];
    return (a + b) + (c + d);
}
"""

_DOT16 = """\
/* the same for 16 images abreast: pixel p of image l is in[16 * p + l] */
INLINE void dot16(const float *in, const @INDEX@ *at, const float *w, int n, float bias, float *out,
                  int rectify)
{
#ifdef VECTORS
@VECTORS@
#else
    for (int l = 0; l < 16; l++)
        out[l] = bias;
    for (int t = 0; t < n; t++)
        for (int l = 0; l < 16; l++)
            out[l] += w[t] * in[16 * (size_t)at[t] + l];
    for (int l = 0; rectify && l < 16; l++)
        out[l] = relu(out[l]);
#endif
}
"""

_TURN = """\
/* out[16 * j + l] = in[l * step + j] for j and l below 8: eight numbers of eight images, laid abreast */
INLINE void turn(const float *in, size_t step, float *out)
{
#if defined(SHUFFLES) && WIDTH >= 8
@SHUFFLES@
#else
    for (int j = 0; j < 8; j++)
        for (int l = 0; l < 8; l++)
            out[16 * j + l] = in[l * step + j];
#endif
}
"""

_HALVE = """\
/* out[x] = the largest of a[2 * x], a[2 * x + 1] and, below them, b[2 * x], b[2 * x + 1]; then ReLU where rectify */
INLINE void halve(const float *a, const float *b, float *restrict out, int n, int rectify)
{
    int x = 0;
#ifdef SHUFFLES
    for (; x + 4 <= n; x += 4) {
        const four c = most4(*(const four *)(a + 2 * x), *(const four *)(b + 2 * x));
        const four d = most4(*(const four *)(a + 2 * x + 4), *(const four *)(b + 2 * x + 4)), zero = {0};
        const four v = most4(__builtin_shufflevector(c, d, 0, 2, 4, 6), __builtin_shufflevector(c, d, 1, 3, 5, 7));
        *(four *)(out + x) = rectify ? most4(zero, v) : v;
    }
#endif
    for (; x < n; x++) {
        const float v = larger(larger(a[2 * x], a[2 * x + 1]), larger(b[2 * x], b[2 * x + 1]));
        out[x] = rectify ? relu(v) : v;
    }
}
"""

_POOLED16 = """\
/* span, 16 images abreast, for two rows, step apart, of which halve then makes one of n numbers */
INLINE void pooled16(const float *in, const @INDEX@ *at, const float *w, int taps, float bias, float *restrict out, int n,
                     int step, int rectify)
{
#ifdef VECTORS
    for (int l = 0; l < 16; l += WIDTH) {
        int x = 0;
#if WIDTH == 16
@WIDE@
#endif
@NARROW@
    }
#else
    for (int x = 0; x < n; x++) {
        float a[64];
        span(in + 32 * x, at, w, taps, bias, a, 32, 16, 0);
        span(in + 32 * x + step, at, w, taps, bias, a + 32, 32, 16, 0);
        for (int l = 0; l < 16; l++) {
            const float v = larger(larger(a[l], a[16 + l]), larger(a[32 + l], a[48 + l]));
            out[16 * x + l] = rectify ? relu(v) : v;
        }
    }
#endif
}
"""

_SPAN = """\
/* out[i] = bias + the sum of w[t] * in[lanes * at[t] + i], then ReLU where rectify, for i below count and up to a vector
   more: buffers have room for it */
INLINE void span(const float *in, const @INDEX@ *at, const float *w, int n, float bias, float *out, int count, int lanes,
                 int rectify)
{
    int i = 0;
#ifdef VECTORS
@VECTORS@
#else
    for (; i < count; i++)
        out[i] = bias;
    for (int t = 0; t < n; t++)
        for (i = 0; i < count; i++)
            out[i] += w[t] * in[(size_t)lanes * at[t] + i];
    for (i = 0; rectify && i < count; i++)
        out[i] = relu(out[i]);
#endif
}
"""


def preamble(name: str) -> str:
    """Types and helpers; ``NAME_PLAIN`` at compile time leaves vectors out."""
    return _PREAMBLE.replace("@NAME@", name.upper())


def kernels(index: str, used: set[str]) -> list[str]:
    """The functions of those ``used``, over taps whose offsets have the C type ``index``."""
    texts = {
        "dot": _DOT,
        "dot16": _DOT16.replace("@VECTORS@", _dot16_vectors()),
        "turn": _TURN.replace("@SHUFFLES@", _turning()),
        "halve": _HALVE,
        "span": _SPAN.replace("@VECTORS@", "\n".join(_block(vectors) for vectors in (8, 4, 2, 1))),
        "pooled16": _POOLED16.replace("@WIDE@", _pooled_block(4)).replace(
            "@NARROW@", f"{_pooled_block(2)}\n{_pooled_block(1)}"
        ),
    }
    return [text.replace("@INDEX@", index) for name, text in texts.items() if name in used]


def _dot16_vectors() -> str:
    """Two sums per vector, so that one need not wait for the other."""
    return """\
    for (int l = 0; l < 16; l += WIDTH) {
        vector a = (vector){0} + bias, b = {0};
        int t = 0;
        for (; t + 2 <= n; t += 2) {
            a += w[t] * *(const vector *)(in + 16 * (size_t)at[t] + l);
            b += w[t + 1] * *(const vector *)(in + 16 * (size_t)at[t + 1] + l);
        }
        if (t < n)
            a += w[t] * *(const vector *)(in + 16 * (size_t)at[t] + l);
        *(vector *)(out + l) = finished(a + b, rectify);
    }"""


def _pooled_block(outputs: int) -> str:
    """A loop over blocks of so many pooled pixels, each of four sums that stay in registers."""
    names = [(row, k) for row in "ab" for k in range(2 * outputs)]
    lines = [
        f"for (; x + {outputs} <= n; x += {outputs}) {{",
        f"    vector a0 = (vector){{0}} + bias{''.join(f', {row}{k} = a0' for row, k in names[1:])};",
        "    for (int t = 0; t < taps; t++) {",
        "        const float *p = in + 32 * x + l + 16 * (size_t)at[t];",
        "        const float m = w[t];",
        *(f"        {row}{k} += m * *(const vector *)(p{' + step' * (row == 'b')} + {16 * k});" for row, k in names),
        "    }",
    ]
    for k in range(outputs):
        one, other = 2 * k, 2 * k + 1
        lines += [
            f"    a{one} = most(most(a{one}, a{other}), most(b{one}, b{other}));",
            f"    *(vector *)(out + 16 * (x + {k}) + l) = finished(a{one}, rectify);",
        ]
    return "\n".join(f"        {line}" for line in [*lines, "}"])


def _turning() -> str:
    """An 8 x 8 transpose in three rounds of shuffles: pairs of rows, pairs of pairs, halves."""
    lines = [f"    const eight a{row} = *(const eight *)(in{f' + {row} * step' if row else ''});" for row in range(8)]

    def mixed(to: str, one: str, other: str, order: str) -> str:
        return f"    const eight {to} = __builtin_shufflevector({one}, {other}, {order});"

    for k in range(0, 8, 2):
        lines.append(mixed(f"b{k}", f"a{k}", f"a{k + 1}", "0, 8, 1, 9, 4, 12, 5, 13"))
        lines.append(mixed(f"b{k + 1}", f"a{k}", f"a{k + 1}", "2, 10, 3, 11, 6, 14, 7, 15"))
    for k in (0, 4):
        for half in (0, 1):
            one, other = f"b{k + half}", f"b{k + half + 2}"
            lines.append(mixed(f"c{k + 2 * half}", one, other, "0, 1, 8, 9, 4, 5, 12, 13"))
            lines.append(mixed(f"c{k + 2 * half + 1}", one, other, "2, 3, 10, 11, 6, 7, 14, 15"))
    for j in range(8):
        order = "0, 1, 2, 3, 8, 9, 10, 11" if j < 4 else "4, 5, 6, 7, 12, 13, 14, 15"
        lines.append(f"    *(eight *)(out + {16 * j}) = __builtin_shufflevector(c{j % 4}, c{j % 4 + 4}, {order});")
    return "\n".join(lines)


def _block(vectors: int) -> str:
    """A loop over blocks of so many vectors, whose sums stay in registers; the last loop may run past the end."""
    names = [f"a{k}" for k in range(vectors)]
    condition = "i < count" if vectors == 1 else f"i + {vectors} * WIDTH <= count"
    lines = [
        f"    for (; {condition}; i += {vectors} * WIDTH) {{",
        f"        vector a0 = (vector){{0}} + bias{''.join(f', {name} = a0' for name in names[1:])};",
        "        for (int t = 0; t < n; t++) {",
        "            const float *p = in + i + (size_t)lanes * at[t];",
        "            const float m = w[t];",
        *(f"            {name} += m * *(const vector *)(p + {k} * WIDTH);" for k, name in enumerate(names)),
        "        }",
        *(f"        *(vector *)(out + i + {k} * WIDTH) = finished({name}, rectify);" for k, name in enumerate(names)),
        "    }",
    ]
    return "\n".join(lines)
