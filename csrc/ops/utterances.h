// Where the utterances of a batch lie: rows of a packed tensor, or of a padded one taken as rows.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common.h"
#include "dmao/types.h"

namespace dmao {

// x is [N, width] with offsets [B + 1], or [B, T, width] with lengths [B] or none (all T rows).
inline std::vector<Utterance> utterances_of(const char* op, const Tensor& x,
                                            const std::optional<Tensor>& lengths,
                                            const std::optional<Tensor>& offsets) {
    std::vector<Utterance> utterances;
    if (offsets.has_value()) {
        check(x.dim() == 2, op, ": x must be [N, width] with offsets, got ", x.dim(),
              " dimensions");
        check(!lengths.has_value(), op, ": there are either lengths or offsets");
        const Tensor list = dense_list(op, "offsets", *offsets, ScalarType::Int);
        const std::int64_t count = list.numel() - 1;
        check(count >= 0, op, ": offsets must be [B + 1]");
        const std::int32_t* bounds = list.const_data_ptr<std::int32_t>();
        check(bounds[0] == 0 && bounds[count] == x.size(0), op, ": offsets must go from 0 to the ",
              x.size(0), " rows of x, got ", bounds[0], " and ", bounds[count]);
        for (std::int64_t i = 0; i < count; ++i) {
            check(bounds[i] <= bounds[i + 1], op, ": offsets must not decrease, but offsets[",
                  i + 1, "] = ", bounds[i + 1], " follows ", bounds[i]);
            utterances.push_back({bounds[i], bounds[i + 1] - bounds[i]});
        }
        return utterances;
    }
    check(x.dim() == 3, op, ": x must be [B, T, width] without offsets, got ", x.dim(),
          " dimensions");
    const std::int64_t count = x.size(0), frames = x.size(1);
    std::optional<Tensor> list;
    if (lengths.has_value()) {
        list = dense_list(op, "lengths", *lengths, ScalarType::Int);
        check(list->size(0) == count, op, ": lengths must be [", count, "]");
    }
    const std::int32_t* sizes = list ? list->const_data_ptr<std::int32_t>() : nullptr;
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t length = sizes == nullptr ? frames : sizes[i];
        check(length >= 0 && length <= frames, op, ": lengths[", i, "] must be in [0, ", frames,
              "], got ", length);
        utterances.push_back({i * frames, length});
    }
    return utterances;
}

}  // namespace dmao
