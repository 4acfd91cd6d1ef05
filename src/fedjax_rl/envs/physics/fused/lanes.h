// Vectors of W float32 lanes: W = 16 with AVX-512, 8 with AVX2, and 1 where a thread has a simulation to itself, as on a
// GPU. Every operation is one IEEE-754 operation a lane, so that a lane's bits do not depend on W, the compiler or the
// processor.
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define FN static __device__ inline
#else
#define FN static inline
#endif

#if W == 1
typedef float V;
typedef int32_t M;  // a mask: 0 or 1
FN bool ANY(M m) { return m; }
#define NOT(m) (!(m))
FN V FMA(V a, V b, V c) { return __builtin_fmaf(a, b, c); }    // a b + c
FN V FMS(V a, V b, V c) { return __builtin_fmaf(a, b, -c); }   // a b - c
FN V FNMA(V a, V b, V c) { return __builtin_fmaf(-a, b, c); }  // c - a b
FN V MIN(V a, V b) { return a < b ? a : b; }                   // b where either is not a number
FN V MAX(V a, V b) { return a > b ? a : b; }
FN V SQRT(V a) { return __builtin_sqrtf(a); }
FN V ABS(V a) { return __builtin_fabsf(a); }
FN V R(float x) { return x; }
FN M B(int x) { return x; }
#else
#include <immintrin.h>
typedef float V __attribute__((vector_size(W * 4)));
typedef int32_t M __attribute__((vector_size(W * 4)));  // a mask: -1 or 0 a lane
#define NOT(m) (~(m))

// The intrinsics of one register. Written out, and not as a * b + c, because compilers fuse as they like.
#if W == 16
#define OP(name) _mm512_##name##_ps
FN bool ANY(M m) { return _mm512_cmplt_epi32_mask((__m512i)m, _mm512_setzero_si512()); }
#else
#define OP(name) _mm256_##name##_ps
FN bool ANY(M m) { return _mm256_movemask_ps((__m256)m); }
#endif

FN V FMA(V a, V b, V c) { return OP(fmadd)(a, b, c); }
FN V FMS(V a, V b, V c) { return OP(fmsub)(a, b, c); }
FN V FNMA(V a, V b, V c) { return OP(fnmadd)(a, b, c); }
FN V MIN(V a, V b) { return OP(min)(a, b); }
FN V MAX(V a, V b) { return OP(max)(a, b); }
FN V SQRT(V a) { return OP(sqrt)(a); }
FN V ABS(V a) { return (V)((M)a & 0x7fffffff); }

// Broadcasts. A loop over lanes would stay one, eight times slower; x - 0 is x, the sign of zero too.
FN V R(float x) { return x - (V){}; }
FN M B(int x) { return -x - (M){}; }
#endif
#define SEL(m, a, b) ((m) ? (a) : (b))

// sin and cos for |x| < 2^20: x less the nearest multiple k of pi / 2, which is given in three parts (Cody and Waite),
// then the polynomials of Cephes' sinf and cosf on [-pi / 4, pi / 4]. Twice 0x1.8p23 rounds to the nearest integer.
struct Reduced { V r, s; M k; };  // rest, its square, quarter turns
FN Reduced REDUCE(V x) {
  const V shifted = FMA(x, R(0x1.45f306p-1f), R(0x1.8p23f)), k = shifted - R(0x1.8p23f);
  V r = FNMA(k, R(0x1.92p0f), x);
  r = FNMA(k, R(0x1.fb4p-12f), r);
  r = FNMA(k, R(0x1.4442d2p-24f), r);
  M turns;
  memcpy(&turns, &shifted, sizeof turns);
  return {r, r * r, turns};
}
FN V SINE(V r, V s) {
  const V p = FMA(s, FMA(s, R(-0x1.9943f2p-13f), R(0x1.11073cp-7f)), R(-0x1.555546p-3f));
  return FMA(r * s, p, r);
}
FN V COSINE(V s) {
  const V p = FMA(s, FMA(s, R(0x1.99eb9cp-16f), R(-0x1.6c0c34p-10f)), R(0x1.55554ap-5f));
  return FMA(s * s, p, FNMA(R(0.5f), s, R(1.0f)));
}
FN V TURN(const Reduced& a, M k) {
  const V v = SEL((k & 1) != 0, COSINE(a.s), SINE(a.r, a.s));
  return SEL((k & 2) != 0, -v, v);
}
FN V SIN(V x) { const Reduced a = REDUCE(x); return TURN(a, a.k); }
FN V COS(V x) { const Reduced a = REDUCE(x); return TURN(a, a.k + 1); }

// A column of a row-major array, one simulation a lane.
#if W == 1
#define LANE(v, l) v
#else
#define LANE(v, l) v[l]
#endif
FN V LOAD(const float* array, const long* row, int columns, int column) {
  V v;
  for (int l = 0; l < W; l++) LANE(v, l) = array[row[l] * columns + column];
  return v;
}
FN void STORE(float* array, const long* row, int live, int columns, int column, V v) {
  for (int l = 0; l < live; l++) array[row[l] * columns + column] = LANE(v, l);
}
