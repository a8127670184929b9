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

    // body(i) for every item of [0, count), each worker taking the next one when it gets free: for
    // items of unequal length. `workers` is the number of threads.
    template <class Function>
    void each(std::int64_t count, std::int64_t workers, const Function& body) const {
        each_with(count, workers, [&](std::int64_t i, std::int64_t) { body(i); });
    }

    // The same with body(i, worker): what has buffers of its own per worker.
    template <class Function>
    void each_with(std::int64_t count, std::int64_t workers, const Function& body) const {
        std::int64_t next = 0;
        (*this)(workers, 1, [&](std::int64_t worker, std::int64_t) {
            for (;;) {
                const std::int64_t i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (i >= count) return;
                body(i, worker);
            }
        });
    }

    // body(worker, begin, end): the items of [0, count) dealt out evenly, to every worker those
    // that follow another.
    template <class Function>
    void shares(std::int64_t count, std::int64_t workers, const Function& body) const {
        (*this)(workers, 1, [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t worker = first; worker < last; ++worker) {
                body(worker, count * worker / workers, count * (worker + 1) / workers);
            }
        });
    }

  private:
    Run run_;
};

}  // namespace dmao
