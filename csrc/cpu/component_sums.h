// Sums of the entries of every component, in one walk over memory in the order in which it lies
// there: walking the columns of each component instead would break the hardware's prefetching.
//
// A Term is called once for every place of a chunk, `term(i)` for a full vector or
// `term(i, count)` for a part of one, and returns the entries there. It may do more on the way, as
// the optimizer step does.
#pragma once

#include "dmao/importance.h"
#include "sum_span.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// float sums are turned into double after so many values, which bounds their rounding error.
constexpr std::int64_t kFloatSpan = 4096;
constexpr std::int64_t kFloatRows = 64;
// Runs shorter than this are summed by columns first (a vector then spans several components).
constexpr std::int64_t kShortRun = 64;

template <class Term>
double sum_run(const Term& term, std::int64_t begin, std::int64_t end) {
    double total = 0.0;
    for (; begin + kFloatSpan < end; begin += kFloatSpan) {
        total += sum_span(term, begin, begin + kFloatSpan);
    }
    return total + sum_span(term, begin, end);
}

template <class Term>
void sum_long_runs(const ImportanceChunk& chunk, const Term& term) {
    const std::int64_t first = chunk.column_begin / chunk.run;
    for (std::int64_t row = chunk.row_begin; row < chunk.row_end; ++row) {
        const std::int64_t base = row * chunk.row_length;
        std::int64_t column = chunk.column_begin;
        for (std::int64_t component = first; column < chunk.column_end; ++component) {
            std::int64_t stop = (component + 1) * chunk.run;
            if (stop > chunk.column_end) stop = chunk.column_end;
            chunk.sums[component - first] += sum_run(term, base + column, base + stop);
            column = stop;
        }
    }
}

// Adds the terms of `count` columns, over rows [row_begin, row_end), to tile[0 .. count).
template <class Term>
void add_columns(const Term& term, std::int64_t row_begin, std::int64_t row_end,
                 std::int64_t row_length, std::int64_t column, std::int64_t count, float* tile) {
    constexpr int w = Vec::width;
    for (std::int64_t row = row_begin; row < row_end; ++row) {
        const std::int64_t base = row * row_length + column;
        std::int64_t j = 0;
        for (; j + w <= count; j += w) store(tile + j, load(tile + j) + term(base + j));
        if (j < count) {
            const int rest = static_cast<int>(count - j);
            store(tile + j, load(tile + j, rest) + term(base + j, rest), rest);
        }
    }
}

template <class Term>
void sum_short_runs(const ImportanceChunk& chunk, const Term& term) {
    float tile[kFloatSpan];
    const std::int64_t first = chunk.column_begin / chunk.run;
    for (std::int64_t row = chunk.row_begin; row < chunk.row_end; row += kFloatRows) {
        const std::int64_t row_end =
            row + kFloatRows < chunk.row_end ? row + kFloatRows : chunk.row_end;
        for (std::int64_t column = chunk.column_begin; column < chunk.column_end;
             column += kFloatSpan) {
            const std::int64_t rest = chunk.column_end - column;
            const std::int64_t count = rest < kFloatSpan ? rest : kFloatSpan;
            for (std::int64_t j = 0; j < count; ++j) tile[j] = 0.0f;
            add_columns(term, row, row_end, chunk.row_length, column, count, tile);
            std::int64_t component = column / chunk.run;
            std::int64_t left = (component + 1) * chunk.run - column;
            for (std::int64_t j = 0; j < count; ++j, --left) {
                if (left == 0) {
                    ++component;
                    left = chunk.run;
                }
                chunk.sums[component - first] += tile[j];
            }
        }
    }
}

template <class Term>
void sum_chunk(const ImportanceChunk& chunk, const Term& term) {
    const std::int64_t components =
        (chunk.column_end - 1) / chunk.run - chunk.column_begin / chunk.run + 1;
    for (std::int64_t i = 0; i < components; ++i) chunk.sums[i] = 0.0;
    if (chunk.run < kShortRun) {
        sum_short_runs(chunk, term);
    } else {
        sum_long_runs(chunk, term);
    }
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
