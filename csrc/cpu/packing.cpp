// Copies between padded and packed rows.
//
// Floor: one read of the packed rows and one write of the result at memory bandwidth. What is
// contiguous on both sides, up to an utterance, is one memcpy.
#include "dmao/packing.h"

#include <cstring>

#include "dmao/integers.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kGrainBytes = 1 << 16;  // below which a thread does not pay

std::int64_t grain(const Packing& p) { return divide_up(kGrainBytes, p.row_bytes); }

// The utterance that packed row `row` belongs to.
std::int64_t utterance_of(const Packing& p, std::int64_t row) {
    std::int64_t low = 0, high = p.utterances;  // offsets[low] <= row < offsets[high]
    while (high - low > 1) {
        const std::int64_t middle = (low + high) / 2;
        (p.offsets[middle] <= row ? low : high) = middle;
    }
    return low;
}

}  // namespace

void pack(const Packing& p, const ParallelFor& parallel) {
    parallel(p.offsets[p.utterances], grain(p), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t u = utterance_of(p, begin); begin < end; ++u) {
            const std::int64_t stop = smaller(end, p.offsets[u + 1]);
            const std::int64_t padded = u * p.frames + begin - p.offsets[u];
            std::memcpy(p.target + begin * p.row_bytes, p.source + padded * p.row_bytes,
                        (stop - begin) * p.row_bytes);
            begin = stop;
        }
    });
}

void unpack(const Packing& p, const ParallelFor& parallel) {
    parallel(p.utterances * p.frames, grain(p), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t u = begin / p.frames; begin < end; ++u) {
            const std::int64_t stop = smaller(end, (u + 1) * p.frames);
            const std::int64_t packed = p.offsets[u] + begin - u * p.frames;
            const std::int64_t rest = smaller(stop - begin, p.offsets[u + 1] - packed);
            const std::int64_t copied = rest > 0 ? rest : 0;
            std::byte* target = p.target + begin * p.row_bytes;
            if (copied > 0) {
                std::memcpy(target, p.source + packed * p.row_bytes, copied * p.row_bytes);
            }
            std::memset(target + copied * p.row_bytes, 0, (stop - begin - copied) * p.row_bytes);
            begin = stop;
        }
    });
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
