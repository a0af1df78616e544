// The forward kernel of float16.
//
// May spill registers: a few words, where masks or scores are adjusted and not beside the products.
#include "attention/forward_tile_sm80.h"

namespace longseq {

void launch_forward_float16_sm80(const Cuda& cuda, const ForwardSm80& op) {
  launch_forward_elements<sm80::Half>(cuda, op);
}

}  // namespace longseq
