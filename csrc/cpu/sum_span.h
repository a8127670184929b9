// The sum of the terms of a span.
#pragma once

#include <cstdint>

#include "simd.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// The sum of what `term(i)` returns for full vectors and `term(i, count)` for the rest, whose lanes
// beyond count must be zero.
template <class Term>
double sum_span(const Term& term, std::int64_t begin, std::int64_t end) {
    constexpr int w = Vec::width;
    Vec a(0.0f), b(0.0f), c(0.0f), d(0.0f);
    std::int64_t i = begin;
    for (; i + 4 * w <= end; i += 4 * w) {
        a = a + term(i);
        b = b + term(i + w);
        c = c + term(i + 2 * w);
        d = d + term(i + 3 * w);
    }
    for (; i + w <= end; i += w) a = a + term(i);
    if (i < end) b = b + term(i, static_cast<int>(end - i));
    return sum((a + b) + (c + d));
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
