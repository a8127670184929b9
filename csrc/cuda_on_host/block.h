// One block of threads, while it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <vector>

#include "dmao/cuda_on_host.h"
#include "fiber.h"
#include "shared_memory.h"

namespace dmao::cuda_on_host {

constexpr int kWarp = 32, kMostThreads = 1024, kBarriers = 16;

// Of a thread, at once: room that is there from the beginning, for growing would call what
// sanitizers intercept.
constexpr std::size_t kMostCopies = 128;

struct AsyncCopy {
    void* target;
    const void* source;
    int bytes, valid;
    long group;
};

struct Thread {
    Place place;
    std::unique_ptr<Fiber> fiber;
    Thread* next = nullptr;  // who waits for the same
    std::vector<AsyncCopy> copies;
    long group = 0;  // of the cp.async that comes next
    int index = 0;
};

// Threads that wait until all have come.
struct Meeting {
    Thread* waiting = nullptr;
    int arrived = 0;
    int generation = 0;
    char* order = nullptr;  // ThreadSanitizer's two, for every other generation, in this block
};

struct Barrier : Meeting {
    int expected = 0;  // 0: all that have not returned
    std::source_location where;
};

// The lanes of a warp, which do something together: each brings `in`, the last one makes all `out`.
struct Warp : Meeting {
    static constexpr int kBytes = 64;
    using Words = unsigned char (*)[kBytes];
    using Operation = void (*)(Words in, Words out, unsigned mask);

    unsigned mask = 0;
    Operation operation = nullptr;
    alignas(16) unsigned char in[kWarp][kBytes], out[2][kWarp][kBytes];
};

class Block {
  public:
    Block(Dim3 size, Dim3 grid, std::size_t shared_bytes, void (*kernel)(void*), void* context,
          unsigned seed);
    ~Block();

    // Throws std::runtime_error when a thread has failed. A block that has thrown runs no more.
    void run(Dim3 index);

    Thread& running() { return *running_; }
    Warp& warp() { return warps_[running_->index / kWarp]; }
    SharedMemory& memory() { return memory_; }

    void wait_for_block(int id, int threads, std::source_location where);
    void wait_for_warp(unsigned mask);
    // Brings `in`; returns when all lanes in the mask have, with what they made of it.
    void collective(Warp::Operation operation, unsigned mask, const void* in, std::size_t in_size,
                    void* out, std::size_t out_size);
    [[noreturn]] void fail(const char* what);

  private:
    static void enter();
    void start(Dim3 index);
    void leave();
    // Waits until `expected` threads have come.
    void meet(Meeting& meeting, int expected);
    void wake(Meeting& meeting);
    void yield(bool last = false);
    void add(Thread& thread);
    Thread* take();
    [[noreturn]] void fail_deadlock();

    std::size_t stacks_bytes_;
    char* stacks_;
    SharedMemory memory_;
    void (*kernel_)(void*);
    void* context_;
    std::uint32_t random_;
    Fiber launcher_;
    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    Barrier barriers_[kBarriers];
    std::vector<Thread*> runnable_;  // a ring: waiting_to_run_ of them from first_ on
    std::size_t first_ = 0, waiting_to_run_ = 0;
    std::vector<std::unique_ptr<Fiber>> past_;
    std::unique_ptr<char[]> orders_;
    Thread* running_ = nullptr;
    int alive_ = 0;
    bool failed_ = false;
    char failure_[512] = {};
};

// The one that this OS thread runs.
extern thread_local Block* block;
extern thread_local Counts totals;

}  // namespace dmao::cuda_on_host
