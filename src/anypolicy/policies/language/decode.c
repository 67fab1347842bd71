/* One new token a row: root-mean-square norm, gated activation, and attention with its rotary embedding.
   Arithmetic is float; TYPE is float or bfloat16 (included twice, see the end). The oracle of every function is its
   torch twin in decoder.py. */

#ifndef TYPE
#include <math.h>
#include <stdint.h>

#define BLOCK 64
#define LANES 16
#define LEAST -1e30f
#define FLOOR -80.0f /* e^-80 vanishes beside the greatest score's 1, and vector exponentials are slow below e^-87 */
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define JOIN(a, b) a##_##b
#define NAMED(a, b) JOIN(a, b)

static inline float wide_f32(float x) { return x; }
static inline float narrow_f32(float x) { return x; }

static inline float wide_bf16(uint16_t x) {
    union { uint32_t bits; float value; } u = {(uint32_t)x << 16};
    return u.value;
}

static inline uint16_t narrow_bf16(float x) { /* to nearest, ties to even */
    union { float value; uint32_t bits; } u = {x};
    return (uint16_t)((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16);
}

static inline const float *as_float_f32(const float *x, float *space, long n) { return x; }

static inline const float *as_float_bf16(const uint16_t *x, float *space, long n) {
    for (long i = 0; i < n; i++) space[i] = wide_bf16(x[i]);
    return space;
}

#define TYPE float
#define NAME f32
#include "decode.c"
#undef TYPE
#undef NAME
#define TYPE uint16_t
#define NAME bf16
#include "decode.c"
#undef TYPE
#undef NAME

#else
#define WIDE NAMED(wide, NAME)
#define NARROW NAMED(narrow, NAME)

/* out = weight * x / sqrt(mean x^2 + eps), row by row; the product with the weight after rounding, as models do. */
void NAMED(rms_norm, NAME)(const TYPE *x, const TYPE *weight, TYPE *out, long rows, long n, float eps) {
#pragma omp parallel for schedule(static) if (rows * n > 16384)
    for (long r = 0; r < rows; r++) {
        const TYPE *in = x + r * n;
        float square = 0;
        for (long i = 0; i < n; i++) square += WIDE(in[i]) * WIDE(in[i]);
        float scale = 1 / sqrtf(square / n + eps);
        for (long i = 0; i < n; i++) out[r * n + i] = NARROW(WIDE(weight[i]) * WIDE(NARROW(WIDE(in[i]) * scale)));
    }
}

/* out = silu(gate) * up, where a row of x is gate then up, n each. */
void NAMED(silu_mul, NAME)(const TYPE *x, TYPE *out, long rows, long n) {
#pragma omp parallel for schedule(static) if (rows * n > 8192)
    for (long r = 0; r < rows; r++) {
        const TYPE *gate = x + 2 * r * n, *up = gate + n;
        for (long i = 0; i < n; i++) {
            float g = WIDE(gate[i]);
            out[r * n + i] = NARROW(WIDE(NARROW(g / (1 + expf(-g)))) * WIDE(up[i]));
        }
    }
}

/* Head x to float: optional norm over the head, then the rotary embedding (first half with second half). */
static void NAMED(prepare, NAME)(const TYPE *x, const TYPE *norm, float eps, const float *cosine, const float *sine,
                                 long d, float *out) {
    for (long i = 0; i < d; i++) out[i] = WIDE(x[i]);
    if (norm) {
        float square = 0;
        for (long i = 0; i < d; i++) square += out[i] * out[i];
        float scale = 1 / sqrtf(square / d + eps);
        for (long i = 0; i < d; i++) out[i] = WIDE(NARROW(WIDE(norm[i]) * WIDE(NARROW(out[i] * scale))));
    }
    if (cosine)
        for (long i = 0, h = d / 2; i < h; i++) {
            float a = out[i], b = out[i + h];
            out[i] = WIDE(NARROW(a * cosine[i] - b * sine[i]));
            out[i + h] = WIDE(NARROW(b * cosine[i + h] + a * sine[i + h]));
        }
}

/* Adds n keys and values to a running softmax: greatest score, sum of exponentials and weighted sum per query head.
   Keys stand in blocks of BLOCK, each (d, BLOCK), values as (n, d), so that both products run along the vectors. `d`
   and `part` (lanes of a head that stay in registers) are known to the compiler where it matters. */
static inline __attribute__((always_inline)) void NAMED(absorb_by, NAME)(
    const TYPE *keys, const TYPE *values, long n, long heads, const long d, const long part, const float *q,
    float *top, float *sum, float *acc) {
    float space[BLOCK * d], weight[heads * BLOCK];
    for (long begin = 0; begin < n; begin += BLOCK) {
        long m = n - begin < BLOCK ? n - begin : BLOCK;
        const float *block = NAMED(as_float, NAME)(keys + begin * d, space, BLOCK * d);
        for (long h = 0; h < heads; h++) {
            float *s = weight + h * BLOCK, high = top[h], total = 0;
            vector score[BLOCK / LANES] = {0};
            for (long i = 0; i < d; i++)
                for (long j = 0; j < BLOCK / LANES; j++)
                    score[j] += q[h * d + i] * ((const vector *)(block + i * BLOCK))[j];
            for (long j = 0; j < BLOCK / LANES; j++) ((vector *)s)[j] = score[j];
            for (long j = m; j < BLOCK; j++) s[j] = LEAST;
            for (long j = 0; j < BLOCK; j++) high = s[j] > high ? s[j] : high;
            for (long j = 0; j < BLOCK; j++) s[j] = expf(s[j] - high > FLOOR ? s[j] - high : FLOOR);
            for (long j = 0; j < BLOCK; j++) total += s[j];
            float shrink = expf(top[h] - high);
            sum[h] = sum[h] * shrink + total;
            for (long i = 0; i < d; i++) acc[h * d + i] *= shrink;
            top[h] = high;
        }
        block = NAMED(as_float, NAME)(values + begin * d, space, m * d);
        for (long h = 0; h < heads; h++)
            for (long c = 0; c < d; c += part) {
                vector mixed[part / LANES], *to = (vector *)(acc + h * d + c);
                for (long i = 0; i < part / LANES; i++) mixed[i] = to[i];
                for (long j = 0; j < m; j++)
                    for (long i = 0; i < part / LANES; i++)
                        mixed[i] += weight[h * BLOCK + j] * ((const vector *)(block + j * d + c))[i];
                for (long i = 0; i < part / LANES; i++) to[i] = mixed[i];
            }
    }
}

static void NAMED(absorb, NAME)(const TYPE *keys, const TYPE *values, long n, long heads, long d, const float *q,
                                float *top, float *sum, float *acc) {
    switch (d) {
    case 32: NAMED(absorb_by, NAME)(keys, values, n, heads, 32, 32, q, top, sum, acc); break;
    case 64: NAMED(absorb_by, NAME)(keys, values, n, heads, 64, 64, q, top, sum, acc); break;
    case 128: NAMED(absorb_by, NAME)(keys, values, n, heads, 128, 128, q, top, sum, acc); break;
    default: NAMED(absorb_by, NAME)(keys, values, n, heads, d, LANES, q, top, sum, acc);
    }
}

/* Writes each row's new key and value at place t of its own cache, then attends to its prompt and to its own tokens.
   qkv (rows, (heads + 2 key_heads) d); cosine, sine (rows, d) or null; own values (rows, key_heads, capacity, d) and
   keys (rows, key_heads, capacity / BLOCK, d, BLOCK); the prompts' the same, with `wide` places of which length[p] are
   tokens; owner[r] is the prompt of row r; d is a multiple of LANES. */
void NAMED(attend, NAME)(const TYPE *qkv, const TYPE *q_norm, const TYPE *k_norm, float eps, const float *cosine,
                         const float *sine, TYPE *keys, TYPE *values, long capacity, long t, const TYPE *prompt_keys,
                         const TYPE *prompt_values, long wide, const int64_t *length, const int64_t *owner, TYPE *out,
                         long rows, long heads, long key_heads, long d, float scale) {
    long each = heads / key_heads;
#pragma omp parallel for collapse(2) schedule(static) if (rows * (wide + t) * heads * d > 32768)
    for (long g = 0; g < key_heads; g++)
        for (long r = 0; r < rows; r++) {
            const TYPE *x = qkv + r * (heads + 2 * key_heads) * d;
            const float *c = cosine ? cosine + r * d : 0, *s = sine ? sine + r * d : 0;
            float q[each * d], k[d], top[each], sum[each], acc[each * d];
            TYPE *own_keys = keys + (r * key_heads + g) * capacity * d;
            TYPE *own_values = values + (r * key_heads + g) * capacity * d;
            NAMED(prepare, NAME)(x + (heads + g) * d, k_norm, eps, c, s, d, k);
            for (long i = 0; i < d; i++) own_keys[(t / BLOCK * d + i) * BLOCK + t % BLOCK] = NARROW(k[i]);
            for (long i = 0; i < d; i++) own_values[t * d + i] = x[(heads + key_heads + g) * d + i];
            for (long h = 0; h < each; h++) {
                NAMED(prepare, NAME)(x + (g * each + h) * d, q_norm, eps, c, s, d, q + h * d);
                for (long i = 0; i < d; i++) q[h * d + i] *= scale, acc[h * d + i] = 0;
                top[h] = LEAST, sum[h] = 0;
            }
            long p = owner[r], start = (p * key_heads + g) * wide * d;
            NAMED(absorb, NAME)(prompt_keys + start, prompt_values + start, length[p], each, d, q, top, sum, acc);
            NAMED(absorb, NAME)(own_keys, own_values, t + 1, each, d, q, top, sum, acc);
            for (long h = 0; h < each; h++)
                for (long i = 0; i < d; i++)
                    out[(r * heads + g * each + h) * d + i] = NARROW(acc[h * d + i] / sum[h]);
        }
}
#undef WIDE
#undef NARROW
#endif
