// The backward kernel of float16.
//
// May spill registers: a few words of where a warp is among the tiles, read once a tile.
#include "attention/backward_tile_sm80.h"

namespace longseq {

void launch_backward_float16_sm80(const Cuda& cuda, const BackwardSm80& op) {
  launch_backward_elements<sm80::Half>(cuda, op);
}

}  // namespace longseq
