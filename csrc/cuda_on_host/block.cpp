#include "block.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace dmao::cuda_on_host {

thread_local const Place* place = nullptr;
thread_local Block* block = nullptr;
thread_local Counts totals{};

namespace {

// What a launch orders: what came before it, and what comes after it.
char launch_begins, launch_ends;

char* map_stacks(std::size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    char* stacks = static_cast<char*>(memory);
    for (std::size_t at = 0; at < bytes; at += Fiber::kStack) {
        mprotect(stacks + at, Fiber::kGuard, PROT_NONE);
    }
    return stacks;
}

bool same_place(const std::source_location& a, const std::source_location& b) {
    return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

}  // namespace

Block::Block(Dim3 size, Dim3 grid, std::size_t shared_bytes, void (*kernel)(void*), void* context,
             unsigned seed)
    : stacks_bytes_(size.x * size.y * size.z * Fiber::kStack),
      stacks_(map_stacks(stacks_bytes_)),
      memory_(shared_bytes),
      kernel_(kernel),
      context_(context),
      random_(seed == 0 ? 0 : seed * 2654435761u | 1),
      threads_(size.x * size.y * size.z),
      warps_((threads_.size() + kWarp - 1) / kWarp),
      runnable_(threads_.size()) {
    for (std::size_t i = 0; i < threads_.size(); ++i) {
        const unsigned index = static_cast<unsigned>(i);
        Place& where = threads_[i].place;
        where.thread = {index % size.x, index / size.x % size.y, index / size.x / size.y};
        where.block_size = size;
        where.grid_size = grid;
        where.lane = static_cast<int>(i) % kWarp;
        threads_[i].index = static_cast<int>(i);
        threads_[i].copies.reserve(kMostCopies);
    }
    release(&launch_begins);
}

Block::~Block() {
    acquire(&launch_ends);
    block = nullptr;
    place = nullptr;
    munmap(stacks_, stacks_bytes_);
}

void Block::run(Dim3 index) {
    start(index);
    running_ = take();
    place = &running_->place;
    launcher_.switch_to(*running_->fiber);
    running_ = nullptr;
    if (failed_) throw std::runtime_error(failure_);
}

void Block::start(Dim3 index) {
    block = this;
    memory_.clear();
    // Fibers must live on for ThreadSanitizer, which else forgets what they did; not for ever, or
    // there would be too many.
    constexpr std::size_t kMostFibers = 4096;
    if (kTsan && past_.size() > kMostFibers) past_.clear();
    if constexpr (kTsan) {  // a new stack is not the one of the block before
        munmap(stacks_, stacks_bytes_);
        stacks_ = map_stacks(stacks_bytes_);
    }
    alive_ = static_cast<int>(threads_.size());
    // New ones, or barriers would order blocks.
    orders_ = std::make_unique<char[]>(2 * (kBarriers + warps_.size()));
    char* order = orders_.get();
    for (Barrier& barrier : barriers_) {
        barrier = {};
        barrier.order = order;
        order += 2;
    }
    for (Warp& warp : warps_) {
        warp.waiting = nullptr;
        warp.arrived = 0;
        warp.order = order;
        order += 2;
    }
    first_ = 0;
    waiting_to_run_ = 0;
    for (std::size_t i = 0; i < threads_.size(); ++i) {
        Thread& thread = threads_[i];
        if (kTsan && thread.fiber) past_.push_back(std::move(thread.fiber));
        thread.fiber = std::make_unique<Fiber>(stacks_ + i * Fiber::kStack, &Block::enter);
        thread.place.block = index;
        thread.copies.clear();
        thread.group = 0;
        add(thread);
    }
}

void Block::enter() {
    Fiber::begin();
    acquire(&launch_begins);
    block->kernel_(block->context_);
    release(&launch_ends);
    block->leave();
}

void Block::leave() {
    if (!running_->copies.empty()) fail("cp.async has not been waited for");
    --alive_;
    // Who has returned is not missed at __syncthreads().
    Barrier& all = barriers_[0];
    if (all.arrived > 0 && all.expected == 0 && all.arrived == alive_) wake(all);
    yield(true);
    std::abort();
}

// --- Whose turn it is

void Block::add(Thread& thread) {
    runnable_[(first_ + waiting_to_run_++) % runnable_.size()] = &thread;
}

Thread* Block::take() {
    if (waiting_to_run_ == 0) return nullptr;
    if (random_ != 0) {  // xorshift
        random_ ^= random_ << 13;
        random_ ^= random_ >> 17;
        random_ ^= random_ << 5;
        Thread*& chosen = runnable_[(first_ + random_ % waiting_to_run_) % runnable_.size()];
        std::swap(chosen, runnable_[first_]);
    }
    Thread* next = runnable_[first_];
    first_ = (first_ + 1) % runnable_.size();
    --waiting_to_run_;
    return next;
}

// The running thread stops; it will go on when somebody has woken it.
void Block::yield(bool last) {
    Thread* me = running_;
    Thread* next = take();
    if (next == me) return;
    if (next == nullptr) {
        if (alive_ > 0) fail_deadlock();
        me->fiber->switch_to(launcher_, true);
    } else {
        running_ = next;
        place = &next->place;
        me->fiber->switch_to(*next->fiber, last);
    }
}

void Block::meet(Meeting& meeting, int expected) {
    if (++meeting.arrived == expected) {
        wake(meeting);
        if (random_ == 0) return;
        add(*running_);  // has no right to be first
    } else {
        running_->next = meeting.waiting;
        meeting.waiting = running_;
    }
    yield();
}

void Block::wake(Meeting& meeting) {
    for (Thread* thread = meeting.waiting; thread != nullptr; thread = thread->next) add(*thread);
    meeting.waiting = nullptr;
    meeting.arrived = 0;
    ++meeting.generation;
}

// --- What threads do together

void Block::wait_for_block(int id, int threads, std::source_location where) {
    if (id < 0 || id >= kBarriers) fail("there are 16 barriers");
    Barrier& barrier = barriers_[id];
    if (barrier.arrived == 0) {
        barrier.expected = threads;
        barrier.where = where;
    } else if (barrier.expected != threads || !same_place(barrier.where, where)) {
        char text[160];
        std::snprintf(text, sizeof(text), "divergent barrier: some wait in line %u, others in %u",
                      barrier.where.line(), where.line());
        fail(text);
    }
    char* order = &barrier.order[barrier.generation & 1];
    release(order);
    meet(barrier, threads == 0 ? alive_ : threads);
    acquire(order);
}

void Block::wait_for_warp(unsigned mask) {
    Warp& lanes = warp();
    char* order = &lanes.order[lanes.generation & 1];
    release(order);
    collective(nullptr, mask, nullptr, 0, nullptr, 0);
    acquire(order);
}

void Block::collective(Warp::Operation operation, unsigned mask, const void* in,
                       std::size_t in_size, void* out, std::size_t out_size) {
    Warp& lanes = warp();
    const int lane = running_->place.lane;
    if ((mask >> lane & 1) == 0) fail("a lane takes part in a collective whose mask leaves it out");
    if (lanes.arrived == 0) {
        lanes.mask = mask;
        lanes.operation = operation;
    } else if (lanes.mask != mask || lanes.operation != operation) {
        fail("divergent warp: its lanes take part in different collectives");
    }
    const int expected = __builtin_popcount(mask), half = lanes.generation & 1;
    copy_bytes(lanes.in[lane], in, in_size);
    if (lanes.arrived + 1 == expected && operation != nullptr) {
        operation(lanes.in, lanes.out[half], mask);
    }
    meet(lanes, expected);
    copy_bytes(out, lanes.out[half][lane], out_size);
}

// --- Failures

void Block::fail(const char* what) {
    const Place& where = running_->place;
    std::snprintf(failure_, sizeof(failure_), "block (%u, %u, %u), thread (%u, %u, %u): %s",
                  where.block.x, where.block.y, where.block.z, where.thread.x, where.thread.y,
                  where.thread.z, what);
    failed_ = true;
    running_->fiber->switch_to(launcher_, true);
    std::abort();
}

void Block::fail_deadlock() {
    char text[400];
    int size = std::snprintf(text, sizeof(text), "deadlock:");
    const auto add_text = [&](const char* format, auto... values) {
        size += std::snprintf(text + size, sizeof(text) - size, format, values...);
    };
    for (int id = 0; id < kBarriers; ++id) {
        const Barrier& barrier = barriers_[id];
        if (barrier.arrived == 0) continue;
        add_text(" %d wait at barrier %d in line %u for %d;", barrier.arrived, id,
                 barrier.where.line(), barrier.expected == 0 ? alive_ : barrier.expected);
        if (size > 200) break;
    }
    for (std::size_t i = 0; i < warps_.size() && size < 300; ++i) {
        if (warps_[i].arrived == 0) continue;
        add_text(" %d lanes of warp %zu wait for the others of %08x;", warps_[i].arrived, i,
                 warps_[i].mask);
    }
    fail(text);
}

void fail(const char* what) {
    if (block == nullptr) throw std::runtime_error(what);
    block->fail(what);
}

void wait_for_block(int id, int threads, std::source_location where) {
    block->wait_for_block(id, threads, where);
}

void wait_for_warp(unsigned mask) { block->wait_for_warp(mask); }

}  // namespace dmao::cuda_on_host
