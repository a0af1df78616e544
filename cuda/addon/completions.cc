#include "addon/completions.h"

#include "addon/bind.h"

namespace longseq {

using Closure = std::function<void(Napi::Env)>;

/**
 * Shared with the queues' threads, which may outlive the environment: after `close` they find it closed,
 * under the mutex, instead of calling into an environment that is gone.
 */
struct Completions::Channel {
  std::mutex mutex;
  bool closed = false;
  napi_threadsafe_function function = nullptr;
  int64_t open = 0;  // promises not yet settled; JavaScript thread only
  const std::shared_ptr<Lease> lease = std::make_shared<Lease>();

  void post(std::unique_ptr<Closure> closure) {
    std::lock_guard lock(mutex);
    if (closed) return;
    if (napi_call_threadsafe_function(function, closure.get(), napi_tsfn_nonblocking) == napi_ok)
      closure.release();
  }
  void close() {
    {
      std::lock_guard lock(lease->mutex);
      lease->revoked = true;
    }
    std::lock_guard lock(mutex);
    closed = true;
    napi_release_threadsafe_function(function, napi_tsfn_abort);
  }
};

Completions::Completions(Napi::Env env) : channel_(std::make_shared<Channel>()) {
  const auto call = [](napi_env env, napi_value, void*, void* data) {
    const std::unique_ptr<Closure> closure(static_cast<Closure*>(data));
    if (env == nullptr) return;  // the environment is being torn down
    try {
      (*closure)(env);
    } catch (...) {
      // A worker that is being terminated settles no promises.
    }
  };
  napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "longseq"), 0, 1, nullptr,
                                  nullptr, nullptr, call, &channel_->function);
  napi_unref_threadsafe_function(env, channel_->function);
}

void Completions::install(Napi::Env env) {
  auto* const completions = new Completions(env);
  env.SetInstanceData(completions);
  // Runs before the clean-up of the thread-safe function and of the arrays, which was registered earlier.
  env.AddCleanupHook([channel = completions->channel_] { channel->close(); });
}

Napi::Promise Completions::when_done(Napi::Env env, Device& device,
                                     std::function<Napi::Value(Napi::Env)> result) {
  const std::shared_ptr<Channel> channel = env.GetInstanceData<Completions>()->channel_;
  const auto deferred = Napi::Promise::Deferred::New(env);
  if (channel->open++ == 0) napi_ref_threadsafe_function(env, channel->function);
  device.when_done([channel, deferred, result = std::move(result)](std::exception_ptr error) {
    channel->post(std::make_unique<Closure>([channel, deferred, result, error](Napi::Env env) {
      const Napi::HandleScope scope(env);
      if (--channel->open == 0) napi_unref_threadsafe_function(env, channel->function);
      Napi::Value value;
      std::exception_ptr failure = error;
      try {
        value = result(env);  // after a failure too: it lets go of what it holds
      } catch (const Napi::Error&) {
        throw;
      } catch (...) {
        if (!failure) failure = std::current_exception();
      }
      if (failure) {
        deferred.Reject(to_js(env, failure).Value());
      } else {
        deferred.Resolve(value);
      }
    }));
  });
  return deferred.Promise();
}

std::shared_ptr<Lease> Completions::lease(Napi::Env env) {
  return env.GetInstanceData<Completions>()->channel_->lease;
}

}  // namespace longseq
