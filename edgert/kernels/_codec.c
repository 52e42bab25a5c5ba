/* The adaptive coder of frames and records: prediction, context mixing, arithmetic code. Integers only.
 *
 * edgert/kernels/_codec_twin.py gives the same bytes: every constant, every order of operations and every rounding here
 * is part of the format, and `>>` of a negative number is the arithmetic shift that all supported compilers make of it.
 * Sizes and layouts are checked in edgert/kernels/codec.py, which hands over bare addresses. What is decoded comes from
 * strangers: every index made of it is masked or clamped here, and reading past its end gives zeros, then an error.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define INLINE static inline
#define PREFETCH(address) ((void)0)
#endif

typedef Py_ssize_t idx;

enum {
    MODELS = 4,       /* hashed contexts that each remember one symbol */
    INPUTS = 5,       /* of the mixer that decides whether the best guess is right */
    SEG = 8,          /* pixels whose change is told by one flag */
    PAD_X = 8,        /* zeros left of a row, as many right of it */
    PAD_ABOVE = 2,
    PAD_BELOW = 1,
    GUESSES = 5,      /* tried after the best one, before the value is spelled out */
    SURE = 4,         /* votes above which a right guess is not learnt anew */
    LINE_BITS = 5,    /* slots that share a cache line */
    FRAMES_MAX = 1 << 28, /* of one history, then only a reset helps */
    SLACK = 8,        /* bytes that a decoder may read past the end */
};

/* ---- probabilities ---- */

typedef struct {
    uint16_t p, n; /* probability of a 1 in 1/65536, and how often it was adapted, up to a limit */
} counter;

static uint16_t squash_of[4096];  /* x = -2048..2047 in 1/256 nat -> probability in 1/65536 */
static int16_t stretch_of[4096];  /* probability in 1/4096 -> x */
static uint16_t rate_of[1024];    /* 65536 / (n + 1.5) */
static uint32_t crc_of[8][256];

/* round(65536 / (1 + exp(8 - j / 2))), at least 1 */
static const uint16_t knots[33] = {
    22,    36,    60,    99,    162,   267,   440,   724,   1179,  1921,  3108,
    4979,  7812,  11955, 17625, 24743, 32768, 40793, 47911, 53581, 57724, 60557,
    62428, 63615, 64357, 64812, 65096, 65269, 65374, 65437, 65476, 65500, 65514};

static void make_tables(void)
{
    for (int x = 0; x < 4096; x++) {
        const int j = x >> 7, part = x & 127;
        squash_of[x] = (uint16_t)((knots[j] * (128 - part) + knots[j + 1] * part + 64) >> 7);
    }
    for (int p = 0, x = 0; p < 4096; p++) {
        while (x < 4095 && squash_of[x] < p * 16 + 8)
            x++;
        stretch_of[p] = (int16_t)(x - 2048);
    }
    for (int n = 0; n < 1024; n++)
        rate_of[n] = (uint16_t)(131072 / (2 * n + 3));
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int b = 0; b < 8; b++)
            c = c & 1 ? c >> 1 ^ 0xEDB88320u : c >> 1;
        crc_of[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++)
            crc_of[t][i] = crc_of[t - 1][i] >> 8 ^ crc_of[0][crc_of[t - 1][i] & 255];
}

/* CRC-32 as zlib computes it; chained values are passed through unchanged. */
static uint32_t crc32_of(uint32_t c, const uint8_t *s, idx n)
{
    c = ~c;
    for (; n >= 8; n -= 8, s += 8) {
        c ^= (uint32_t)s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16 | (uint32_t)s[3] << 24;
        c = crc_of[7][c & 255] ^ crc_of[6][c >> 8 & 255] ^ crc_of[5][c >> 16 & 255] ^ crc_of[4][c >> 24] ^
            crc_of[3][s[4]] ^ crc_of[2][s[5]] ^ crc_of[1][s[6]] ^ crc_of[0][s[7]];
    }
    for (; n > 0; n--, s++)
        c = c >> 8 ^ crc_of[0][(c ^ *s) & 255];
    return ~c;
}

INLINE void adapt(counter *c, int bit, int limit)
{
    const int32_t p = c->p;
    c->p = (uint16_t)(p + (int32_t)(((int64_t)((bit << 16) - bit - p) * rate_of[c->n]) >> 16));
    c->n = (uint16_t)(c->n + (c->n < limit));
}

/* ---- the arithmetic code ---- */

typedef struct {
    uint32_t lo, hi, x;
    uint8_t *data; /* written by the encoder, read by the decoder */
    idx n, at;
    int bad; /* no room to write, or read too far: nothing that follows means anything */
} coder;

/* p: probability of a 1, in 1/65536, neither 0 nor 65536. */
INLINE int code_bit(coder *k, int decode, int bit, uint32_t p)
{
    const uint32_t range = k->hi - k->lo, mid = k->lo + (uint32_t)((uint64_t)range * p >> 16);
    if (decode)
        bit = k->x <= mid;
    if (bit)
        k->hi = mid;
    else
        k->lo = mid + 1;
    while ((k->lo ^ k->hi) < 1u << 24) {
        if (decode) {
            const uint32_t byte = k->at < k->n ? k->data[k->at] : 0;
            k->bad |= k->at >= k->n + SLACK;
            k->at++;
            k->x = k->x << 8 | byte;
        } else if (k->at < k->n)
            k->data[k->at++] = (uint8_t)(k->hi >> 24);
        else
            k->bad = 1;
        k->lo <<= 8;
        k->hi = k->hi << 8 | 255;
    }
    return bit;
}

static void start(coder *k, int decode)
{
    k->lo = 0;
    k->hi = 0xFFFFFFFFu;
    k->x = 0;
    k->at = 0;
    k->bad = 0;
    if (decode)
        for (; k->at < 4; k->at++)
            k->x = k->x << 8 | (k->at < k->n ? k->data[k->at] : 0);
}

/* The fewest bytes that, followed by zeros, stay in the interval; a few zeros at the end need not be sent. */
static void finish(coder *k)
{
    for (int bytes = 0; bytes <= 4; bytes++) {
        const uint32_t rest = bytes == 4 ? 0 : 0xFFFFFFFFu >> (8 * bytes);
        const uint32_t value = (uint32_t)(((uint64_t)k->lo + rest) & ~(uint64_t)rest);
        if ((uint64_t)k->lo + rest > 0xFFFFFFFFu || value > k->hi)
            continue;
        for (int i = 0; i < bytes; i++) {
            if (k->at < k->n)
                k->data[k->at++] = (uint8_t)(value >> (24 - 8 * i));
            else
                k->bad = 1;
        }
        break;
    }
    for (int i = 0; i < SLACK / 2 && k->at > 0 && k->data[k->at - 1] == 0; i++)
        k->at--;
}

#define WEIGHT_MAX (1 << 20)

/* One decision by `n` counters, weighed; shift sets how fast the weights learn. */
INLINE int decide(coder *k, int decode, int bit, counter *const *c, int n, int32_t *w, int shift, int limit)
{
    int32_t st[INPUTS];
    int64_t dot = 0;
    for (int i = 0; i < n; i++) {
        st[i] = stretch_of[c[i]->p >> 4];
        dot += (int64_t)w[i] * st[i];
    }
    dot >>= 16;
    const int32_t p = squash_of[(dot < -2048 ? -2048 : dot > 2047 ? 2047 : dot) + 2048];
    bit = code_bit(k, decode, bit, (uint32_t)p);
    const int32_t err = (bit << 16) - p;
    for (int i = 0; i < n; i++) {
        const int32_t v = w[i] + ((st[i] * err + (1 << (shift - 1))) >> shift);
        w[i] = v > WEIGHT_MAX ? WEIGHT_MAX : v < -WEIGHT_MAX ? -WEIGHT_MAX : v;
        adapt(c[i], bit, limit);
    }
    return bit;
}

INLINE int decide_alone(coder *k, int decode, int bit, counter *c, int limit)
{
    const uint32_t p = c->p < 32 ? 32 : c->p > 65504 ? 65504 : c->p;
    bit = code_bit(k, decode, bit, p);
    adapt(c, bit, limit);
    return bit;
}

/* ---- the model ---- */

typedef struct {
    int32_t height, width, channels;
    int32_t planes;  /* 1: each channel has a history of its own; 0: all are frames of one history */
    int32_t boolean; /* 1: pixels are 0 or 1 */
    int32_t record;  /* bytes of one record, 0: none */
    int32_t history; /* frames kept of each history */
    int32_t bits;    /* log2 of the entries of each hashed table */
} shape;

typedef struct {
    shape s;
    int32_t tracks, stride, rows, segs;
    idx plane; /* bytes of one padded plane */
    idx map;   /* bytes of one map of changes, with a border of one */
    /* what follows is inside one block of memory */
    uint32_t *seen;      /* (tracks) frames coded so far */
    int32_t *ids;        /* (channels) which frame each channel showed last; -1: the one of zeros */
    uint8_t *prior;      /* (record) the last record */
    uint8_t *frames;     /* (tracks, history, plane) */
    uint8_t *maps;       /* (tracks, history, map) */
    uint8_t *rowmaps;    /* (tracks, history, height + 2) */
    uint8_t *filled;     /* (tracks, history, height + 4): rows that are not all zeros, with a border of two */
    counter *flag[3];    /* hashed: frame, row and segment flags */
    uint16_t *slot[MODELS];
    counter *trust;      /* (MODELS, agrees, confidence, guess is as before) */
    counter *around;     /* direct contexts of the best guess */
    counter *next;       /* the guesses after it */
    counter *spell;      /* (tracks & 15, 256) */
    counter *near[2];    /* hashed: the same */
    counter *refs;       /* which frame a channel shows */
    counter *field[3];   /* hashed: records */
    int32_t *weights;
} model;

enum {
    N_TRUST = MODELS * 2 * 16 * 2,
    N_AROUND = (1 << MODELS) * 64,
    N_NEXT = GUESSES * 64,
    N_SPELL = 16 * 256,
    N_REFS = 64 + 256,
    N_SMALL = 4096, /* entries of the tables whose size does not depend on the frames' */
    W_FLAG = 0,
    W_PIXEL = 3 * 4,
    W_FIELD = W_PIXEL + 32 * INPUTS,
    W_SPELL = W_FIELD + 2 * 4,
    N_WEIGHTS = W_SPELL + 4,
};

static int flag_bits(const shape *s)
{
    return s->bits < 12 ? s->bits : 12;
}

/* Points into `base`; returns how many bytes that takes. */
static idx layout(model *m, const shape *s, uint8_t *base)
{
    idx at = 0;
    m->s = *s;
    m->tracks = s->planes ? s->channels : 1;
    m->segs = (s->width + SEG - 1) / SEG;
    m->stride = m->segs * SEG + 2 * PAD_X;
    m->rows = s->height + PAD_ABOVE + PAD_BELOW;
    m->plane = (idx)m->stride * m->rows;
    m->map = (idx)(m->segs + 2) * (s->height + 2);
    const idx kept = (idx)m->tracks * s->history, hashed = (idx)1 << s->bits, flags = (idx)1 << flag_bits(s);
#define PLACE(field, type, count) \
    (field = (type *)(base ? base + at : NULL), at += ((idx)sizeof(type) * (count) + 63) & ~(idx)63)
    PLACE(m->seen, uint32_t, m->tracks);
    PLACE(m->ids, int32_t, s->channels);
    PLACE(m->prior, uint8_t, s->record);
    PLACE(m->frames, uint8_t, kept * m->plane);
    PLACE(m->maps, uint8_t, kept * m->map);
    PLACE(m->rowmaps, uint8_t, kept * (s->height + 2));
    PLACE(m->filled, uint8_t, s->planes ? kept * (s->height + 4) : 0);
    for (int i = 0; i < 3; i++)
        PLACE(m->flag[i], counter, flags);
    for (int i = 0; i < MODELS; i++)
        PLACE(m->slot[i], uint16_t, hashed);
    PLACE(m->trust, counter, N_TRUST);
    PLACE(m->around, counter, N_AROUND);
    PLACE(m->next, counter, N_NEXT);
    PLACE(m->spell, counter, N_SPELL);
    for (int i = 0; i < 2; i++)
        PLACE(m->near[i], counter, s->boolean ? 0 : N_SMALL);
    PLACE(m->refs, counter, N_REFS);
    for (int i = 0; i < 3; i++)
        PLACE(m->field[i], counter, s->record ? N_SMALL : 0);
    PLACE(m->weights, int32_t, N_WEIGHTS);
#undef PLACE
    return at;
}

static void fill(counter *c, idx n, uint16_t p)
{
    for (idx i = 0; i < n; i++)
        c[i] = (counter){p, 0};
}

static void reset(model *m)
{
    const idx hashed = (idx)1 << m->s.bits, flags = (idx)1 << flag_bits(&m->s);
    memset(m->seen, 0, (size_t)((uint8_t *)m->flag[0] - (uint8_t *)m->seen));
    for (int i = 0; i < m->s.channels; i++)
        m->ids[i] = -1;
    for (int i = 0; i < 3; i++)
        fill(m->flag[i], flags, 6000);
    for (int i = 0; i < MODELS; i++)
        memset(m->slot[i], 0, (size_t)hashed * sizeof(uint16_t));
    for (int i = 0; i < MODELS; i++)
        for (int agrees = 0; agrees < 2; agrees++)
            for (int conf = 0; conf < 16; conf++)
                for (int same = 0; same < 2; same++)
                    m->trust[((i * 2 + agrees) * 16 + conf) * 2 + same] =
                        (counter){(uint16_t)(conf == 0 ? 26000 : agrees ? 16384 / (conf + 1) : 40000), 4};
    fill(m->around, N_AROUND, 16384);
    for (int i = 0; i < 2; i++)
        fill(m->near[i], m->s.boolean ? 0 : N_SMALL, 32768);
    fill(m->next, N_NEXT, 32768);
    fill(m->spell, N_SPELL, 32768);
    fill(m->refs, N_REFS, 16384);
    for (int i = 0; i < 3; i++)
        fill(m->field[i], m->s.record ? N_SMALL : 0, 32768);
    for (int i = 0; i < N_WEIGHTS; i++)
        m->weights[i] = i >= W_PIXEL && i < W_FIELD ? 16000 : 28000;
}

INLINE uint32_t hash3(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t h = a * 0x9E3779B1u + b * 0x85EBCA77u + c * 0xC2B2AE3Du;
    h ^= h >> 15;
    h *= 0x2C1B3C6Du;
    return h ^ h >> 13;
}

/* One flag by three contexts: two hashed, and `b` within a group, whose neighbours share cache lines. */
INLINE int code_flag(model *m, coder *k, int decode, int bit, int kind, uint32_t a, uint32_t b, uint32_t group,
                     uint32_t c)
{
    const uint32_t mask = (1u << flag_bits(&m->s)) - 1;
    counter *from[3] = {m->flag[0] + (hash3(a, (uint32_t)kind, 1) & mask),
                        m->flag[1] + ((b + hash3(group, (uint32_t)kind, 2)) & mask),
                        m->flag[2] + (hash3(c, (uint32_t)kind, 3) & mask)};
    return decide(k, decode, bit, from, 3, m->weights + W_FLAG + 4 * kind, 14, 250);
}

INLINE uint8_t *frame_at(const model *m, int track, uint32_t id)
{
    const idx which = (idx)track * m->s.history + id % (uint32_t)m->s.history;
    return m->frames + which * m->plane + PAD_ABOVE * m->stride + PAD_X;
}

/* Per model, what is known of a pixel's contexts before its row is coded: it names the slots that are fetched ahead. */
INLINE void foresee(const model *m, const uint8_t *cur, const uint8_t *P1, const uint8_t *P2, const uint8_t *P3,
                    const uint8_t *beside, uint32_t where, uint32_t track, uint32_t *line)
{
    const idx S = m->stride;
    const uint32_t p1 = P1[0], p2 = P2[0], p3 = P3[0];
    const uint32_t n = cur[-S], nw = cur[-S - 1], ne = cur[-S + 1], nn = cur[-2 * S];
    const uint32_t pw = P1[-1], pn = P1[-S], pe = P1[1], ps = P1[S], pee = P1[2], bs = beside[0];
    const uint32_t pnw = P1[-S - 1], pne = P1[-S + 1], psw = P1[S - 1], pse = P1[S + 1];
    line[0] = hash3(p1 | pe << 8 | ps << 16 | n << 24, nw | ne << 8 | pw << 16 | pn << 24, track << 2);
    line[1] = hash3(where >> 2, track, 1);
    line[2] = hash3(n | ne << 8 | nw << 16 | nn << 24, p1 | pe << 8 | pee << 16 | pse << 24, track << 2 | 2);
    if (m->s.boolean)
        line[3] = hash3(p1 | pw << 1 | pe << 2 | pn << 3 | ps << 4 | pnw << 5 | pne << 6 | psw << 7 | pse << 8 |
                            p2 << 9 | (uint32_t)P2[-1] << 10 | (uint32_t)P2[1] << 11 | (uint32_t)P2[-S] << 12 |
                            (uint32_t)P2[S] << 13 | (uint32_t)P2[-S - 1] << 14 | (uint32_t)P2[-S + 1] << 15 |
                            (uint32_t)P2[S - 1] << 16 | (uint32_t)P2[S + 1] << 17,
                        n | bs << 1 | nw << 2 | ne << 3, track << 2 | 3);
    else
        line[3] = hash3(p1 | p2 << 8 | p3 << 16 | pw << 24, n | pn << 8 | ne << 16 | bs << 24, track << 2 | 3);
}

INLINE void code_pixel(model *m, coder *k, int decode, uint8_t *cur, const uint8_t *P1, const uint8_t *P2,
                       const uint32_t *line, uint32_t where, uint32_t track, uint32_t any, uint32_t last)
{
    const idx S = m->stride;
    const uint32_t p1 = P1[0], p2 = P2[0], w = cur[-1], ww = cur[-2], www = cur[-3], n = cur[-S], ne = cur[-S + 1];
    const uint32_t pe = P1[1], wch = w != P1[-1], nch = n != P1[-S], nech = ne != P1[-S + 1];
    const uint32_t rest[MODELS] = {w | ww << 8, (where & 3) << 26 | wch << 25 | nch << 24 | p1 << 16 | n << 8 | w,
                                   w | ww << 8 | www << 16, w};
    const uint32_t shift = 32 - ((uint32_t)m->s.bits - LINE_BITS);
    uint32_t tag[MODELS];
    uint16_t *slot[MODELS];
    uint32_t sym[MODELS], conf[MODELS], power[MODELS], best = p1, weight = 0;
    for (int i = 0; i < MODELS; i++) {
        const uint32_t h = (line[i] ^ rest[i] * 0x9E3779B1u) * 0x85EBCA77u;
        slot[i] = m->slot[i] + ((line[i] >> shift << LINE_BITS) | h >> (32 - LINE_BITS));
        tag[i] = h >> 16 & 15;
        const uint32_t v = *slot[i], known = v >> 12 == tag[i] ? 15 : 0;
        conf[i] = v >> 8 & known;
        sym[i] = conf[i] ? v & 255 : p1;
        power[i] = conf[i] ? conf[i] + (i == 0 || i == 2 ? 2 : 1) : 0;
    }
    for (int i = 0; i < MODELS; i++) {
        uint32_t votes = 0;
        for (int j = 0; j < MODELS; j++)
            votes += sym[j] == sym[i] ? power[j] : 0;
        best = votes > weight ? sym[i] : best;
        weight = votes > weight ? votes : weight;
    }
    const uint32_t same = best == p1;
    uint32_t mask = 0;
    counter *from[INPUTS];
    for (int i = 0; i < MODELS; i++) {
        const uint32_t agrees = sym[i] == best;
        mask |= (agrees & (conf[i] > 0)) << i;
        from[i] = m->trust + (((uint32_t)i * 2 + agrees) * 16 + conf[i]) * 2 + same;
    }
    from[MODELS] = m->around + (mask << 6 | same << 5 | wch << 4 | nch << 3 | nech << 2 | any << 1 | last);
    const uint32_t set = same << 4 | any << 3 | last << 2 | wch << 1 | nch;
    uint32_t v = cur[0];
    const int missed =
        decide(k, decode, v != best, from, INPUTS, m->weights + W_PIXEL + (idx)set * INPUTS, 14, 250);
    if (!missed)
        v = best;
    else if (m->s.boolean)
        v = best ^ 1;
    else {
        const uint32_t try[8] = {p1, w, n, p2, ne, pe, sym[0], sym[2]};
        uint32_t tried[GUESSES + 1] = {best}, count = 1;
        int found = 0;
        for (int j = 0; j < 8 && count <= GUESSES && !found; j++) {
            int again = 0;
            for (uint32_t t = 0; t < count; t++)
                again |= tried[t] == try[j];
            if (again)
                continue;
            counter *c = m->next + ((count - 1) * 64 + (uint32_t)j * 8 + (wch << 2 | nch << 1 | same));
            found = decide_alone(k, decode, v == try[j], c, 120);
            if (found)
                v = try[j];
            tried[count++] = try[j];
        }
        if (!found) {
            counter *tree = m->spell + (track & 15) * 256;
            uint32_t node = 1;
            for (int b = 7; b >= 0; b--) {
                counter *leaf[3] = {tree + node, m->near[0] + (hash3(p1 << 8 | node, same, 4) & (N_SMALL - 1)),
                                    m->near[1] + (hash3(w << 16 | n << 8 | node, 0, 5) & (N_SMALL - 1))};
                node = node << 1 | (uint32_t)decide(k, decode, v >> b & 1, leaf, 3, m->weights + W_SPELL, 14, 120);
            }
            v = node & 255;
        }
    }
    cur[0] = (uint8_t)v;
    for (int i = 0; i < MODELS; i++) {
        /* What the others foresaw needs no place in a table where it is not known yet. */
        if (!missed && !conf[i] && weight > SURE)
            continue;
        const uint32_t was = conf[i], right = was && sym[i] == v;
        const uint32_t value = right || was > 2 ? sym[i] : v;
        const uint32_t c = right ? was + (was < 15) : was > 2 ? was >> 1 : 1;
        *slot[i] = (uint16_t)(tag[i] << 12 | c << 8 | value);
    }
}

/* The frame that follows the last one of its history. An encoder has put it there already. */
INLINE uint32_t code_frame(model *m, coder *k, int decode, int track, uint32_t act, uint32_t crc)
{
    const idx S = m->stride;
    const int H = m->s.height, W = m->s.width, segs = m->segs, MS = segs + 2;
    const uint32_t id = m->seen[track], t = (uint32_t)track;
    uint8_t *cur = frame_at(m, track, id);
    const uint32_t kept = (uint32_t)m->s.history;
    const uint8_t *P1 = frame_at(m, track, id + kept - 1), *P2 = frame_at(m, track, id + kept - 2),
                  *P3 = frame_at(m, track, id + kept - 3);
    const uint8_t *beside = m->s.planes && track ? frame_at(m, track - 1, m->seen[track - 1] + kept - 1) : P3;
#define MAP(back) (m->maps + ((idx)track * kept + (id + kept - (back)) % kept) * m->map + MS + 1)
#define ROWMAP(back) (m->rowmaps + ((idx)track * kept + (id + kept - (back)) % kept) * (H + 2) + 1)
#define FILLED(back) (m->filled + ((idx)track * kept + (id + kept - (back)) % kept) * (H + 4) + 2)
    uint8_t *M0 = MAP(0), *R0 = ROWMAP(0);
    const uint8_t *M1 = MAP(1), *M2 = MAP(2), *R1 = ROWMAP(1), *R2 = ROWMAP(2);
    const uint8_t *F1 = FILLED(1), *F2 = FILLED(2);
    const uint8_t *RB = m->s.planes && track ? R0 - (idx)kept * (H + 2) : NULL; /* all tracks are coded in step */
#undef MAP
#undef ROWMAP
    int changed = 0;
    if (!decode)
        for (int y = 0; y < H && !changed; y++)
            changed = memcmp(cur + y * S, P1 + y * S, (size_t)W) != 0;
    changed = code_flag(m, k, decode, changed, 0, t << 2 | (uint32_t)R1[-1] << 1 | R2[-1],
                        act, t, t << 8 | (uint32_t)R1[-1] << 1 | (RB ? RB[-1] : 0));
    R0[-1] = (uint8_t)changed;
    memset(R0, 0, (size_t)H);
    memset(M0 - MS - 1, 0, (size_t)m->map);
    if (!changed) {
        if (decode)
            memcpy(cur - PAD_X, P1 - PAD_X, (size_t)(S * H));
        if (m->s.planes)
            memcpy(FILLED(0), F1, (size_t)H);
        m->seen[track]++;
        return crc;
    }
    uint32_t up = 0, up2 = 0;
    for (int y = 0; y < H && !k->bad; y++) {
        uint8_t *row = cur + y * S;
        const uint8_t *row1 = P1 + y * S;
        int ch = decode ? 0 : memcmp(row, row1, (size_t)W) != 0;
        const uint32_t near = (uint32_t)R1[y] << 2 | (uint32_t)R1[y + 1] << 1 | R2[y];
        uint32_t shape1 = 0, shape2 = 0;
        if (m->s.planes) {
            shape1 = (uint32_t)F1[y - 1] << 2 | (uint32_t)F1[y] << 1 | F1[y + 1];
            shape2 = shape1 << 6 | (uint32_t)F2[y - 2] << 5 | (uint32_t)F2[y - 1] << 4 | (uint32_t)F2[y] << 3 |
                     (uint32_t)F2[y + 1] << 2 | (uint32_t)F2[y + 2] << 1 | (RB ? RB[y] : 0);
        }
        ch = code_flag(m, k, decode, ch, 1, up << 4 | up2 << 3 | near | t << 6 | shape2 << 16,
                       (uint32_t)y << 2 | up << 1 | R1[y], t << 3 | shape1,
                       act << 6 | up << 3 | near | shape2 << 16 | t << 11);
        up2 = up;
        up = (uint32_t)ch;
        if (!ch) {
            if (decode)
                memcpy(row, row1, (size_t)(segs * SEG));
            continue;
        }
        R0[y] = 1;
        uint8_t *map = M0 + y * MS;
        const uint8_t *map1 = M1 + y * MS, *map2 = M2 + y * MS, *over = map - MS;
        uint32_t some = 0;
        for (int g = 0; g < segs; g++) {
            const int at = g * SEG, end = at + SEG < W ? at + SEG : W;
            int sch = decode ? 0 : memcmp(row + at, row1 + at, SEG) != 0;
            const uint32_t cross = (uint32_t)map[g - 1] << 7 | (uint32_t)over[g - 1] << 6 | (uint32_t)over[g] << 5 |
                                   (uint32_t)over[g + 1] << 4 | (uint32_t)map1[g] << 3 | (uint32_t)map1[g + 1] << 2 |
                                   (uint32_t)map1[g - 1] << 1 | map2[g];
            const uint32_t below = (uint32_t)map1[MS + g] << 2 | (uint32_t)map1[MS + g - 1] << 1 | map1[MS + g + 1];
            sch = code_flag(m, k, decode, sch, 2, cross | some << 8 | t << 9,
                            ((uint32_t)y * (uint32_t)segs + (uint32_t)g) << 2 | (uint32_t)map[g - 1] << 1 | over[g], t,
                            (act << 3 | below) << 3 | (uint32_t)map1[g] << 2 | (uint32_t)over[g] << 1 | map[g - 1]);
            map[g] = (uint8_t)sch;
            if (!sch) {
                if (decode)
                    memcpy(row + at, row1 + at, SEG);
                continue;
            }
            some = 1;
            uint32_t any = 0, line[SEG][MODELS];
            const uint32_t shift = 32 - ((uint32_t)m->s.bits - LINE_BITS), where = (uint32_t)y << 12;
            for (int x = at; x < end; x++) {
                const idx o = y * S + x;
                foresee(m, cur + o, P1 + o, P2 + o, P3 + o, beside + o, where + (uint32_t)x, t, line[x - at]);
                for (int i = 0; i < MODELS; i++)
                    PREFETCH(m->slot[i] + (line[x - at][i] >> shift << LINE_BITS));
            }
            for (int x = at; x < end; x++) {
                const idx o = y * S + x;
                code_pixel(m, k, decode, cur + o, P1 + o, P2 + o, line[x - at], where + (uint32_t)x, t, any,
                           x + 1 == end);
                any |= cur[o] != P1[o];
            }
        }
        const uint8_t told[2] = {(uint8_t)y, (uint8_t)(y >> 8)};
        crc = crc32_of(crc32_of(crc, told, 2), row, W);
    }
    if (m->s.planes) {
        uint8_t *full = FILLED(0);
        for (int y = 0; y < H; y++) {
            uint8_t some = 0;
            for (int x = 0; x < W; x++)
                some |= cur[y * S + x];
            full[y] = some != 0;
        }
    }
#undef FILLED
    m->seen[track]++;
    return crc;
}

/* ---- records ---- */

INLINE void code_record(model *m, coder *k, int decode, uint8_t *now)
{
    uint8_t *prior = m->prior;
    uint32_t left = 0, hits = 0;
    for (int b = 0; b < m->s.record; b++) {
        const uint32_t above = prior[b], at = (uint32_t)b, v = now[b];
        counter *from[3] = {m->field[0] + (hash3(at, hits & 3, 1) & (N_SMALL - 1)),
                            m->field[1] + (hash3(at, above, 2) & (N_SMALL - 1)),
                            m->field[2] + (hash3(at, left, 3) & (N_SMALL - 1))};
        const int other = decide(k, decode, v != above, from, 3, m->weights + W_FIELD, 14, 250);
        uint32_t got = above;
        hits = hits << 1 | (uint32_t)other;
        if (other) {
            const uint32_t before = b < 4 ? 0 : prior[b - 4];
            uint32_t node = 1;
            for (int i = 7; i >= 0; i--) {
                counter *leaf[3] = {m->field[0] + (hash3(at, node, 4) & (N_SMALL - 1)),
                                    m->field[1] + (hash3(at, above << 8 | node, 5) & (N_SMALL - 1)),
                                    m->field[2] + (hash3(at & 3, before << 16 | left << 8 | node, 6) & (N_SMALL - 1))};
                node = node << 1 | (uint32_t)decide(k, decode, v >> i & 1, leaf, 3, m->weights + W_FIELD + 4, 14, 250);
            }
            got = node & 255;
        }
        prior[b] = (uint8_t)got;
        if (decode)
            now[b] = (uint8_t)got;
        left = got;
    }
}

/* ---- observations ---- */

/* One channel of an interleaved observation, into a padded plane. */
static void take_plane(const model *m, uint8_t *to, const uint8_t *obs, int channel)
{
    const int C = m->s.channels, W = m->s.width;
    for (int y = 0; y < m->s.height; y++, to += m->stride) {
        const uint8_t *from = obs + (idx)y * W * C + channel;
        switch (C) {
        case 1:
            memcpy(to, from, (size_t)W);
            break;
        case 4:
            for (int x = 0; x < W; x++)
                to[x] = from[4 * x];
            break;
        default:
            for (int x = 0; x < W; x++)
                to[x] = from[(idx)C * x];
        }
    }
}

static void give_plane(const model *m, const uint8_t *from, uint8_t *obs, int channel)
{
    const int C = m->s.channels, W = m->s.width;
    for (int y = 0; y < m->s.height; y++, from += m->stride) {
        uint8_t *to = obs + (idx)y * W * C + channel;
        for (int x = 0; x < W; x++)
            to[(idx)C * x] = from[x];
    }
}

/* Whether a channel of an interleaved observation shows this frame; NULL: zeros. */
static int shows(const model *m, const uint8_t *obs, int channel, const uint8_t *frame)
{
    const int C = m->s.channels, W = m->s.width, H = m->s.height;
    for (int y = 0; y < H; y++) {
        const uint8_t *of = obs + (idx)y * W * C + channel, *row = frame + (frame ? (idx)y * m->stride : 0);
        uint8_t differs = 0;
        for (int x = 0; x < W; x++)
            differs |= of[(idx)C * x] ^ (frame ? row[x] : 0);
        if (differs)
            return 0;
    }
    return 1;
}

/* Whether the first three of four channels show these frames: the usual stack, in one pass over it. */
static int shows_three(const model *m, const uint8_t *restrict obs, const uint8_t *restrict a,
                       const uint8_t *restrict b, const uint8_t *restrict c)
{
    const int W = m->s.width, H = m->s.height;
    for (int y = 0; y < H; y++, obs += 4 * W, a += m->stride, b += m->stride, c += m->stride) {
        uint8_t differs = 0;
        for (int x = 0; x < W; x++)
            differs |= (obs[4 * x] ^ a[x]) | (obs[4 * x + 1] ^ b[x]) | (obs[4 * x + 2] ^ c[x]);
        if (differs)
            return 0;
    }
    return 1;
}

/* A frame that is still kept: one of the last (history - 1) before the one to come. */
INLINE int is_kept(const model *m, int32_t id)
{
    const int32_t next = (int32_t)m->seen[0];
    return id >= 0 && id < next && id + m->s.history > next;
}

/* Which frame a channel shows: 0 zeros, 1 a new one, 2 + a the one coded a frames before the last. */
INLINE uint32_t code_reference(model *m, coder *k, int decode, const uint8_t *obs, int c, int32_t expected,
                               uint32_t missed, int usual)
{
    const int32_t next = (int32_t)m->seen[0];
    uint32_t want = expected == -1 ? 0 : is_kept(m, expected) ? (uint32_t)(next - 1 - expected) + 2 : 1;
    uint32_t is = 1;
    if (usual)
        is = want;
    else if (!decode && want != 1 && shows(m, obs, c, expected == -1 ? NULL : frame_at(m, 0, (uint32_t)expected)))
        is = want;
    else if (!decode && (want != 1 || missed)) { /* a new one where one is due is not looked for among the old */
        for (int32_t id = next - 1; is == 1 && is_kept(m, id); id--)
            if (shows(m, obs, c, frame_at(m, 0, (uint32_t)id)))
                is = (uint32_t)(next - 1 - id) + 2;
        if (is == 1 && shows(m, obs, c, NULL))
            is = 0;
    }
    counter *tree = m->refs;
    const uint32_t ctx = (uint32_t)(c < 15 ? c : 15) << 1 | missed;
    if (!decide_alone(k, decode, is != want, tree + ctx, 250))
        return want;
    uint32_t node = 1;
    for (int b = 7; b >= 0; b--)
        node = node << 1 | (uint32_t)decide_alone(k, decode, is >> b & 1, tree + 64 + node, 60);
    is = node & 255;
    if (is > 1 && !is_kept(m, next - 1 - (int32_t)(is - 2))) {
        k->bad = 1;
        is = 0;
    }
    return is;
}

INLINE uint32_t code_obs(model *m, coder *k, int decode, uint8_t *obs, uint32_t act, uint32_t crc)
{
    const int C = m->s.channels;
    if (!decode && m->s.boolean) {
        const idx size = (idx)m->s.height * m->s.width * C;
        uint8_t any = 0;
        for (idx i = 0; i < size; i++)
            any |= obs[i];
        k->bad |= any > 1;
    }
    if (m->s.planes) {
        for (int c = 0; c < C && !k->bad; c++) {
            if (!decode)
                take_plane(m, frame_at(m, c, m->seen[c]), obs, c);
            crc = code_frame(m, k, decode, c, act, crc);
            if (decode)
                give_plane(m, frame_at(m, c, m->seen[c] - 1), obs, c);
        }
        return crc;
    }
    uint32_t missed = 0;
    const int32_t *ids = m->ids;
    const int usual = !decode && C == 4 && is_kept(m, ids[1]) && is_kept(m, ids[2]) && is_kept(m, ids[3]) &&
                      shows_three(m, obs, frame_at(m, 0, (uint32_t)ids[1]), frame_at(m, 0, (uint32_t)ids[2]),
                                  frame_at(m, 0, (uint32_t)ids[3]));
    for (int c = 0; c < C && !k->bad; c++) {
        const int32_t next = (int32_t)m->seen[0];
        const int32_t expected = missed && m->ids[c - 1] >= 0 ? m->ids[c - 1] + 1 : c + 1 < C ? m->ids[c + 1] : next;
        const uint32_t ref = code_reference(m, k, decode, obs, c, expected, missed, usual);
        const int32_t id = ref == 0 ? -1 : ref == 1 ? next : next - 1 - (int32_t)(ref - 2);
        const uint8_t told = (uint8_t)ref;
        missed |= id != expected;
        crc = crc32_of(crc, &told, 1);
        if (ref == 1) {
            if (!decode)
                take_plane(m, frame_at(m, 0, (uint32_t)next), obs, c);
            crc = code_frame(m, k, decode, 0, act, crc);
        }
        m->ids[c] = id;
        if (decode) {
            if (ref)
                give_plane(m, frame_at(m, 0, (uint32_t)id), obs, c);
            else
                for (idx i = 0; i < (idx)m->s.height * m->s.width; i++)
                    obs[i * C + c] = 0;
        }
    }
    return crc;
}

INLINE uint32_t code_all(model *m, coder *k, int decode, uint8_t *obs, idx n_obs, uint8_t *records, idx n_records,
                         uint32_t crc)
{
    const idx size = (idx)m->s.height * m->s.width * m->s.channels;
    start(k, decode);
    for (int t = 0; t < m->tracks; t++)
        k->bad |= m->seen[t] > FRAMES_MAX;
    for (idx i = 0; (i < n_obs || i < n_records) && !k->bad; i++) {
        if (i < n_obs)
            crc = code_obs(m, k, decode, obs + i * size, m->s.record ? m->prior[0] & 31u : 0, crc);
        if (i < n_records) {
            code_record(m, k, decode, records + i * m->s.record);
            crc = crc32_of(crc, records + i * m->s.record, m->s.record);
        }
    }
    if (!decode)
        finish(k);
    return crc;
}

static uint32_t encode_all(model *m, coder *k, uint8_t *obs, idx n_obs, uint8_t *records, idx n_records, uint32_t crc)
{
    return code_all(m, k, 0, obs, n_obs, records, n_records, crc);
}

static uint32_t decode_all(model *m, coder *k, uint8_t *obs, idx n_obs, uint8_t *records, idx n_records, uint32_t crc)
{
    return code_all(m, k, 1, obs, n_obs, records, n_records, crc);
}

/* ---- Python ---- */

/* Addresses, sizes and a checksum, all given as integers. PyLong_AsVoidPtr also takes the upper half of a 32-bit space. */
static int take(PyObject *const *args, Py_ssize_t n, int expected, Py_ssize_t *a)
{
    if (n != expected) {
        PyErr_Format(PyExc_TypeError, "expected %d arguments, got %zd", expected, n);
        return 0;
    }
    for (int i = 0; i < expected; i++) {
        void *const value = PyLong_AsVoidPtr(args[i]);
        if (value == NULL && PyErr_Occurred())
            return 0;
        a[i] = (Py_ssize_t)value;
    }
    return 1;
}

static shape shape_of(const Py_ssize_t *a)
{
    return (shape){(int32_t)a[0], (int32_t)a[1], (int32_t)a[2], (int32_t)a[3],
                   (int32_t)a[4], (int32_t)a[5], (int32_t)a[6], (int32_t)a[7]};
}

static PyObject *py_size(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    Py_ssize_t a[8];
    model m;
    if (!take(args, n, 8, a))
        return NULL;
    const shape s = shape_of(a);
    return PyLong_FromSsize_t(layout(&m, &s, NULL));
}

static PyObject *py_reset(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    Py_ssize_t a[9];
    model m;
    if (!take(args, n, 9, a))
        return NULL;
    const shape s = shape_of(a + 1);
    layout(&m, &s, (uint8_t *)a[0]);
    reset(&m);
    Py_RETURN_NONE;
}

/* state, 8 sizes, decode?, obs, n_obs, records, n_records, data, n_data, crc -> (bytes written or read, or -1; crc) */
static PyObject *py_code(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t n)
{
    Py_ssize_t a[17];
    model m;
    if (!take(args, n, 17, a))
        return NULL;
    const shape s = shape_of(a + 1);
    coder k = {.data = (uint8_t *)a[14], .n = a[15]};
    uint32_t crc;
    Py_BEGIN_ALLOW_THREADS
    layout(&m, &s, (uint8_t *)a[0]);
    crc = (a[9] ? decode_all : encode_all)(&m, &k, (uint8_t *)a[10], a[11], (uint8_t *)a[12], a[13], (uint32_t)a[16]);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("nk", k.bad ? (Py_ssize_t)-1 : k.at, (unsigned long)crc);
}

#define FAST(f) (PyCFunction)(void (*)(void)) f, METH_FASTCALL, NULL
static PyMethodDef methods[] = {
    {"size", FAST(py_size)},
    {"reset", FAST(py_reset)},
    {"code", FAST(py_code)},
    {NULL, NULL, 0, NULL},
};

static int exec_module(PyObject *Py_UNUSED(module))
{
    make_tables();
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)exec_module}, {0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_codec", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC PyInit__codec(void)
{
    return PyModuleDef_Init(&module);
}
