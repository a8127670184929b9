#include "dmao/gather_components.h"

#include <vector>

#include "fuzz.h"

namespace dmao::fuzzing {

void fuzz(const ParallelFor& parallel, std::int64_t workers) {
    GatherTensor t{};
    t.dtype = some_dtype();
    const std::int64_t repeats = one_of({0, 1, 2, 9});
    t.components = below(5);
    t.given_components = below(4);
    t.count = below(8);
    t.run = one_of({0, 1, 3, 16, 100});
    std::vector<std::int64_t> index;
    for (std::int64_t i = 0; i < t.count; ++i) {
        index.push_back(below(t.components + 1) - 1);
        index.push_back(below(t.given_components + 1) - 1);
    }
    index.shrink_to_fit();
    const std::int64_t count = repeats * t.count * t.run;
    const auto x = tensor(repeats * t.components * t.run, t.dtype),
               given = tensor(repeats * t.given_components * t.run, t.dtype),
               out = tensor(count, t.dtype);
    t.x = x.get();
    t.given = given.get();
    t.out = out.get();
    t.index = index.data();
    // Its elements in chunks that end anywhere.
    std::vector<GatherChunk> chunks;
    for (std::int64_t begin = 0; begin < count;) {
        const std::int64_t end = begin + 1 + below(count - begin);
        chunks.push_back({0, begin, end});
        begin = end;
    }
    const GatherProblem problem{&t, chunks.data(), static_cast<std::int64_t>(chunks.size()),
                                workers};
    kernels::gather_components(problem, parallel);
    record(out.get(), count, t.dtype);
}

}  // namespace dmao::fuzzing
