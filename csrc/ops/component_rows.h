// The index of gather_components, which is read on the host, whatever the device of the tensors.
#pragma once

#include <cstdint>
#include <string>

#include "common.h"

namespace dmao {

// Asks of the i-th tensors that their shapes fit, and that all components that rows name are there.
inline void check_component_rows(const char* op, std::size_t i, const Tensor& x, const Tensor& rows,
                                 const Tensor& given) {
    const std::string number = "[" + std::to_string(i) + "]";
    check(x.dim() == 3, op, ": tensors", number, " must be [repeats, components, run]");
    check_tensor(op, "index" + number, rows, ScalarType::Long);
    check(rows.dim() == 2 && rows.size(1) == 2, op, ": index", number, " must be [n, 2]");
    check(given.dim() == 3 && given.size(0) == x.size(0) && given.size(2) == x.size(2), op,
          ": given", number, " must be [repeats, n, run] as tensors", number);
    const std::int64_t components = x.size(1), given_components = given.size(1);
    const std::int64_t* row = rows.const_data_ptr<std::int64_t>();
    for (std::int64_t j = 0; j < rows.size(0); ++j, row += 2) {
        check(row[0] >= -1 && row[0] < components && row[1] >= -1 && row[1] < given_components, op,
              ": index", number, "[", j, "] is (", row[0], ", ", row[1], "), but there are ",
              components, " components and ", given_components, " given ones");
    }
}

}  // namespace dmao
