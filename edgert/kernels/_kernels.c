/* The loops of edgert.kernels that numpy is slow at.
 *
 * Nothing is checked here: edgert/kernels/__init__.py has looked at every dtype, shape and overlap before it hands over
 * bare addresses (the buffer protocol enters the limited API only with Python 3.11, and JetPack 6 has 3.10).
 * Every result is bit-identical to edgert/kernels/_twin.py: keep the order of the operations the same in both, and compile
 * with -ffp-contract=off, since a fused multiply-add rounds once where numpy rounds twice.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef Py_ssize_t idx;

/* x86-64 compilers may only assume SSE2; glibc can choose a wider copy of a loop when it loads. The bits stay the same:
 * every lane is a value of its own, and no copy may contract a product and a sum. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

/* x is (b, h, w, c), windows are (oh, ow) a sample. */
typedef struct {
    idx b, h, w, c, kernel, stride, padding, oh, ow;
} geometry;

/* The part of a window's row that lies inside the image, as kx in [lo, hi). */
static inline void clip(const geometry *g, idx ix, idx *lo, idx *hi)
{
    *lo = ix < 0 ? (-ix < g->kernel ? -ix : g->kernel) : 0;
    *hi = g->w - ix < g->kernel ? g->w - ix : g->kernel;
    if (*hi < *lo)
        *hi = *lo;
}

static inline void row_f32(float *restrict out, const float *restrict x, idx n)
{
    memcpy(out, x, (size_t)n * sizeof(float));
}

static inline void row_u8(float *restrict out, const uint8_t *restrict x, idx n, float scale)
{
    for (idx i = 0; i < n; i++)
        out[i] = (float)x[i] * scale;
}

WIDE static void im2col(float *restrict out, const void *restrict x, int is_u8, float scale, const geometry *g)
{
    const idx row = g->kernel * g->c;
    for (idx b = 0; b < g->b; b++)
        for (idx oy = 0; oy < g->oh; oy++)
            for (idx ox = 0; ox < g->ow; ox++) {
                idx lo, hi;
                const idx ix = ox * g->stride - g->padding;
                clip(g, ix, &lo, &hi);
                for (idx ky = 0; ky < g->kernel; ky++, out += row) {
                    const idx iy = oy * g->stride - g->padding + ky;
                    if (iy < 0 || iy >= g->h) {
                        memset(out, 0, (size_t)row * sizeof(float));
                        continue;
                    }
                    const idx from = ((b * g->h + iy) * g->w + ix + lo) * g->c;
                    const idx n = (hi - lo) * g->c;
                    if (n < row) {
                        memset(out, 0, (size_t)(lo * g->c) * sizeof(float));
                        memset(out + hi * g->c, 0, (size_t)((g->kernel - hi) * g->c) * sizeof(float));
                    }
                    if (is_u8)
                        row_u8(out + lo * g->c, (const uint8_t *)x + from, n, scale);
                    else
                        row_f32(out + lo * g->c, (const float *)x + from, n);
                }
            }
}

static inline void row_add(float *restrict x, const float *restrict cols, idx n)
{
    for (idx i = 0; i < n; i++)
        x[i] += cols[i];
}

WIDE static void col2im(float *restrict x, const float *restrict cols, const geometry *g)
{
    const idx row = g->kernel * g->c;
    memset(x, 0, (size_t)(g->b * g->h * g->w * g->c) * sizeof(float));
    for (idx b = 0; b < g->b; b++)
        /* Window after window, a pixel meets its kernel positions (ky, kx) in descending order: the twin does the same. */
        for (idx oy = 0; oy < g->oh; oy++)
            for (idx ox = 0; ox < g->ow; ox++) {
                idx lo, hi;
                const idx ix = ox * g->stride - g->padding;
                clip(g, ix, &lo, &hi);
                for (idx ky = 0; ky < g->kernel; ky++, cols += row) {
                    const idx iy = oy * g->stride - g->padding + ky;
                    if (iy < 0 || iy >= g->h)
                        continue;
                    row_add(x + ((b * g->h + iy) * g->w + ix + lo) * g->c, cols + lo * g->c, (hi - lo) * g->c);
                }
            }
}

/* The lower end of a rectifier is +0; a NaN stays. */
static inline float rectified(float x)
{
    return x <= 0.0f ? 0.0f : x;
}

WIDE static void add_bias(float *restrict y, const float *restrict bias, idx rows, idx n, int relu)
{
    for (; rows > 0; rows--, y += n)
        if (relu)
            for (idx i = 0; i < n; i++)
                y[i] = rectified(y[i] + bias[i]);
        else
            for (idx i = 0; i < n; i++)
                y[i] += bias[i];
}

WIDE static void relu_backward(float *restrict dy, const float *restrict y, idx n)
{
    for (idx i = 0; i < n; i++)
        dy[i] = y[i] > 0.0f ? dy[i] : 0.0f;
}

/* A NaN is the largest value and the first one stays, as in numpy.argmax. */
static inline void row_max(float *restrict y, int32_t *restrict argmax, const float *restrict x, int32_t at, idx n)
{
    for (idx i = 0; i < n; i++) {
        const float best = y[i], value = x[i];
        const int32_t was = argmax[i], now = at + (int32_t)i;
        const int better = !(value <= best) & (best == best);
        y[i] = better ? value : best;
        argmax[i] = better ? now : was;
    }
}

WIDE static void maxpool(float *restrict y, int32_t *restrict argmax, const float *restrict x, const geometry *g)
{
    for (idx b = 0; b < g->b; b++, x += g->h * g->w * g->c)
        for (idx oy = 0; oy < g->oh; oy++)
            for (idx ox = 0; ox < g->ow; ox++, y += g->c, argmax += g->c) {
                const idx corner = (oy * g->stride * g->w + ox * g->stride) * g->c;
                memcpy(y, x + corner, (size_t)g->c * sizeof(float));
                for (idx i = 0; i < g->c; i++)
                    argmax[i] = (int32_t)(corner + i);
                for (idx ky = 0; ky < g->kernel; ky++)
                    for (idx kx = ky == 0 ? 1 : 0; kx < g->kernel; kx++) {
                        const idx at = corner + (ky * g->w + kx) * g->c;
                        row_max(y, argmax, x + at, (int32_t)at, g->c);
                    }
            }
}

/* Returns 0 at the first index that lies outside its sample, else 1. */
static int maxpool_backward(float *restrict dx, const float *restrict dy, const int32_t *restrict argmax, idx b, idx n_dx,
                            idx n_dy)
{
    memset(dx, 0, (size_t)(b * n_dx) * sizeof(float));
    for (; b > 0; b--, dx += n_dx)
        for (idx i = 0; i < n_dy; i++, dy++, argmax++) {
            if (*argmax < 0 || *argmax >= n_dx)
                return 0;
            dx[*argmax] += *dy;
        }
    return 1;
}

static inline void row_axpy(float *restrict y, const float *restrict x, float a, idx n)
{
    for (idx i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* One window's share: dw += a * x and dx += a * w. */
static inline void window_backward(float *restrict dw, float *restrict dx, const float *restrict x,
                                   const float *restrict w, float a, idx window, const geometry *g)
{
    const idx iy = window / g->ow * g->stride - g->padding, ix = window % g->ow * g->stride - g->padding;
    const idx last = g->h - iy < g->kernel ? g->h - iy : g->kernel;
    idx lo, hi;
    clip(g, ix, &lo, &hi);
    const idx n = (hi - lo) * g->c;
    for (idx ky = iy < 0 ? -iy : 0; ky < last; ky++) {
        const idx in = ((iy + ky) * g->w + ix + lo) * g->c, tap = (ky * g->kernel + lo) * g->c;
        row_axpy(dw + tap, x + in, a, n);
        row_axpy(dx + in, w + tap, a, n);
    }
}

enum { ALIVE_AT_ONCE = 256 };

/* dy, argmax: (b, pooled, n); argmax counts in (oh, ow, n). dw, w: (n, kernel, kernel, c). x, dx: (b, h, w, c).
 * Returns 0 at the first index that lies outside its sample, else 1. */
WIDE static int pooled_conv_backward(float *restrict dw, float *restrict dx, const float *restrict x,
                                     const float *restrict w, const float *restrict dy, const int32_t *restrict argmax,
                                     idx n, idx pooled, const geometry *g)
{
    const idx taps = g->kernel * g->kernel * g->c, image = g->h * g->w * g->c;
    float alive[ALIVE_AT_ONCE];
    idx window[ALIVE_AT_ONCE];
    memset(dw, 0, (size_t)(n * taps) * sizeof(float));
    memset(dx, 0, (size_t)(g->b * image) * sizeof(float));
    for (idx b = 0; b < g->b; b++, x += image, dx += image, dy += pooled * n, argmax += pooled * n)
        /* One output channel after another: its weights and their gradient stay in the first-level cache. */
        for (idx o = 0; o < n; o++)
            for (idx from = 0; from < pooled; from += ALIVE_AT_ONCE) {
                const idx to = from + ALIVE_AT_ONCE < pooled ? from + ALIVE_AT_ONCE : pooled;
                idx count = 0;
                /* Every second gradient may be zero, at random: no branch, for it would be guessed wrong. */
                for (idx p = from; p < to; p++) {
                    const float a = dy[p * n + o];
                    const int32_t at = argmax[p * n + o];
                    if (at < 0 || at >= g->oh * g->ow * n)
                        return 0;
                    alive[count] = a;
                    window[count] = (uint32_t)at / (uint32_t)n;
                    count += a != 0.0f;
                }
                for (idx i = 0; i < count; i++)
                    window_backward(dw + o * taps, dx, x, w + o * taps, alive[i], window[i], g);
            }
    return 1;
}

typedef struct {
    float beta1, rest1, beta2, rest2, rate, unbias, eps, grad_scale;
} adam_scalars;

WIDE static void adam(float *restrict params, const float *restrict grads, float *restrict m, float *restrict v,
                      idx n, adam_scalars s)
{
    for (idx i = 0; i < n; i++) {
        const float g = grads[i] * s.grad_scale;
        m[i] = s.beta1 * m[i] + s.rest1 * g;
        v[i] = s.beta2 * v[i] + s.rest2 * (g * g);
        params[i] -= (s.rate * m[i]) / (sqrtf(v[i]) * s.unbias + s.eps);
    }
}

/* Reads `count` integers. Addresses come the same way: PyLong_AsVoidPtr also takes the upper half of a 32-bit space. */
static int take(PyObject *const *args, Py_ssize_t given, idx count, idx expected, void **out)
{
    if (given != expected) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, given);
        return 0;
    }
    for (idx i = 0; i < count; i++) {
        out[i] = PyLong_AsVoidPtr(args[i]);
        if (out[i] == NULL && PyErr_Occurred())
            return 0;
    }
    return 1;
}

static geometry geometry_of(void **a)
{
    return (geometry){(idx)a[0], (idx)a[1], (idx)a[2], (idx)a[3], (idx)a[4], (idx)a[5], (idx)a[6], (idx)a[7], (idx)a[8]};
}

static PyObject *py_im2col(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    void *a[12];
    if (!take(args, n, 12, 13, a))
        return NULL;
    const double scale = PyFloat_AsDouble(args[12]);
    if (scale == -1.0 && PyErr_Occurred())
        return NULL;
    const geometry g = geometry_of(a + 3);
    Py_BEGIN_ALLOW_THREADS
    im2col(a[0], a[1], a[2] != NULL, (float)scale, &g);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_col2im(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    void *a[11];
    if (!take(args, n, 11, 11, a))
        return NULL;
    const geometry g = geometry_of(a + 2);
    Py_BEGIN_ALLOW_THREADS
    col2im(a[0], a[1], &g);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_add_bias(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    void *a[5];
    if (!take(args, n, 5, 5, a))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    add_bias(a[0], a[1], (idx)a[2], (idx)a[3], a[4] != NULL);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_relu_backward(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    void *a[3];
    if (!take(args, n, 3, 3, a))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    relu_backward(a[0], a[1], (idx)a[2]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_maxpool(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    void *a[12];
    if (!take(args, n, 12, 12, a))
        return NULL;
    const geometry g = geometry_of(a + 3);
    Py_BEGIN_ALLOW_THREADS
    maxpool(a[0], a[1], a[2], &g);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_maxpool_backward(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    void *a[6];
    int inside;
    if (!take(args, n, 6, 6, a))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    inside = maxpool_backward(a[0], a[1], a[2], (idx)a[3], (idx)a[4], (idx)a[5]);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(inside);
}

static PyObject *py_pooled_conv_backward(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    void *a[17];
    int inside;
    if (!take(args, n, 17, 17, a))
        return NULL;
    const geometry g = geometry_of(a + 8);
    Py_BEGIN_ALLOW_THREADS
    inside = pooled_conv_backward(a[0], a[1], a[2], a[3], a[4], a[5], (idx)a[6], (idx)a[7], &g);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(inside);
}

static PyObject *py_adam(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    void *a[5];
    float f[8];
    if (!take(args, n, 5, 13, a))
        return NULL;
    for (int i = 0; i < 8; i++) {
        const double value = PyFloat_AsDouble(args[5 + i]);
        if (value == -1.0 && PyErr_Occurred())
            return NULL;
        f[i] = (float)value;
    }
    const adam_scalars s = {f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]};
    Py_BEGIN_ALLOW_THREADS
    adam(a[0], a[1], a[2], a[3], (idx)a[4], s);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

#define FAST(f) (PyCFunction)(void (*)(void)) f, METH_FASTCALL, NULL
static PyMethodDef methods[] = {
    {"im2col", FAST(py_im2col)},
    {"col2im", FAST(py_col2im)},
    {"maxpool", FAST(py_maxpool)},
    {"maxpool_backward", FAST(py_maxpool_backward)},
    {"add_bias", FAST(py_add_bias)},
    {"relu_backward", FAST(py_relu_backward)},
    {"pooled_conv_backward", FAST(py_pooled_conv_backward)},
    {"adam", FAST(py_adam)},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_kernels", .m_methods = methods};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModuleDef_Init(&module);
}
