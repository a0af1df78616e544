#pragma once
// From what is known at run time to what a kernel is compiled for.
#include "attention/attention_sm80.h"
#include "core/dtype.h"
#include "tile/sm80.h"

namespace longseq {

/** visit<kHasMask>() */
template <class Visit>
void visit_mask(const GpuMask& mask, const Visit& visit) {
  if (mask.first_run != nullptr) {
    visit.template operator()<true>();
  } else {
    visit.template operator()<false>();
  }
}

/** visit<T, kHasMask>(), of elements of 16 bits. */
template <class Visit>
void visit_kernel(DType dtype, const GpuMask& mask, const Visit& visit) {
  const auto typed = [&]<class T>() {
    visit_mask(mask, [&]<bool kHasMask>() { visit.template operator()<T, kHasMask>(); });
  };
  if (dtype == DType::BFloat16) {
    typed.template operator()<sm80::Bf16>();
  } else {
    typed.template operator()<sm80::Half>();
  }
}

}  // namespace longseq
