// fuzz PROBLEMS THREADS [FILE]: runs random problems and writes their results to a file; with more
// than one thread every parallel range is a thread of its own, so that ThreadSanitizer sees all
// that may happen at once.
#include <algorithm>
#include <cstdio>
#include <thread>
#include <vector>

#include "fuzz.h"

namespace {

using dmao::ParallelFor;
using dmao::fuzzing::below;

// One after the other, in ranges of any length. Lengths come from a generator of their own: how
// often a kernel asks for ranges depends on the instruction set, and problems must not.
std::mt19937_64 lengths(2);
const ParallelFor in_turn([](std::int64_t count, std::int64_t, ParallelFor::Body body,
                             void* context) {
    const std::int64_t step = 1 + static_cast<std::int64_t>(lengths() % (count + 1));
    for (std::int64_t i = 0; i < count; i += step) body(i, std::min(count, i + step), context);
});

// All at once, in up to four ranges.
const ParallelFor at_once([](std::int64_t count, std::int64_t, ParallelFor::Body body,
                             void* context) {
    const std::int64_t step = std::max<std::int64_t>((count + 3) / 4, 1);
    std::vector<std::thread> threads;
    for (std::int64_t i = 0; i < count; i += step) {
        threads.emplace_back(body, i, std::min(count, i + step), context);
    }
    for (std::thread& thread : threads) thread.join();
});

}  // namespace

int main(int count, char** arguments) {
    const int problems = std::atoi(arguments[1]), threads = std::atoi(arguments[2]);
    if (count > 3) dmao::fuzzing::results = std::fopen(arguments[3], "wb");
    for (int i = 0; i < problems; ++i) {
        if (threads > 1) {
            dmao::fuzzing::fuzz(at_once, 4);
        } else {
            dmao::fuzzing::fuzz(in_turn, 1 + below(3));
        }
    }
    if (count > 3 && std::fclose(dmao::fuzzing::results) != 0) return 1;
    std::puts("clean");
}
