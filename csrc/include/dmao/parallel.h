// How a kernel runs in parallel without knowing PyTorch: the caller hands it this interface.
#pragma once

#include <cstdint>

namespace dmao {

class ParallelFor {
  public:
    using Body = void (*)(std::int64_t begin, std::int64_t end, void* context);
    // Covers [0, count) by disjoint ranges of at least `grain` items and calls body on each,
    // possibly at once.
    using Run = void (*)(std::int64_t count, std::int64_t grain, Body body, void* context);

    explicit ParallelFor(Run run) : run_(run) {}

    // body(begin, end) must not throw. Which thread gets which range varies: to be deterministic a
    // body writes only what belongs to its items, and sums across items are formed afterwards in a
    // fixed order.
    template <class Function>
    void operator()(std::int64_t count, std::int64_t grain, const Function& body) const {
        run_(
            count, grain,
            [](std::int64_t begin, std::int64_t end, void* context) {
                (*static_cast<const Function*>(context))(begin, end);
            },
            const_cast<void*>(static_cast<const void*>(&body)));
    }

  private:
    Run run_;
};

}  // namespace dmao
