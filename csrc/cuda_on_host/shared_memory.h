// The shared memory of a block: one dynamic array and static ones, each filled with NaN when the
// block starts, with forbidden memory behind it.
#pragma once

#include <cstddef>

namespace dmao::cuda_on_host {

// Bytes of what nobody has written: NaN in every floating point format.
constexpr unsigned char kNaN = 0xFF;

class SharedMemory {
  public:
    static constexpr std::size_t kMostStatic = 48 * 1024, kMostDynamic = 227 * 1024;

    explicit SharedMemory(std::size_t dynamic_bytes);
    ~SharedMemory();
    SharedMemory(const SharedMemory&) = delete;
    SharedMemory& operator=(const SharedMemory&) = delete;

    // Of a new block.
    void clear();
    unsigned char* dynamic() { return memory_; }
    // The array of that name, made by the first thread that asks; null: there would be more than
    // kMostStatic bytes, or kMostArrays.
    void* array(int id, std::size_t bytes);

  private:
    static constexpr int kMostArrays = 32;
    static constexpr std::size_t kAlign = 1024;  // of the dynamic array
    struct Array {
        int id;
        unsigned char* begin;
    };

    std::size_t dynamic_bytes_, bytes_;
    unsigned char* memory_;
    std::size_t used_ = 0, static_bytes_ = 0;
    Array arrays_[kMostArrays];
    int count_ = 0;
};

}  // namespace dmao::cuda_on_host
