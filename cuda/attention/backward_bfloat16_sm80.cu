// The backward kernel of bfloat16.
//
// May spill registers: a few words of where a warp is among the tiles, read once a tile.
#include "attention/backward_tile_sm80.h"

namespace longseq {

void launch_backward_bfloat16_sm80(const Cuda& cuda, const BackwardSm80& op) {
  launch_backward_elements<sm80::Bf16>(cuda, op);
}

}  // namespace longseq
