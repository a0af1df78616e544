#pragma once
// The contract of the activations. A tensor is rows of F elements behind any leading axes; float32, bfloat16
// and float16 are computed in float32.
//
//   gelu(z)   = z Phi(z)                       Phi: the normal distribution's        (none)
//             = z / (1 + exp(-2 u(z)))         u(z) = sqrt(2 / pi) (z + 0.044715 z^3)  (tanh)
//   gelu'(z)  = Phi(z) + z phi(z)              s + z s (1 - s) 2 u'(z), s = 1 / (1 + exp(-2 u))
//   silu(g)   = g s,  silu'(g) = s (1 + g (1 - s)),  s = 1 / (1 + exp(-g))
//
// The backward passes recompute from the inputs: nothing is kept.
#include <optional>

#include "core/cpu.h"
#include "core/tensor.h"

namespace longseq {

enum class GeluForm { Erf, Tanh };

/** y = gelu(x + bias) */
struct GeluForward {
  Tensor x /*[... F]*/, bias /*[F], or none*/;
  GeluForm form;
  Tensor y /*[... F]*/;
};

/** dx = dy gelu'(x + bias), dbias = the sum of dx over the rows, in float32 before it is rounded */
struct GeluBackward {
  Tensor x /*[... F]*/, bias /*[F], or none*/;
  GeluForm form;
  Tensor dy /*[... F]*/, dx /*[... F]*/, dbias /*[F], or none*/;
};

/** y = silu(gate) up */
struct SwigluForward {
  Tensor gate, up, y; /*[... F]*/
};

/** dgate = dy up silu'(gate), dup = dy silu(gate) */
struct SwigluBackward {
  Tensor gate, up, dy, dgate, dup; /*[... F]*/
};

void run(const Cpu&, const GeluForward&);
void run(const Cpu&, const GeluBackward&);
void run(const Cpu&, const SwigluForward&);
void run(const Cpu&, const SwigluBackward&);
void run(const Cuda&, const GeluForward&);
void run(const Cuda&, const GeluBackward&);
void run(const Cuda&, const SwigluForward&);
void run(const Cuda&, const SwigluBackward&);

/** Checks and queues. */
void gelu_forward(Tensor x, std::optional<Tensor> bias, bool tanh, Tensor y);
void gelu_backward(Tensor x, std::optional<Tensor> bias, bool tanh, Tensor dy, Tensor dx,
                   std::optional<Tensor> dbias);
void swiglu_forward(Tensor gate, Tensor up, Tensor y);
void swiglu_backward(Tensor gate, Tensor up, Tensor dy, Tensor dgate, Tensor dup);

}  // namespace longseq
