// block_attention as its CUDA kernels take it: plain pointers and numbers, no copies, no torch.
#pragma once

#include <cstdint>

namespace dmao {

// [rows, heads, width] with a contiguous last axis; strides in elements. Rows begin at multiples of
// 16 bytes, but for those of AttentionBackward::out, which are read one by one.
struct AttentionRows {
    const void* data;
    std::int64_t row_stride, head_stride;
};

// Which blocks of a mask live in each of its lines: CSR of rows, or CSC of columns.
struct AttentionLines {
    const std::int32_t *offsets, *ids;  // null: no mask; not null where no block lives
};

// All tensors are of one dtype; pointers of what is absent are null. What depends on the values of
// spans, lines, head_mask and seed is known on the GPU alone.
struct Attention {
    AttentionRows q, k, v, rel_pos;            // the last [2 reach + 1, heads, width]
    const void *content_bias, *position_bias;  // [heads, width]
    const std::int32_t* spans;                 // [utterances, 2] first row and length, ascending
    AttentionLines key_lines, query_lines;     // by query and by key
    const bool* head_mask;                     // [heads]
    const std::int64_t* seed;                  // null: no dropout
    int utterances, rows, heads, width, frames;
    int block, mask_lines, mask_count;
    // Query i sees key j if i - left <= j <= i + right and
    // i / chunk - left_chunks <= j / chunk <= i / chunk: all bounded, see `set_bounds`.
    int left, right, chunk, left_chunks;
    int reach;
    unsigned threshold;  // of dropout
    float keep_factor, scale;
};

struct AttentionForward {
    Attention attention;
    void* out;   // [rows, heads, width]
    float* lse;  // [heads, rows] log2 of the sum of the exponentials
};

struct AttentionBackward {
    Attention attention;
    AttentionRows grad_out, out;
    const float* lse;
    void *grad_q, *grad_k, *grad_v;  // [rows, heads, width]
    void *grad_rel_pos, *grad_content_bias, *grad_position_bias;
    // Scratch, of as many floats as AttentionScratch says; inner: [heads, rows] grad_out . out.
    float* inner = nullptr;
    float* content_sums = nullptr;
    float* position_bias_sums = nullptr;
    float* position_sums = nullptr;
};

// Nothing is farther away than an utterance is long: so what is unbounded, which is negative
// (chunk: 0), has a bound like the rest.
inline void set_bounds(Attention& a, std::int64_t left, std::int64_t right, std::int64_t chunk,
                       std::int64_t left_chunks) {
    const auto least = [](std::int64_t x, int y) { return x < y ? static_cast<int>(x) : y; };
    const int frames = a.frames > 1 ? a.frames : 1;
    a.left = left < 0 ? frames : least(left, frames);
    a.right = right < 0 ? frames : least(right, frames);
    a.chunk = chunk <= 0 ? frames : least(chunk, frames);
    const int chunks = (frames + a.chunk - 1) / a.chunk;
    a.left_chunks = left_chunks < 0 ? chunks : least(left_chunks, chunks);
}

}  // namespace dmao
