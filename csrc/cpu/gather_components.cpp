// Components of many tensors, moved, given, or what remains of one when a given part is taken off.
//
// Floor: one read and one write of the new tensors at memory bandwidth; where their memory is new,
// the page faults, which the threads share.
#include "dmao/gather_components.h"

#include "simd.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

template <class T>
void subtract(T* out, const T* x, const T* given, std::int64_t count) {
    constexpr int w = Vec::width;
    std::int64_t i = 0;
    for (; i + w <= count; i += w) store(out + i, load(x + i) - load(given + i));
    if (i < count) {
        const int rest = static_cast<int>(count - i);
        store(out + i, load(x + i, rest) - load(given + i, rest), rest);
    }
}

template <class T>
void make(T* out, const T* x, const T* given, std::int64_t count) {
    if (x != nullptr && given != nullptr) return subtract(out, x, given, count);
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (x == nullptr && given == nullptr) {
        std::memset(static_cast<void*>(out), 0, bytes);
    } else {
        std::memcpy(out, x != nullptr ? x : given, bytes);
    }
}

template <class T>
void gather(const GatherTensor& tensor, std::int64_t begin, std::int64_t end) {
    while (begin < end) {
        const std::int64_t column = begin % tensor.run, place = begin / tensor.run;
        const std::int64_t repeat = place / tensor.count;
        const std::int64_t* row = tensor.index + 2 * (place % tensor.count);
        const std::int64_t left = end - begin;
        const std::int64_t count = tensor.run - column < left ? tensor.run - column : left;
        const auto component = [&](const void* base, std::int64_t components, std::int64_t i) {
            if (i < 0) return static_cast<const T*>(nullptr);
            return static_cast<const T*>(base) + (repeat * components + i) * tensor.run + column;
        };
        make(static_cast<T*>(tensor.out) + begin, component(tensor.x, tensor.components, row[0]),
             component(tensor.given, tensor.given_components, row[1]), count);
        begin += count;
    }
}

}  // namespace

void gather_components(const GatherProblem& problem, const ParallelFor& parallel) {
    parallel.each(problem.count, problem.workers, [&](std::int64_t i) {
        const GatherChunk& chunk = problem.chunks[i];
        const GatherTensor& tensor = problem.tensors[chunk.tensor];
        if (tensor.dtype == DType::float32) {
            gather<float>(tensor, chunk.begin, chunk.end);
        } else {
            gather<bfloat16>(tensor, chunk.begin, chunk.end);
        }
    });
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
