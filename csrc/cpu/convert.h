// Copies between tensors of float and bfloat16 and buffers of float.
#pragma once

#include "simd.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

template <class From, class To>
void convert(const From* source, std::int64_t count, To* target) {
    std::int64_t i = 0;
    for (; i + Vec::width <= count; i += Vec::width) store(target + i, load(source + i));
    const int rest = static_cast<int>(count - i);
    if (rest > 0) store(target + i, load(source + i, rest), rest);
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
