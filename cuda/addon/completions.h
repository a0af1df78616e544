#pragma once
// Promises that a device's queue settles: the queue's thread hands a closure to the JavaScript thread.
#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>

#include "core/device.h"
#include "elementwise/elementwise.h"

namespace longseq {

/** One for each environment (the main thread and each worker has its own). */
class Completions {
 public:
  static void install(Napi::Env env);

  /**
   * A promise that settles once everything queued on `device` so far has run: with what `result` returns, or
   * with the queue's error. While it is open it keeps the event loop alive.
   */
  static Napi::Promise when_done(Napi::Env env, Device& device, std::function<Napi::Value(Napi::Env)> result);

  /** Leave to write into the environment's arrays, which end with it. */
  static std::shared_ptr<Lease> lease(Napi::Env env);

 private:
  struct Channel;
  explicit Completions(Napi::Env env);
  std::shared_ptr<Channel> channel_;
};

}  // namespace longseq
