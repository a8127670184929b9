// The lists of parameters and the groups that an optimizer has, on every device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common.h"

namespace dmao {

using Tensors = std::vector<Tensor>;

// The lists of a call; `updated(i)` tells a parameter that is stepped from one that is only
// scored.
struct ParameterLists {
    const Tensors &weights, &grads, &exp_avgs, &exp_avg_sqs, &steps;

    std::size_t size() const { return weights.size(); }
    bool updated(std::size_t i) const { return steps[i].numel() != 0; }

    void check_lengths(const char* op) const {
        const std::size_t n = size();
        check(grads.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n &&
                  steps.size() == n,
              op, ": got ", n, " params, but ", grads.size(), " grads, ", exp_avgs.size(),
              " exp_avgs, ", exp_avg_sqs.size(), " exp_avg_sqs, ", steps.size(), " steps");
    }
};

// groups [n, 6], the numbers of each (GROUP_COLUMNS of the reference); group_of [count], rows of
// it.
inline void check_groups(const char* op, const Tensor& groups, const Tensor& group_of,
                         std::int64_t count) {
    check_tensor(op, "groups", groups, ScalarType::Double);
    check_tensor(op, "group_of", group_of, ScalarType::Long);
    check(groups.dim() == 2 && groups.size(1) == 6, op, ": groups must be [n, 6]");
    check(group_of.numel() == count, op, ": group_of must have ", count, " elements, got ",
          group_of.numel());
    const std::int64_t* rows = group_of.const_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < count; ++i) {
        check(rows[i] >= 0 && rows[i] < groups.size(0), op, ": group_of[", i, "] names row ",
              rows[i], " of ", groups.size(0), " groups");
    }
}

}  // namespace dmao
