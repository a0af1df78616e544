#include "peak/peak.h"
#include "tile/product.h"

namespace longseq::LONGSEQ_ISA {
namespace {

/** Chains that do not wait for each other: more than a multiply-add's latency (4 or 5 cycles) times the units
 * (2), in half or three quarters of the registers. */
constexpr int kChains = kLanes == 16 ? 24 : 12;

template <class Product>
void multiply_and_add(const MultiplyAddLoop& op) {
  const auto element = __builtin_bit_cast(typename Product::Element, op.operand);
  const Vec operand = Product::broadcast(&element);
  Vec chains[kChains];
  for (Vec& chain : chains) chain = operand;
  for (int64_t round = 0; round < op.rounds; round++) {
    // Through the factor, not the summand: a product of constants would be taken out of the loop.
#pragma GCC unroll 24
    for (Vec& chain : chains) chain = Product::multiply_add(chain, operand, operand);
  }
  Vec sum = chains[0];
  for (int i = 1; i < kChains; i++) sum = add(sum, chains[i]);
  *op.sum = sum_of(sum);
  *op.operations = 2.0 * kLanes * Product::kPair * kChains * static_cast<double>(op.rounds);
}

}  // namespace

void run(const MultiplyAddLoop& op) {
#if defined(__AVX512BF16__)
  if (op.dtype == DType::BFloat16) return multiply_and_add<BFloat16Product>(op);
#endif
  multiply_and_add<Float32Product>(op);
}

}  // namespace longseq::LONGSEQ_ISA
