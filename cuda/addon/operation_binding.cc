// Operations for JavaScript: arguments converted here, checked in the operation's own file.
#include "addon/bind.h"
#include "addon/bindings.h"
#include "attention/attention_api.h"
#include "elementwise/elementwise.h"

namespace longseq {

/** The options object that lib/ops/attention.ts makes: every field is there, null where there is nothing. */
template <>
struct From<AttentionOptions> {
  static AttentionOptions of(Napi::Value value, size_t index) {
    check_kind(value.IsObject(), index, "the options of attention");
    const auto object = value.As<Napi::Object>();
    const auto field = [&]<class T>(const char* name, T*) { return From<T>::of(object.Get(name), index); };
    using Integers = std::optional<std::vector<int64_t>>;
    return {.scale = field("scale", static_cast<double*>(nullptr)),
            .softcap = field("softcap", static_cast<double*>(nullptr)),
            .alibi_slopes = field("alibiSlopes", static_cast<std::optional<Tensor>*>(nullptr)),
            .causal = field("causal", static_cast<bool*>(nullptr)),
            .window_left = field("windowLeft", static_cast<int64_t*>(nullptr)),
            .window_right = field("windowRight", static_cast<int64_t*>(nullptr)),
            .documents = field("cuSeqlens", static_cast<Integers*>(nullptr)),
            .documents_keys = field("cuSeqlensKeys", static_cast<Integers*>(nullptr)),
            .query_positions = field("queryPositions", static_cast<Integers*>(nullptr)),
            .key_positions = field("keyPositions", static_cast<Integers*>(nullptr)),
            .mask = field("mask", static_cast<std::optional<MaskHandle>*>(nullptr)),
            .implementation = field("implementation", static_cast<std::string*>(nullptr))};
  }
};

template <>
struct From<std::vector<Tensor>> {
  static std::vector<Tensor> of(Napi::Value value, size_t index) {
    check_kind(value.IsArray(), index, "an array of tensors");
    const auto array = value.As<Napi::Array>();
    std::vector<Tensor> out;
    for (uint32_t i = 0; i < array.Length(); i++) out.push_back(From<Tensor>::of(array[i], index));
    return out;
  }
};

void bind_operations(Napi::Object exports) {
  bind<copy>(exports, "copy");
  bind<add>(exports, "add");
  bind<fill>(exports, "fill");
  bind<fill_normal>(exports, "fillNormal");
  bind<attention_forward>(exports, "attentionForward");
  bind<attention_backward>(exports, "attentionBackward");
  bind<attention_merge>(exports, "attentionMerge");
}

}  // namespace longseq
