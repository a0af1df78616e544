// Masks for JavaScript: made, combined, read, disposed.
#include <memory>

#include "addon/bind.h"
#include "addon/bindings.h"

namespace longseq {

using MaskBuilderHandle = std::shared_ptr<MaskBuilder>;
template <>
struct HandleType<MaskBuilderHandle> {
  static constexpr const char* name = "a mask builder";
  static constexpr napi_type_tag tag = {0x6c6f6e6773657104, 0x1b5e8a4f0c3d4e04};
};

namespace {

Napi::Value to_handle(Napi::Env env, MaskHandle mask) {
  const int64_t bytes = mask->bytes();
  return wrap(env, std::move(mask), bytes);
}

std::span<uint8_t> bytes_of(const ArrayView& array, const char* function) {
  check(array.type == napi_uint8_array, Code::Kind, "AttentionMask.", function, ": expected a Uint8Array");
  return {static_cast<uint8_t*>(array.data), array.length};
}

Napi::Value mask_causal(Napi::Env env, int64_t queries, int64_t keys) {
  return to_handle(env, Mask::causal(queries, keys));
}

Napi::Value mask_window(Napi::Env env, int64_t queries, int64_t keys, int64_t left, int64_t right) {
  return to_handle(env, Mask::window(queries, keys, left, right));
}

Napi::Value mask_documents(Napi::Env env, std::vector<int64_t> boundaries) {
  return to_handle(env, Mask::documents(boundaries));
}

Napi::Value mask_prefix(Napi::Env env, int64_t tokens, int64_t prefix) {
  return to_handle(env, Mask::prefix(tokens, prefix));
}

Napi::Value mask_dense(Napi::Env env, int64_t queries, int64_t keys, ArrayView values) {
  return to_handle(env, Mask::dense(queries, keys, bytes_of(values, "dense")));
}

Napi::Value mask_builder(Napi::Env env, int64_t queries, int64_t keys) {
  return wrap(env, std::make_shared<MaskBuilder>(queries, keys));
}

double mask_builder_next_rows(MaskBuilderHandle builder) { return static_cast<double>(builder->next_rows()); }

void mask_builder_add(MaskBuilderHandle builder, ArrayView values) { builder->add(bytes_of(values, "from")); }

Napi::Value mask_builder_finish(Napi::Env env, MaskBuilderHandle builder) {
  return to_handle(env, builder->finish());
}

Napi::Value mask_and(Napi::Env env, MaskHandle a, MaskHandle b) { return to_handle(env, a->intersect(*b)); }

Napi::Value mask_or(Napi::Env env, MaskHandle a, MaskHandle b) { return to_handle(env, a->unite(*b)); }

Napi::Value mask_not(Napi::Env env, MaskHandle mask) { return to_handle(env, mask->complement()); }

Napi::Value mask_select(Napi::Env env, MaskHandle mask, std::vector<int64_t> queries,
                        std::vector<int64_t> keys) {
  return to_handle(env, mask->select(queries, keys));
}

Napi::Value mask_info(Napi::Env env, MaskHandle mask) {
  auto out = Napi::Object::New(env);
  out.Set("queries", static_cast<double>(mask->queries()));
  out.Set("keys", static_cast<double>(mask->keys()));
  out.Set("kind", mask->kind() == Mask::Kind::Intervals ? "intervals" : "blocks");
  out.Set("bytes", static_cast<double>(mask->bytes()));
  out.Set("visible", static_cast<double>(mask->visible()));
  return out;
}

void mask_to_dense(MaskHandle mask, ArrayView out) {
  const std::span<uint8_t> values = bytes_of(out, "toDense");
  const int64_t expected = mask->queries() * mask->keys();
  check(static_cast<int64_t>(values.size()) == expected, Code::Shape, "AttentionMask.toDense: the array has ",
        values.size(), " values, expected ", expected);
  mask->to_dense(values.data());
}

void mask_dispose(Napi::Env env, Napi::Value value) {
  if (auto* const handle = handle_of<MaskHandle>(value)) dispose(env, *handle);
}

}  // namespace

void bind_masks(Napi::Object exports) {
  bind<mask_causal>(exports, "maskCausal");
  bind<mask_window>(exports, "maskWindow");
  bind<mask_documents>(exports, "maskDocuments");
  bind<mask_prefix>(exports, "maskPrefix");
  bind<mask_dense>(exports, "maskDense");
  bind<mask_builder>(exports, "maskBuilder");
  bind<mask_builder_next_rows>(exports, "maskBuilderNextRows");
  bind<mask_builder_add>(exports, "maskBuilderAdd");
  bind<mask_builder_finish>(exports, "maskBuilderFinish");
  bind<mask_and>(exports, "maskAnd");
  bind<mask_or>(exports, "maskOr");
  bind<mask_not>(exports, "maskNot");
  bind<mask_select>(exports, "maskSelect");
  bind<mask_info>(exports, "maskInfo");
  bind<mask_to_dense>(exports, "maskToDense");
  bind<mask_dispose>(exports, "maskDispose");
}

}  // namespace longseq
