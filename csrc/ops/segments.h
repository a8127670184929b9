// What scoring operations share on every device: which components a tensor has, and metrics.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common.h"
#include "dmao/importance.h"

namespace dmao {

struct Segment {
    std::int64_t tensor, repeats, components, run, first;
};

inline Metric parse_metric(const char* op, const std::string& name) {
    if (name == "taylor") return Metric::taylor;
    if (name == "gradient") return Metric::gradient;
    if (name == "magnitude") return Metric::magnitude;
    check(name == "signed", op, ": metric must be taylor, gradient, magnitude or signed, got '",
          name, "'");
    return Metric::signed_taylor;
}

// What is asked of one segment: that it lies inside its tensors and inside ema. Products that
// overflow fail the first test, because each factor is bounded by numel before it is multiplied.
inline void check_segment(const char* op, std::int64_t row, const Segment& s,
                          const std::vector<Tensor>& weights, std::int64_t components) {
    const std::int64_t tensors = static_cast<std::int64_t>(weights.size());
    check(s.tensor >= 0 && s.tensor < tensors, op, ": segments[", row, "] names tensor ", s.tensor,
          " of ", tensors);
    check(s.repeats >= 0 && s.components >= 0 && s.run >= 0, op, ": segments[", row,
          "] has a negative repeats, components or run");
    const std::int64_t numel = weights[s.tensor].numel();
    const bool empty = s.repeats == 0 || s.components == 0 || s.run == 0;
    const bool fits = empty ? numel == 0
                            : s.repeats <= numel && s.components <= numel / s.repeats &&
                                  s.run == numel / s.repeats / s.components &&
                                  s.repeats * s.components * s.run == numel;
    check(fits, op, ": segments[", row, "] is ", s.repeats, " x ", s.components, " x ", s.run,
          ", but weights[", s.tensor, "] has ", numel, " elements");
    check(s.first >= 0 && s.first <= components && s.components <= components - s.first, op,
          ": segments[", row, "] holds components ", s.first, " to ", s.first + s.components - 1,
          ", but ema has ", components);
}

// The rows of `segments`, each checked against the tensors that are scored and the number of
// components that are averaged.
inline std::vector<Segment> read_segments(const char* op, const Tensor& segments,
                                          const std::vector<Tensor>& weights,
                                          std::int64_t components) {
    check_tensor(op, "segments", segments, ScalarType::Long);
    check(segments.dim() == 2 && segments.size(1) == 5, op, ": segments must be [n, 5]");
    std::vector<Segment> found;
    const std::int64_t* rows = segments.const_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < segments.size(0); ++i, rows += 5) {
        found.push_back({rows[0], rows[1], rows[2], rows[3], rows[4]});
        check_segment(op, i, found.back(), weights, components);
    }
    return found;
}

// Which of the tensors are scored. No two segments may name one of them.
inline std::vector<bool> scored_once(const char* op, const std::vector<Segment>& segments,
                                     std::size_t tensors) {
    std::vector<bool> named(tensors, false);
    for (const Segment& s : segments) {
        check(!named[s.tensor], op, ": segments name tensor ", s.tensor, " twice");
        named[s.tensor] = true;
    }
    return named;
}

}  // namespace dmao
