// Live components as stored units.
#pragma once

#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "common.h"

namespace dmao {

// The stored units (channels, ...: `noun`) of the live components, ascending; live: None for all.
// Behind the ids, `components` fills the list up: so its length need not depend on what lives.
inline std::vector<std::int32_t> live_units(const char* op, const std::optional<Tensor>& live,
                                            std::int64_t components, std::int64_t stored,
                                            const char* noun) {
    check(components > 0 ? stored % components == 0 : components == 0 && stored == 0, op,
          ": components must divide the ", stored, " ", noun, ", got ", components);
    check(stored <= std::numeric_limits<std::int32_t>::max(), op, ": too many ", noun, ": ",
          stored);
    std::vector<std::int32_t> units;
    if (!live.has_value()) {
        units.resize(stored);
        std::iota(units.begin(), units.end(), 0);
        return units;
    }
    const Tensor list = dense_list(op, "live", *live, ScalarType::Int);
    const std::int64_t width = components == 0 ? 0 : stored / components;
    units.reserve(list.numel() * width);
    const std::int32_t* ids = list.const_data_ptr<std::int32_t>();
    std::int64_t last = -1;
    for (std::int64_t i = 0; i < list.numel(); ++i) {
        check(ids[i] >= 0 && ids[i] <= components, op, ": live[", i,
              "] must be a component id in [0, ", components, "), or ", components,
              " behind them, got ", ids[i]);
        check(ids[i] > last || ids[i] == components, op,
              ": live must be strictly increasing, but live[", i, "] = ", ids[i], " follows ",
              last);
        last = ids[i];
        if (ids[i] == components) continue;
        for (std::int64_t j = 0; j < width; ++j) {
            units.push_back(static_cast<std::int32_t>(ids[i] * width + j));
        }
    }
    return units;
}

// The units of a list of that length, filled up or not: a shape that follows from shapes.
inline std::int64_t listed_units(const std::optional<Tensor>& live, std::int64_t components,
                                 std::int64_t stored) {
    if (!live.has_value()) return stored;
    return components == 0 ? 0 : live->numel() * (stored / components);
}

}  // namespace dmao
