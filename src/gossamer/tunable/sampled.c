/* The chosen entries of the gradient of a matrix and of the bias beside it, without the dense ones:

       result[e] = sum over tokens t of a[t, row of e] * b[t, column of e]

   An entry of the matrix is given by its flat index, row * b_width + column. The bias is the matrix's column of ones, a
   further feature of the input that is 1 for every token; the input is b, or a where the matrix is `turned`.

   Tokens are cut into tiles of 64. Each tile of a and of b is transposed into a buffer that stays in the cache, so that
   an entry is a contiguous dot product of 64 numbers. A part (one a thread) takes a fixed range of tiles and has sums of its
   own, which are added in order: the result depends on the number of parts, not on who finishes first.

   Threads are the framework's: `parallel` is GOMP_parallel of the OpenMP runtime that it has loaded, or NULL. */

#include <stdint.h>
#include <string.h>

#define TILE 64

typedef float v8 __attribute__((vector_size(32)));
typedef float v16 __attribute__((vector_size(64)));
typedef v8 v8u __attribute__((aligned(4)));
typedef void (*parallel_t)(void (*)(void *), void *, unsigned, unsigned);

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const void *a, *b;           /* [tokens, a_width] and [tokens, b_width], rows a_stride and b_stride elements apart */
    int64_t tokens, a_width, b_width, a_stride, b_stride;
    const int64_t *flat, *bias;  /* [k_flat] sorted indices of the matrix, [k_bias] of the bias */
    int64_t k_flat, k_bias;
    float *sums;                 /* [parts, k_flat + k_bias], zeroed */
    float *scratch;              /* [parts, (a_width + b_width + 2) * TILE] */
    int32_t *rows, *cols;        /* [k_flat + k_bias] scratch: features of a and of b; the one after the last is ones */
    int32_t parts, a_half, b_half, turned; /* *_half: elements are bfloat16, else float32 */
    int32_t next;                /* the next part to take */
} work_t;

INLINE v8 load(const void *from, int64_t at, int half) {
    if (!half) return *(const v8u *)((const float *)from + at);
    typedef uint16_t h8 __attribute__((vector_size(16)));
    typedef uint32_t u8 __attribute__((vector_size(32)));
    h8 bits;
    memcpy(&bits, (const uint16_t *)from + at, 16);
    return (v8)(__builtin_convertvector(bits, u8) << 16);
}

INLINE float load_one(const void *from, int64_t at, int half) {
    if (!half) return ((const float *)from)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[at] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

#define LOW(x, y) __builtin_shufflevector(x, y, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(x, y) __builtin_shufflevector(x, y, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW2(x, y) __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH2(x, y) __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15)
#define LOW4(x, y) __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11)
#define HIGH4(x, y) __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15)

INLINE void transpose8(const v8 *in, v8 *out) {
    v8 a0 = LOW(in[0], in[1]), a1 = HIGH(in[0], in[1]), a2 = LOW(in[2], in[3]), a3 = HIGH(in[2], in[3]);
    v8 a4 = LOW(in[4], in[5]), a5 = HIGH(in[4], in[5]), a6 = LOW(in[6], in[7]), a7 = HIGH(in[6], in[7]);
    v8 b0 = LOW2(a0, a2), b1 = HIGH2(a0, a2), b2 = LOW2(a1, a3), b3 = HIGH2(a1, a3);
    v8 b4 = LOW2(a4, a6), b5 = HIGH2(a4, a6), b6 = LOW2(a5, a7), b7 = HIGH2(a5, a7);
    out[0] = LOW4(b0, b4), out[1] = LOW4(b1, b5), out[2] = LOW4(b2, b6), out[3] = LOW4(b3, b7);
    out[4] = HIGH4(b0, b4), out[5] = HIGH4(b1, b5), out[6] = HIGH4(b2, b6), out[7] = HIGH4(b3, b7);
}

/* out[f, 0..63] = from[first token + 0..63, f]; tokens beyond `count` are 0; out[width] is ones. Sixteen tokens at a time are read
   side by side along their rows, whole cache lines in an order that the processor foresees, and written as whole lines. */
INLINE void transpose(const void *from, int half, int64_t stride, int64_t width, int64_t count, float *out) {
    int64_t t = 0, wide = width & ~7;
    for (; t + 16 <= count; t += 16) {
        for (int64_t f = 0; f < wide; f += 8) {
            v8 in[8], low[8], high[8];
            for (int i = 0; i < 8; i++) in[i] = load(from, (t + i) * stride + f, half);
            transpose8(in, low);
            for (int i = 0; i < 8; i++) in[i] = load(from, (t + 8 + i) * stride + f, half);
            transpose8(in, high);
            for (int i = 0; i < 8; i++) {
                *(v8u *)(out + (f + i) * TILE + t) = low[i];
                *(v8u *)(out + (f + i) * TILE + t + 8) = high[i];
            }
        }
        for (int64_t f = wide; f < width; f++)
            for (int64_t i = t; i < t + 16; i++) out[f * TILE + i] = load_one(from, i * stride + f, half);
    }
    for (int64_t f = 0; t < TILE && f < width; f++)
        for (int64_t i = t; i < TILE; i++) out[f * TILE + i] = i < count ? load_one(from, i * stride + f, half) : 0.0f;
    for (t = 0; t < TILE; t++) out[width * TILE + t] = 1.0f; /* the other side is 0 beyond `count` */
}

INLINE v8 dot(const float *x, const float *y) {
    const v16 *p = (const v16 *)x, *q = (const v16 *)y;
    v16 sum = p[0] * q[0] + p[1] * q[1] + (p[2] * q[2] + p[3] * q[3]);
    v8 halves[2];
    memcpy(halves, &sum, sizeof sum);
    return halves[0] + halves[1];
}

EACH_PROCESSOR
static void tile(const work_t *w, int64_t first, int64_t count, float *a, float *b, float *sums) {
    int64_t a_at = first * w->a_stride, b_at = first * w->b_stride;
    transpose((const char *)w->a + a_at * (w->a_half ? 2 : 4), w->a_half, w->a_stride, w->a_width, count, a);
    transpose((const char *)w->b + b_at * (w->b_half ? 2 : 4), w->b_half, w->b_stride, w->b_width, count, b);
    int64_t e = 0, k = w->k_flat + w->k_bias;
    for (; e + 8 <= k; e += 8) {
        v8 part[8], turned[8];
        for (int i = 0; i < 8; i++)
            part[i] = dot(a + (int64_t)w->rows[e + i] * TILE, b + (int64_t)w->cols[e + i] * TILE);
        transpose8(part, turned); /* then the sum over the eight is the eight sums */
        *(v8u *)(sums + e) += ((turned[0] + turned[1]) + (turned[2] + turned[3])) +
                              ((turned[4] + turned[5]) + (turned[6] + turned[7]));
    }
    for (; e < k; e++) {
        v8 part = dot(a + (int64_t)w->rows[e] * TILE, b + (int64_t)w->cols[e] * TILE);
        sums[e] += ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    }
}

static void take_parts(void *given) {
    work_t *w = given;
    int64_t tiles = (w->tokens + TILE - 1) / TILE;
    for (int32_t p; (p = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED)) < w->parts;) {
        float *a = w->scratch + (int64_t)p * (w->a_width + w->b_width + 2) * TILE, *b = a + (w->a_width + 1) * TILE;
        for (int64_t i = tiles * p / w->parts; i < tiles * (p + 1) / w->parts; i++) {
            int64_t first = i * TILE, left = w->tokens - first;
            tile(w, first, left < TILE ? left : TILE, a, b, w->sums + p * (w->k_flat + w->k_bias));
        }
    }
}

/* The result is the first of the sums. scratch must be aligned to 64 bytes. */
void gossamer_sampled(work_t *w, parallel_t parallel) {
    int64_t row = 0, start = 0, k = w->k_flat + w->k_bias;
    for (int64_t e = 0; e < w->k_flat; e++) {
        if (w->flat[e] - start >= w->b_width) row = w->flat[e] / w->b_width, start = row * w->b_width;
        w->rows[e] = (int32_t)row, w->cols[e] = (int32_t)(w->flat[e] - start);
    }
    for (int64_t e = 0; e < w->k_bias; e++) {
        w->rows[w->k_flat + e] = (int32_t)(w->turned ? w->a_width : w->bias[e]);
        w->cols[w->k_flat + e] = (int32_t)(w->turned ? w->bias[e] : w->b_width);
    }
    w->next = 0;
    if (parallel && w->parts > 1) parallel(take_parts, w, (unsigned)w->parts, 0);
    else take_parts(w);
    for (int32_t p = 1; p < w->parts; p++)
        for (int64_t e = 0; e < k; e++) w->sums[e] += w->sums[p * k + e];
}
