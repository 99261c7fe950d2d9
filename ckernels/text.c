/* Whether a packed network's description is what it should be: one JSON object of integers, strings and lists of them, as
   packed.py writes it. */
#include "engine.h"

typedef struct {
    const uint8_t *at, *end; /* what is left to read */
} text;

static int next(text *t, char c) { return t->at < t->end && *t->at == (uint8_t)c ? t->at++, 1 : 0; }
static int is_one_of(uint8_t c, const char *those) {
    while (*those && (uint8_t)*those != c) those++;
    return *those != 0;
}

/* Each of these reads what it is named after and moves on, or returns 0. */
static int escape(text *t) {
    if (!next(t, 'u')) return t->at < t->end && is_one_of(*t->at++, "\"\\/bfnrt");
    for (int i = 0; i < 4; i++)
        if (t->at == t->end || !is_one_of(*t->at++, "0123456789abcdefABCDEF")) return 0;
    return 1;
}

static int string(text *t) {
    if (!next(t, '"')) return 0;
    while (t->at < t->end) {
        const uint8_t c = *t->at++;
        if (c == '"') return 1;
        if (c < ' ' || c > '~' || (c == '\\' && !escape(t))) return 0;
    }
    return 0;
}

static int number(text *t) {
    next(t, '-');
    if (next(t, '0')) return 1;
    int digits = 0;
    while (digits < 15 && t->at < t->end && is_one_of(*t->at, "0123456789")) t->at++, digits++;
    return digits > 0;
}

static int item(text *t) { return t->at < t->end && *t->at == '"' ? string(t) : number(t); }

/* A value; of a list, `strings` says how many it holds if they are all strings, else -1. */
static int value(text *t, int64_t *strings) {
    *strings = -1;
    if (!next(t, '[')) return item(t);
    int64_t n = 0, others = 0;
    if (!next(t, ']')) {
        do {
            others += t->at < t->end && *t->at != '"';
            if (!item(t)) return 0;
            n++;
        } while (next(t, ',') && next(t, ' '));
        if (!next(t, ']')) return 0;
    }
    *strings = others ? -1 : n;
    return 1;
}

/* Whether it can be read, and its "names" are strings, one an operator. */
int check_text(const uint8_t *file) {
    const header *h = head(file);
    text t = {file + h->meta, file + h->meta + h->meta_size};
    int64_t names = -1, strings;
    if (!next(&t, '{')) return BAD_TEXT;
    do {
        const uint8_t *key = t.at, name[] = "\"names\"";
        if (!next(&t, '"')) return BAD_TEXT;
        while (t.at < t.end && is_one_of(*t.at, "abcdefghijklmnopqrstuvwxyz")) t.at++;
        if (!next(&t, '"')) return BAD_TEXT;
        int is_names = t.at - key == sizeof name - 1;
        for (uint32_t i = 0; is_names && i < sizeof name - 1; i++) is_names = key[i] == name[i];
        if (!next(&t, ':') || !next(&t, ' ') || !value(&t, &strings)) return BAD_TEXT;
        if (is_names) names = strings;
    } while (next(&t, ',') && next(&t, ' '));
    return next(&t, '}') && t.at == t.end && names == h->n_ops ? 0 : BAD_TEXT;
}
