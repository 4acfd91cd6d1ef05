// Vectors of W float32 lanes, W = 16 with AVX-512 and 8 with AVX2. Every operation is one IEEE-754 operation a lane, so
// that a lane's bits do not depend on W, the compiler or the processor.
#include <immintrin.h>
#include <stdint.h>

typedef float V __attribute__((vector_size(W * 4)));
typedef int32_t M __attribute__((vector_size(W * 4)));  // a mask: -1 or 0 a lane

// The intrinsics of one register. Written out, and not as a * b + c, because compilers fuse as they like.
#if W == 16
#define OP(name) _mm512_##name##_ps
static inline bool ANY(M m) { return _mm512_cmplt_epi32_mask((__m512i)m, _mm512_setzero_si512()); }
#else
#define OP(name) _mm256_##name##_ps
static inline bool ANY(M m) { return _mm256_movemask_ps((__m256)m); }
#endif

static inline V FMA(V a, V b, V c) { return OP(fmadd)(a, b, c); }    // a b + c
static inline V FMS(V a, V b, V c) { return OP(fmsub)(a, b, c); }    // a b - c
static inline V FNMA(V a, V b, V c) { return OP(fnmadd)(a, b, c); }  // c - a b
static inline V MIN(V a, V b) { return OP(min)(a, b); }              // a < b ? a : b: b where either is not a number
static inline V MAX(V a, V b) { return OP(max)(a, b); }
static inline V SQRT(V a) { return OP(sqrt)(a); }
static inline V ABS(V a) { return (V)((M)a & 0x7fffffff); }
#define SEL(m, a, b) ((m) ? (a) : (b))

// Broadcasts. A loop over lanes would stay one, eight times slower; x - 0 is x, the sign of zero too.
static inline V R(float x) { return x - (V){}; }
static inline M B(int x) { return -x - (M){}; }

// sin and cos for |x| < 2^20: x less the nearest multiple k of pi / 2, which is given in three parts (Cody and Waite),
// then the polynomials of Cephes' sinf and cosf on [-pi / 4, pi / 4]. Twice 0x1.8p23 rounds to the nearest integer.
struct Reduced { V r, s; M k; };  // rest, its square, quarter turns
static inline Reduced REDUCE(V x) {
  const V shifted = FMA(x, R(0x1.45f306p-1f), R(0x1.8p23f)), k = shifted - R(0x1.8p23f);
  V r = FNMA(k, R(0x1.92p0f), x);
  r = FNMA(k, R(0x1.fb4p-12f), r);
  r = FNMA(k, R(0x1.4442d2p-24f), r);
  return {r, r * r, (M)shifted};
}
static inline V SINE(V r, V s) {
  const V p = FMA(s, FMA(s, R(-0x1.9943f2p-13f), R(0x1.11073cp-7f)), R(-0x1.555546p-3f));
  return FMA(r * s, p, r);
}
static inline V COSINE(V s) {
  const V p = FMA(s, FMA(s, R(0x1.99eb9cp-16f), R(-0x1.6c0c34p-10f)), R(0x1.55554ap-5f));
  return FMA(s * s, p, FNMA(R(0.5f), s, R(1.0f)));
}
static inline V TURN(const Reduced& a, M k) {
  const V v = SEL((k & 1) != 0, COSINE(a.s), SINE(a.r, a.s));
  return SEL((k & 2) != 0, -v, v);
}
static inline V SIN(V x) { const Reduced a = REDUCE(x); return TURN(a, a.k); }
static inline V COS(V x) { const Reduced a = REDUCE(x); return TURN(a, a.k + 1); }

// A column of a row-major array, one simulation a lane.
static inline V LOAD(const float* array, const long* row, int columns, int column) {
  V v;
  for (int l = 0; l < W; l++) v[l] = array[row[l] * columns + column];
  return v;
}
static inline void STORE(float* array, const long* row, int live, int columns, int column, V v) {
  for (int l = 0; l < live; l++) array[row[l] * columns + column] = v[l];
}
