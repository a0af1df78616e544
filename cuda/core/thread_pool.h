#pragma once
// The process's one thread pool, shared by every CPU device and by whatever is built on the CPU.
#include <cstdint>
#include <type_traits>
#include <utility>

namespace longseq {

/** A borrowed callable: no allocation, valid while the callee runs. */
template <class Signature>
class FunctionRef;
template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef> && std::is_invocable_v<F&, Args...>)
  FunctionRef(F&& f)  // NOLINT: implicit on purpose, as std::function is
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, Args... args) -> Result {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}
  Result operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  Result (*call_)(void*, Args...);
};

/** How many threads a parallel loop runs on, and why: `LONGSEQ_THREADS`, else the cores this process may use.
 */
struct ThreadCount {
  int threads;
  const char* reason;
};
ThreadCount thread_count();

/**
 * Runs body(task, slot) for each task of [0, count) and returns when all are done. Tasks are taken in
 * ascending order. A slot (below thread_count().threads) is held by one thread at a time, so it can own
 * scratch memory. The first exception of a body ends the loop early and is thrown here. May be called from
 * several threads at once.
 */
void parallel_for(int64_t count, FunctionRef<void(int64_t task, int slot)> body);
void parallel_for(int64_t count, FunctionRef<void(int64_t task)> body);

}  // namespace longseq
