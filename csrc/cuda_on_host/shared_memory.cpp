#include "shared_memory.h"

#include <sys/mman.h>

#include <new>

#include "sanitizers.h"

namespace dmao::cuda_on_host {
namespace {

constexpr std::size_t kGap = 64;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
    return (bytes + unit - 1) / unit * unit;
}

}  // namespace

SharedMemory::SharedMemory(std::size_t dynamic_bytes)
    : dynamic_bytes_(dynamic_bytes),
      bytes_(round_up(dynamic_bytes + kGap, kAlign) + kMostStatic + 2 * kGap * kMostArrays) {
    void* memory =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<unsigned char*>(memory);
}

SharedMemory::~SharedMemory() {
    permit(memory_, bytes_);
    munmap(memory_, bytes_);
}

void SharedMemory::clear() {
    // For ThreadSanitizer a block's memory is not that of the block before.
    if constexpr (kTsan) {
        mmap(memory_, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
             0);
    }
    permit(memory_, bytes_);
    fill_bytes(memory_, kNaN, dynamic_bytes_);
    forbid(memory_ + dynamic_bytes_, bytes_ - dynamic_bytes_);
    used_ = round_up(dynamic_bytes_ + kGap, kAlign);
    static_bytes_ = 0;
    count_ = 0;
}

void* SharedMemory::array(int id, std::size_t bytes) {
    for (int i = 0; i < count_; ++i) {
        if (arrays_[i].id == id) return arrays_[i].begin;
    }
    static_bytes_ += round_up(bytes, 16);
    if (static_bytes_ > kMostStatic || count_ == kMostArrays) return nullptr;
    unsigned char* begin = memory_ + used_;
    used_ += round_up(bytes, 16) + kGap;
    permit(begin, bytes);
    fill_bytes(begin, kNaN, bytes);
    arrays_[count_++] = {id, begin};
    return begin;
}

}  // namespace dmao::cuda_on_host
