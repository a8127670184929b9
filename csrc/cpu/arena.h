// How a kernel divides the scratch memory that it is given (dmao/workspace.h).
#pragma once

#include "operands.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// Deals out the scratch memory; with a null base it only counts.
class Arena {
  public:
    explicit Arena(float* base) : base_(base) {}

    float* take(std::int64_t count) {
        float* result = base_ == nullptr ? nullptr : base_ + used_;
        used_ += round_up(count, 16);  // a cache line
        return result;
    }

    std::int64_t used() const { return used_; }

  private:
    float* base_;
    std::int64_t used_ = 0;
};

// Room for operands.
template <class E>
E* take(Arena& arena, std::int64_t count) {
    return reinterpret_cast<E*>(arena.take(divide_up(count, kPerWord<E>)));
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
