// What lives along an axis of a weight: things of `width` neighbouring elements (components, or
// blocks) that a list on the device names. Position p of a list is element p % width of the thing
// ids[p / width]; without a list position p is element p.
#pragma once

#include "ptx.cuh"

namespace dmao {

// Quotients by a number that the host knows.
struct Divisor {
    unsigned value = 1, reciprocal = ~0u;

    Divisor() = default;
    explicit Divisor(int divisor)  // where it is 0, nobody asks for a quotient
        : value(divisor > 1 ? static_cast<unsigned>(divisor) : 1),
          reciprocal(value == 1 ? ~0u : static_cast<unsigned>((std::uint64_t{1} << 32) / value)) {}

    __device__ __forceinline__ int quotient(int n) const {
        const unsigned u = static_cast<unsigned>(n);
        const unsigned low =  // the quotient, or one less
            static_cast<unsigned>(static_cast<std::uint64_t>(reciprocal) * u >> 32);
        return static_cast<int>(u - low * value >= value ? low + 1 : low);
    }
};

// A list as a thread sees it.
struct Live {
    bool everything;  // without a list
    const std::int32_t* ids;
    int positions, elements;  // the last thing may stick out behind the elements
    int things;
    Divisor width;

    // For positions that there are. Ids out of range are brought back into it.
    __device__ __forceinline__ int element(int position) const {
        if (everything) return position;
        const int at = width.quotient(position);
        int id = __ldg(ids + at);
        id = id < 0 ? 0 : id >= things ? things - 1 : id;
        return id * static_cast<int>(width.value) + position - at * static_cast<int>(width.value);
    }
    // Whether `count` neighbouring positions, from a multiple of it on, are neighbouring elements.
    __device__ __forceinline__ bool keeps_together(int count) const {
        return everything || static_cast<int>(width.value) % count == 0;
    }
};

struct LiveList {
    bool everything = true;
    const std::int32_t* ids = nullptr;
    // That of line l is ids[offsets[l]] ... ids[offsets[l + 1] - 1]. Null: there is one list, which
    // ids that name nothing, from `things` on, fill up at its end.
    const std::int32_t* offsets = nullptr;
    int capacity = 0, things = 0, elements = 0;
    Divisor width;

    static LiveList all(int elements) {
        LiveList list;
        list.elements = elements;
        return list;
    }
    // How many positions there may be.
    int most_positions() const {
        if (everything) return elements;
        return (offsets != nullptr ? things : capacity) * static_cast<int>(width.value);
    }

    // All threads of the warp call this, for one line.
    __device__ __forceinline__ Live of_line(int line) const {
        if (everything) return {true, nullptr, elements, elements, 0, width};
        int begin = 0, count = 0;
        if (offsets != nullptr) {
            begin = clamped(__ldg(offsets + line));
            count = clamped(__ldg(offsets + line + 1)) - begin;
            count = count < 0 ? 0 : count > things ? things : count;
        } else {
            for (int i = static_cast<int>(threadIdx.x) % 32; i < capacity; i += 32) {
                count += __ldg(ids + i) < things;
            }
#pragma unroll
            for (int bits = 16; bits > 0; bits /= 2) count += __shfl_xor_sync(~0u, count, bits);
        }
        return {false, ids + begin, count * static_cast<int>(width.value), elements, things, width};
    }

  private:
    __device__ __forceinline__ int clamped(int offset) const {
        return offset < 0 ? 0 : offset > capacity ? capacity : offset;
    }
};

}  // namespace dmao
