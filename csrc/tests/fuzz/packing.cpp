#include "dmao/packing.h"

#include <vector>

#include "fuzz.h"

namespace dmao::fuzzing {

void fuzz(const ParallelFor& parallel, std::int64_t) {
    const std::int64_t utterances = below(5), frames = one_of({0, 1, 2, 17, 130}),
                       width = one_of({1, 3, 16, 100});
    std::vector<std::int32_t> offsets{0};
    for (std::int64_t i = 0; i < utterances; ++i) {
        offsets.push_back(offsets.back() + static_cast<std::int32_t>(below(frames + 1)));
    }
    const std::int64_t padded = utterances * frames * width, packed = offsets.back() * width;
    const auto x = tensor(padded, DType::float32), y = tensor(packed, DType::float32),
               z = tensor(padded, DType::float32);
    const auto bytes = [](const std::unique_ptr<char[]>& values) {
        return reinterpret_cast<std::byte*>(values.get());
    };
    const std::int64_t row = width * static_cast<std::int64_t>(sizeof(float));
    kernels::pack({bytes(x), bytes(y), offsets.data(), utterances, frames, row}, parallel);
    kernels::unpack({bytes(y), bytes(z), offsets.data(), utterances, frames, row}, parallel);
    record(y.get(), packed, DType::float32);
    record(z.get(), padded, DType::float32);
}

}  // namespace dmao::fuzzing
