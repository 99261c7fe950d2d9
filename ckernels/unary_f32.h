/* unary_f32: activations, and the exponential that softmax takes from here. Every function of a vector keeps NaN. */

typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

/* exp(v) = exp(r) 2^n: v = n ln 2 + r, |r| <= ln 2 / 2; exp(r) as the polynomial of the 6th degree that begins with 1 + r and
   whose greatest relative error is least, 2e-8. ln 2 comes in two floats, the first short enough that n times it is exact.
   *n has its integer in the lowest bits, above them those of 1.5 * 2^23. */
INLINE V vexp_mantissa(V v, V *n) {
    const V magic = splat(12582912.0f);
    *n = madd(v, splat(1.44269504f), magic);
    V r = madd(*n - magic, splat(-0.693359375f), v);
    r = madd(*n - magic, splat(2.12194440e-4f), r);
    V p = madd(splat(1.3843607157e-3f), r, splat(8.3741955459e-3f));
    p = madd(p, r, splat(4.1668005288e-2f));
    p = madd(p, r, splat(1.6666430235e-1f));
    p = madd(p, r, splat(4.9999994040e-1f));
    p = madd(p, r, splat(1.0f));
    return madd(p, r, splat(1.0f));
}

/* exp(v), its relative error below 2e-7. 2^n is multiplied in as two halves, so that numbers below the smallest normal one
   are rounded once, and those beyond the greatest are infinity. */
INLINE V vexp(V v) {
    V n;
    const V p = vexp_mantissa(clamp(v, splat(-105.0f), splat(89.0f)), &n);
    const Mask power = (Mask)((Bits)n - (Bits)splat(12582912.0f)), half = power >> 1, other = (Mask)((Bits)power - (Bits)half);
    return p * (V)(((Bits)half + 127) << 23) * (V)(((Bits)other + 127) << 23);
}

/* 1 + exp(v) for quotients of it: what is next to nothing beside 1 may be any of the kind, and infinity begins at 88.4. */
INLINE V vexp_and_1(V v) {
    V n;
    const V p = vexp_mantissa(clamp(v, splat(-87.0f), splat(89.0f)), &n);
    return madd(p, (V)(((Bits)n << 23) + (127u << 23)), splat(1.0f));
}

/* erf(v) within 3e-7: v times a quotient of polynomials in v^2, as Eigen has it; 1 and -1 from 4 on. */
INLINE V verf(V v) {
    const V x = clamp(v, splat(-4.0f), splat(4.0f)), z = x * x, one = splat(1.0f);
    V p = madd(splat(-2.72614225801306e-10f), z, splat(2.77068142495902e-08f));
    p = madd(p, z, splat(-2.10102402082508e-06f));
    p = madd(p, z, splat(-5.69250639462346e-05f));
    p = madd(p, z, splat(-7.34990630326855e-04f));
    p = madd(p, z, splat(-2.95459980854025e-03f));
    p = madd(p, z, splat(-1.60960333262415e-02f));
    V q = madd(splat(-1.45660718464996e-05f), z, splat(-2.13374055278905e-04f));
    q = madd(q, z, splat(-1.68282697438203e-03f));
    q = madd(q, z, splat(-7.37332916720468e-03f));
    q = madd(q, z, splat(-1.42647390514189e-02f));
    const V y = x * p / q;
    return choose(x >= splat(4.0f), one, choose(x <= splat(-4.0f), -one, y));
}

/* tanh(v), likewise; 1 and -1 from 9 on, where no float lies between. */
INLINE V vtanh(V v) {
    const V x = clamp(v, splat(-9.0f), splat(9.0f)), z = x * x, one = splat(1.0f);
    V p = madd(splat(-2.76076847742355e-16f), z, splat(2.00018790482477e-13f));
    p = madd(p, z, splat(-8.60467152213735e-11f));
    p = madd(p, z, splat(5.12229709037114e-08f));
    p = madd(p, z, splat(1.48572235717979e-05f));
    p = madd(p, z, splat(6.37261928875436e-04f));
    p = madd(p, z, splat(4.89352455891786e-03f));
    V q = madd(splat(1.19825839466702e-06f), z, splat(1.18534705686654e-04f));
    q = madd(q, z, splat(2.26843463243900e-03f));
    q = madd(q, z, splat(4.89352518554385e-03f));
    return clamp(x * p / q, -one, one);
}

/* log(1 + u) for u in 0 .. 1: twice the area tangent of u / (2 + u), which is at most 1/3. */
INLINE V vlog1p(V u) {
    const V s = u / (u + splat(2.0f)), z = s * s;
    V p = madd(splat(1.0f / 15), z, splat(1.0f / 13));
    p = madd(p, z, splat(1.0f / 11));
    p = madd(p, z, splat(1.0f / 9));
    p = madd(p, z, splat(1.0f / 7));
    p = madd(p, z, splat(1.0f / 5));
    p = madd(p, z, splat(1.0f / 3));
    return madd(p * z, s + s, s + s);
}

/* x * tanh(log(1 + e)), e = exp(x): tanh(log(1 + e)) = (e^2 + 2 e) / (e^2 + 2 e + 2). */
INLINE V vmish(V x) {
    const V e = vexp(vmin(splat(20.0f), x)), n = e * (e + splat(2.0f));
    return x * choose(x > splat(20.0f), splat(1.0f), n / (n + splat(2.0f)));
}

INLINE V vsoftplus(V x) {
    const V size = (V)((Mask)x & 0x7fffffff);
    return choose(x > splat(20.0f), x, vmax((V){0}, x) + vlog1p(vexp(-size)));
}

/* The nearest integer, halves to even; from 2^23 on every float is one. */
INLINE V vround(V x) {
    const V large = splat(8388608.0f), size = (V)((Mask)x & 0x7fffffff), whole = size + large - large;
    return choose(size < large, choose(x < (V){0}, -whole, whole), x);
}

/* act is a constant of every call. */
INLINE V activate(const int act, V x, V slope) {
    const V zero = {0}, one = splat(1.0f), three = splat(3.0f), six = splat(6.0f);
    switch (act) {
        case ACT_SIGMOID: return one / vexp_and_1(-x);
        case ACT_SILU: return x / vexp_and_1(-x);
        case ACT_HARDSIGMOID: return clamp(x + three, zero, six) * splat(1.0f / 6);
        case ACT_HARDSWISH: return x * (clamp(x + three, zero, six) * splat(1.0f / 6));
        case ACT_GELU: return x * splat(0.5f) * (one + verf(x * splat(0.707106781f)));
        case ACT_GELU_TANH: /* 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)) */
            return x / vexp_and_1(splat(-1.59576912f) * x * madd(x * x, splat(0.044715f), one));
        case ACT_TANH: return vtanh(x);
        case ACT_ELU: return choose(x > zero, x, vexp(x) - one);
        case ACT_MISH: return vmish(x);
        case ACT_SOFTPLUS: return vsoftplus(x);
        case ACT_EXP: return vexp(x);
        case ACT_SQRT: return vsqrt(x);
        case ACT_ROUND: return vround(x);
        case ACT_PRELU: return choose(x < zero, x * slope, x);
    }
    return x;
}

/* Vectors may write behind a plane's last pixel, as all kernels do. */
INLINE void unary_planes(const int act, const unary_f32 *s) {
    const V lo = splat(s->lo), hi = splat(s->hi);
    for (int c = 0; c < s->c; c++) {
        const float *x = s->x + c * s->x_pitch;
        float *y = s->y + c * s->y_pitch;
        const V slope = splat(act == ACT_PRELU ? s->slopes[c] : 0.0f);
        for (int64_t i = 0; i < s->n; i += LANES) store(y + i, activate(act, clamp(load(x + i), lo, hi), slope));
    }
}

static void unary(const unary_f32 *s) {
    switch (s->act) {
        case ACT_NONE: unary_planes(ACT_NONE, s); break;
        case ACT_SIGMOID: unary_planes(ACT_SIGMOID, s); break;
        case ACT_SILU: unary_planes(ACT_SILU, s); break;
        case ACT_HARDSIGMOID: unary_planes(ACT_HARDSIGMOID, s); break;
        case ACT_HARDSWISH: unary_planes(ACT_HARDSWISH, s); break;
        case ACT_GELU: unary_planes(ACT_GELU, s); break;
        case ACT_GELU_TANH: unary_planes(ACT_GELU_TANH, s); break;
        case ACT_TANH: unary_planes(ACT_TANH, s); break;
        case ACT_ELU: unary_planes(ACT_ELU, s); break;
        case ACT_MISH: unary_planes(ACT_MISH, s); break;
        case ACT_SOFTPLUS: unary_planes(ACT_SOFTPLUS, s); break;
        case ACT_EXP: unary_planes(ACT_EXP, s); break;
        case ACT_SQRT: unary_planes(ACT_SQRT, s); break;
        case ACT_ROUND: unary_planes(ACT_ROUND, s); break;
        case ACT_PRELU: unary_planes(ACT_PRELU, s); break;
    }
}
