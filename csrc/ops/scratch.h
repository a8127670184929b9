// Scratch memory for kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace dmao {

struct AlignedDelete {
    void operator()(float* p) const { ::operator delete[](p, kAlignment); }
    static constexpr std::align_val_t kAlignment{64};
};

// At least `floats` floats, uninitialised, until this thread's next call. The memory stays with the
// thread: handed back, it would come again as fresh pages, whose faults cost a tenth of a training
// step's backward pass. It grows with the longest utterance in attention (forward by 8 width
// bytes a frame and thread; backward with relative positions by some 16 heads width bytes a frame
// and more), and with the rows in component_conv's backward pass; elsewhere with no more than a
// block of tokens.
inline float* thread_scratch(std::int64_t floats) {
    thread_local std::unique_ptr<float[], AlignedDelete> memory;
    thread_local std::int64_t size = 0;
    if (size < floats) {
        memory.reset();
        size = 0;
        memory.reset(new (AlignedDelete::kAlignment) float[floats]);
        size = floats;
    }
    return memory.get();
}

}  // namespace dmao
