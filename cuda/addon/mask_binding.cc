// Masks for JavaScript.
#include "addon/bind.h"
#include "addon/bindings.h"

namespace longseq {

void bind_masks(Napi::Object) {}

}  // namespace longseq
