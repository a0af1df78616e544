#pragma once
// Each part's rows of the export table.
#include <napi.h>

namespace longseq {
void bind_tensors(Napi::Object exports);
void bind_masks(Napi::Object exports);
void bind_communicators(Napi::Object exports);
void bind_operations(Napi::Object exports);
}  // namespace longseq
