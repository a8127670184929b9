// dmao::pack and dmao::unpack on the CPU key: checks, allocation.
#include "dmao/packing.h"

#include <vector>

#include "common.h"

namespace dmao {
namespace {

// offsets must ascend from 0 to `rows`, by at most `frames`.
const std::int32_t* read_offsets(const char* op, const Tensor& offsets, std::int64_t rows,
                                 std::int64_t frames) {
    check_tensor(op, "offsets", offsets, ScalarType::Int);
    check(offsets.dim() == 1 && offsets.size(0) >= 1, op, ": offsets must be [B + 1]");
    const std::int64_t utterances = offsets.size(0) - 1;
    const std::int32_t* values = offsets.const_data_ptr<std::int32_t>();
    check(values[0] == 0, op, ": offsets must begin with 0, got ", values[0]);
    for (std::int64_t i = 0; i < utterances; ++i) {
        const std::int64_t length = static_cast<std::int64_t>(values[i + 1]) - values[i];
        check(length >= 0 && length <= frames, op, ": utterance ", i, " must have 0 to ", frames,
              " frames, got ", length);
    }
    check(values[utterances] == rows, op, ": offsets must end with the ", rows,
          " packed rows, got ", values[utterances]);
    return values;
}

// The bytes of a row: of all axes from `first` on.
std::int64_t row_bytes(const Tensor& tensor, std::int64_t first) {
    std::int64_t bytes = static_cast<std::int64_t>(tensor.element_size());
    for (std::int64_t i = first; i < tensor.dim(); ++i) bytes *= tensor.size(i);
    return bytes;
}

// `lead`, then the sizes of the axes from `first` on.
std::vector<std::int64_t> sizes(std::vector<std::int64_t> lead, const Tensor& tensor,
                                std::int64_t first) {
    for (std::int64_t i = first; i < tensor.dim(); ++i) lead.push_back(tensor.size(i));
    return lead;
}

Tensor pack(const Tensor& x, const Tensor& offsets, std::int64_t rows) {
    check(x.is_cpu() && x.dim() >= 2, "pack: x must be a CPU tensor [B, T, ...]");
    const Tensor ends = torch::stable::contiguous(offsets);
    const std::int32_t* values = read_offsets("pack", ends, rows, x.size(1));
    check(offsets.size(0) == x.size(0) + 1, "pack: offsets must have ", x.size(0) + 1,
          " elements, got ", offsets.size(0));
    const Tensor padded = torch::stable::contiguous(x);
    Tensor packed = torch::stable::new_empty(padded, sizes({rows}, x, 2));
    if (packed.numel() == 0) return packed;
    DMAO_CPU_KERNEL(pack)
    ({static_cast<const std::byte*>(padded.const_data_ptr()),
      static_cast<std::byte*>(packed.mutable_data_ptr()), values, x.size(0), x.size(1),
      row_bytes(x, 2)},
     torch_parallel());
    return packed;
}

Tensor unpack(const Tensor& packed, const Tensor& offsets, std::int64_t frames) {
    check(packed.is_cpu() && packed.dim() >= 1, "unpack: packed must be a CPU tensor [N, ...]");
    const Tensor ends = torch::stable::contiguous(offsets);
    const std::int32_t* values = read_offsets("unpack", ends, packed.size(0), frames);
    const std::int64_t utterances = offsets.size(0) - 1;
    const Tensor source = torch::stable::contiguous(packed);
    Tensor padded = torch::stable::new_empty(source, sizes({utterances, frames}, packed, 1));
    if (padded.numel() == 0) return padded;
    DMAO_CPU_KERNEL(unpack)
    ({static_cast<const std::byte*>(source.const_data_ptr()),
      static_cast<std::byte*>(padded.mutable_data_ptr()), values, utterances, frames,
      row_bytes(packed, 1)},
     torch_parallel());
    return padded;
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) {
    m.impl("pack", TORCH_BOX(&dmao::pack));
    m.impl("unpack", TORCH_BOX(&dmao::unpack));
}
