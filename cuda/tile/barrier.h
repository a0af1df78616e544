#pragma once
// Barriers in shared memory (mbarrier) that threads and copies arrive at, and others wait for.
#include <cstdint>

namespace longseq::sm80 {

/** A barrier in shared memory, by its address there. */
class Barrier {
 public:
  __device__ explicit Barrier(uint32_t address) : address_(address) {}
  __device__ void init(int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_), "r"(arrivals) : "memory");
  }
  /** Before it is initialised again, or its memory serves otherwise. */
  __device__ void invalidate() const {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(address_) : "memory");
  }
  __device__ void arrive() const {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(address_)
                 : "memory");
  }
  /** Arrives when all that this thread copies by copy_async has arrived. */
  __device__ void arrive_behind_copies() const {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(address_) : "memory");
  }
  /** Arrives, and the barrier waits for so many bytes besides. On compute capability 9.0. */
  __device__ void arrive_expecting(int bytes) const {
    asm volatile(
        "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(address_),
        "r"(bytes)
        : "memory");
  }
  /** Until the phase of this parity is over; phases have the parities 0, 1, 0, ... On compute capability 9.0.
   */
  __device__ void wait(uint32_t parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}" ::"r"(address_),
        "r"(parity)
        : "memory");
  }
  /** The same by asking again and again, which takes fewer registers. */
  __device__ void poll(uint32_t parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.test_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(address_),
        "r"(parity)
        : "memory");
  }
  /** Whether it is over. */
  __device__ bool is_over(uint32_t parity) const {
    uint32_t done;
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(address_), "r"(parity)
        : "memory");
    return done != 0;
  }
  __device__ uint32_t address() const { return address_; }

 private:
  uint32_t address_;
};

/** Barriers one behind the other in shared memory; a kernel gives them names. */
class Barriers {
 public:
  __device__ explicit Barriers(uint32_t address) : address_(address) {}

 protected:
  __device__ Barrier at(int first, int stage = 0) const { return Barrier(address_ + 8 * stage + 8 * first); }

 private:
  uint32_t address_;
};

/** The place in a ring of stages, and how often it went round. */
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace longseq::sm80
