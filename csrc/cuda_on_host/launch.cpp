// Launches: all blocks of a grid, one after the other.
#include <utility>
#include <vector>

#include "block.h"

namespace dmao::cuda_on_host {
namespace {

thread_local unsigned schedule = 0;

std::vector<long> order_of_blocks(long count) {
    std::vector<long> order(count);
    for (long i = 0; i < count; ++i) order[i] = i;
    std::uint32_t random = schedule;
    for (long i = count - 1; i > 0 && schedule != 0; --i) {
        random = random * 1664525u + 1013904223u;
        std::swap(order[i], order[(random >> 8) % (i + 1)]);
    }
    return order;
}

}  // namespace

Counts counts() { return totals; }
void reset_counts() { totals = {}; }
void set_schedule(unsigned seed) { schedule = seed; }

void launch(Dim3 grid, Dim3 size, std::size_t shared_bytes, void (*kernel)(void*), void* context) {
    const long threads = static_cast<long>(size.x) * size.y * size.z;
    if (block != nullptr) fail("a kernel may not launch another one");
    if (threads < 1 || threads > kMostThreads) fail("a block must have 1 to 1024 threads");
    if (shared_bytes > SharedMemory::kMostDynamic) {
        fail("a block may have 227 KiB of dynamic shared memory");
    }
    if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) {
        fail("a grid must have 1 to 2^31 - 1, 65535 and 65535 blocks");
    }
    Block one(size, grid, shared_bytes, kernel, context, schedule);
    for (long i : order_of_blocks(static_cast<long>(grid.x) * grid.y * grid.z)) {
        const unsigned x = static_cast<unsigned>(i % grid.x);
        const unsigned y = static_cast<unsigned>(i / grid.x % grid.y);
        one.run({x, y, static_cast<unsigned>(i / grid.x / grid.y)});
    }
}

void* shared_array(int id, std::size_t bytes) {
    void* array = block->memory().array(id, bytes);
    if (array == nullptr) fail("a block may have 48 KiB of static shared memory, in 32 arrays");
    return array;
}

unsigned char* dynamic_shared() { return block->memory().dynamic(); }

}  // namespace dmao::cuda_on_host
