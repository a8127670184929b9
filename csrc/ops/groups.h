// The groups of parameters that an optimizer has, on every device.
#pragma once

#include <cstdint>

#include "common.h"

namespace dmao {

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
