// Operations for JavaScript: arguments converted here, checked in the operation's own file.
#include "activation/activation.h"
#include "addon/bind.h"
#include "addon/bindings.h"
#include "attention/attention_api.h"
#include "elementwise/elementwise.h"
#include "embedding/embedding.h"
#include "loss/loss.h"
#include "matmul/matmul.h"
#include "norm/norm.h"
#include "optimizer/optimizer.h"
#include "peak/peak.h"
#include "rope/rope.h"
#include "softmax/softmax.h"

namespace longseq {

/** The tuple that lib/ops/attention-options.ts makes: by index, since looking properties up by name costs 2
 * us. */
template <>
struct From<AttentionOptions> {
  static AttentionOptions of(Napi::Value value, size_t index) {
    check_kind(value.IsArray(), index, "the options of attention");
    const auto tuple = value.As<Napi::Array>();
    uint32_t next = 0;
    const auto read = [&]<class T>(T& field) { field = From<T>::of(tuple[next++], index); };
    AttentionOptions options;
    read(options.scale);
    read(options.softcap);
    read(options.alibi_slopes);
    read(options.implementation);
    read(options.deterministic);
    read(options.causal);
    read(options.window_left);
    read(options.window_right);
    read(options.documents);
    read(options.documents_keys);
    read(options.query_positions);
    read(options.key_positions);
    read(options.mask);
    return options;
  }
};

template <>
struct From<std::vector<double>> {
  static std::vector<double> of(Napi::Value value, size_t index) {
    const ArrayView view = From<ArrayView>::of(value, index);
    check_kind(view.type == napi_float64_array, index, "a Float64Array");
    const std::span<const double> values(static_cast<double*>(view.data), view.length);
    return {values.begin(), values.end()};
  }
};

namespace {

double columns_of_query_sums(int64_t head_dim) { return static_cast<double>(query_sum_columns(head_dim)); }

void query_gradient_dispose(Napi::Env env, Napi::Value value) {
  if (auto* const handle = handle_of<QueryGradientHandle>(value)) dispose(env, *handle);
}

}  // namespace

void bind_operations(Napi::Object exports) {
  bind<copy>(exports, "copy");
  bind<add>(exports, "add");
  bind<sum>(exports, "sum");
  bind<scale>(exports, "scale");
  bind<fill>(exports, "fill");
  bind<fill_normal>(exports, "fillNormal");
  bind<attention_forward>(exports, "attentionForward");
  bind<attention_kernels>(exports, "attentionKernels");
  bind<attention_forward_merged>(exports, "attentionForwardMerged");
  bind<takes_parts>(exports, "attentionTakesParts");
  bind<columns_of_query_sums>(exports, "querySumColumns");
  bind<attention_forward_of_parts>(exports, "attentionForwardOfParts");
  bind<query_sums_begin>(exports, "querySumsBegin");
  bind<attention_backward_of_parts>(exports, "attentionBackwardOfParts");
  bind<query_sums_finish>(exports, "querySumsFinish");
  bind<attention_backward>(exports, "attentionBackward");
  bind<attention_merge>(exports, "attentionMerge");
  bind<query_gradient_begin>(exports, "queryGradientBegin");
  bind<query_gradient_add>(exports, "queryGradientAdd");
  bind<query_gradient_finish>(exports, "queryGradientFinish");
  bind<query_gradient_dispose>(exports, "queryGradientDispose");
  bind<matmul>(exports, "matmul");
  bind<linear>(exports, "linear");
  bind<linear_backward>(exports, "linearBackward");
  bind<column_sum>(exports, "columnSum");
  bind<norm_forward>(exports, "normForward");
  bind<norm_backward>(exports, "normBackward");
  bind<embedding>(exports, "embedding");
  bind<embedding_backward>(exports, "embeddingBackward");
  bind<softmax_forward>(exports, "softmaxForward");
  bind<softmax_backward>(exports, "softmaxBackward");
  bind<cross_entropy_forward>(exports, "crossEntropyForward");
  bind<cross_entropy_backward>(exports, "crossEntropyBackward");
  bind<gelu_forward>(exports, "geluForward");
  bind<gelu_backward>(exports, "geluBackward");
  bind<swiglu_forward>(exports, "swigluForward");
  bind<swiglu_backward>(exports, "swigluBackward");
  bind<rope>(exports, "rope");
  bind<adamw>(exports, "adamW");
  bind<global_norm>(exports, "globalNorm");
  bind<measure_peak>(exports, "measurePeak");
}

}  // namespace longseq
