#pragma once
// The activations and their derivatives, from an engine's verbs on its numbers: a vector of the CPU, a float
// of a GPU. Each is one exponential and one or two reciprocals.
//
// The exponent is bounded, so that nothing overflows: where a bound is reached the result is its limit to
// 1e-34. `min` and `max` pass on a NaN in their second argument.

namespace longseq {

#ifdef __CUDACC__
#define LONGSEQ_FORMULA __device__ static __forceinline__
#else
#define LONGSEQ_FORMULA static inline __attribute__((always_inline))
#endif

template <class Verbs>
struct Formulas : Verbs {
  using Number = typename Verbs::Number;
  using Verbs::abs, Verbs::add, Verbs::exp2, Verbs::fma, Verbs::max, Verbs::min, Verbs::mul,
      Verbs::reciprocal, Verbs::set, Verbs::sub, Verbs::where_negative;

  static constexpr float kLog2e = 1.442695041f, kMostExponent = 120;

  /** s = 1 / (1 + 2^exponent) and 1 - s, which is exact where s is near 1. */
  struct Sigmoid {
    Number s, rest;
  };
  LONGSEQ_FORMULA Sigmoid sigmoid(Number exponent) {
    const Number e = exp2(min(set(kMostExponent), exponent));
    const Number s = reciprocal(add(set(1), e));
    return {s, mul(e, s)};
  }

  LONGSEQ_FORMULA Number silu(Number g) {
    g = max(set(-128), g);
    return mul(g, sigmoid(mul(g, set(-kLog2e))).s);
  }
  LONGSEQ_FORMULA Number silu_gradient(Number g) {
    g = min(set(128), max(set(-128), g));
    const Sigmoid sigma = sigmoid(mul(g, set(-kLog2e)));
    return fma(mul(g, sigma.s), sigma.rest, sigma.s);
  }

  struct Tanh {
    /** -2 u(z) / ln 2 */
    LONGSEQ_FORMULA Number exponent(Number z) {
      return mul(z, fma(mul(z, z), set(-0.102943240f), set(-2.302208198f)));
    }
    LONGSEQ_FORMULA Number value(Number z) {
      z = max(set(-16), z);
      return mul(z, sigmoid(exponent(z)).s);
    }
    LONGSEQ_FORMULA Number gradient(Number z) {
      z = min(set(16), max(set(-16), z));
      const Sigmoid sigma = sigmoid(exponent(z));
      const Number slope = fma(mul(z, z), set(0.214064449f), set(1.595769122f));  // 2 u'(z)
      return fma(mul(mul(z, sigma.s), sigma.rest), slope, sigma.s);
    }
  };

  /**
   * The normal distribution's tail, of a = |z|: 1 - Phi(a) = exp(-a^2 / 2) s P(s), s = 1 / (1 + 0.35 a).
   * P is minimax in the relative error, 3e-8 for a to 16.5; in float32 it is 3e-7. So gelu(z) is as exact
   * relative to itself far below 0, where 1 + erf would cancel.
   */
  struct Erf {
    struct Tail {
      Number a, power, tail;
    };
    LONGSEQ_FORMULA Tail tail(Number z) {
      const Number a = min(set(16), abs(z));
      const Number s = reciprocal(fma(a, set(0.35f), set(1)));
      Number p = fma(s, set(-0.0291653052f), set(0.144067660f));
      p = fma(p, s, set(-0.255916327f));
      p = fma(p, s, set(0.159409851f));
      p = fma(p, s, set(-0.0232758131f));
      p = fma(p, s, set(0.105580017f));
      p = fma(p, s, set(0.119814134f));
      p = fma(p, s, set(0.139864534f));
      p = fma(p, s, set(0.139621243f));
      const Number power = exp2(mul(mul(a, a), set(-0.5f * kLog2e)));
      return {a, power, mul(mul(p, s), power)};
    }
    LONGSEQ_FORMULA Number value(Number z) {
      const Tail t = tail(z);
      return sub(max(set(0), z), mul(t.a, t.tail));
    }
    LONGSEQ_FORMULA Number gradient(Number z) {
      const Tail t = tail(z);
      const Number below = fma(mul(t.a, t.power), set(-0.398942280f), t.tail);  // gelu'(-a)
      return where_negative(z, below, sub(set(1), below));
    }
  };
};

}  // namespace longseq
