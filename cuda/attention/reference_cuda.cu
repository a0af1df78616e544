// The definition, for a GPU's tensors: computed on the host, from copies.
#include <vector>

#include "attention/attention.h"
#include "core/cuda.h"
#include "elementwise/elementwise.h"

namespace longseq {
namespace {

/** Runs an operation of the CPU on copies of a GPU's tensors, and brings the results back: for the definition
 * alone. */
class OnHost {
 public:
  explicit OnHost(const Cuda& cuda) : cuda_(cuda), device_(Device::open("cpu")) {}

  Tensor input(const Tensor& x) {
    if (!x) return x;
    Tensor host = Tensor::empty(device_, x.dtype, shape_of(x));
    if (host.elements() == 0) return host;
    Tensor packed = x;
    if (!x.contiguous()) {
      packed.storage = std::make_shared<Storage>(x.device(), allocate(cuda_, static_cast<size_t>(x.bytes())));
      packed.offset = 0;
      packed.strides = host.strides;
      run(cuda_, Copy{x, packed});
    }
    cuda_check(cudaMemcpyAsync(host.data<char>(), packed.data<char>(), static_cast<size_t>(host.bytes()),
                               cudaMemcpyDeviceToHost, cuda_.stream.get()),
               "a copy from the GPU");
    cuda_check(cudaStreamSynchronize(cuda_.stream.get()), "a copy from the GPU");
    return host;
  }
  Tensor output(const Tensor& y, bool is_read = false) {
    Tensor host = is_read ? input(y) : Tensor::empty(device_, y.dtype, shape_of(y));
    outputs_.push_back({host, y});
    return host;
  }
  void write_outputs() {
    for (const auto& [host, y] : outputs_) run(cuda_, WriteFrom{host, y});
  }
  Cpu engine() const { return std::get<Cpu>(device_->engine()); }

 private:
  static std::span<const int64_t> shape_of(const Tensor& x) {
    return {x.shape.data(), static_cast<size_t>(x.rank)};
  }
  const Cuda& cuda_;
  std::shared_ptr<Device> device_;
  std::vector<std::pair<Tensor, Tensor>> outputs_;
};

AttentionForward forward_on_host(OnHost& host, const AttentionForward& op, bool has_results) {
  AttentionForward copy = op;
  copy.q = host.input(op.q);
  copy.k = host.input(op.k);
  copy.v = host.input(op.v);
  copy.score.alibi_slopes = host.input(op.score.alibi_slopes);
  copy.out = has_results ? host.input(op.out) : host.output(op.out);
  copy.log_sum_exp = has_results ? host.input(op.log_sum_exp) : host.output(op.log_sum_exp);
  return copy;
}

}  // namespace

void run(const Cuda& cuda, const ReferenceForward& op) {
  OnHost host(cuda);
  run(host.engine(), ReferenceForward{forward_on_host(host, op.op, false)});
  host.write_outputs();
}

void run(const Cuda& cuda, const ReferenceBackward& op) {
  OnHost host(cuda);
  AttentionBackward copy = op.op;
  copy.forward = forward_on_host(host, op.op.forward, true);
  copy.dout = host.input(op.op.dout);
  copy.dlog_sum_exp = host.input(op.op.dlog_sum_exp);
  copy.dq = host.output(op.op.dq, op.op.adds_to_dq);
  copy.dk = host.output(op.op.dk, op.op.adds_to_dk);
  copy.dv = host.output(op.op.dv, op.op.adds_to_dv);
  run(host.engine(), ReferenceBackward{copy});
  host.write_outputs();
}

}  // namespace longseq
