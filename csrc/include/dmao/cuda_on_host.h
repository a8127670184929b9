// CUDA C++ on the host: what the source of a kernel needs of CUDA, so that any C++ compiler can
// compile it and a CPU can run it. For tests: it is slow, and strict about what a GPU lets pass.
//
// Every CUDA thread is a fiber, and a block is one OS thread, which switches fibers where they wait
// for each other; blocks follow one another. The order of threads and blocks can be shuffled.
// Shared memory starts as NaN; what cp.async copies is NaN until it has been waited for. A launch
// throws std::runtime_error, which names block and thread, when
//     threads wait for each other for ever, or at different barriers at once;
//     lanes of a warp take part in different collectives, or in one whose mask leaves them out;
//     a shuffle reads from a lane that does not take part;
//     addresses of cp.async or ldmatrix are not aligned;
//     a block is larger than GPUs allow, or its shared memory.
// Under AddressSanitizer accesses beside shared memory are errors, too, and under ThreadSanitizer
// whatever is ordered neither by a barrier nor by an atomic operation (csrc/cuda_on_host/
// sanitizers.h says how to build for them).
//
// Not covered: the order in which a GPU's memory makes writes visible, and inline PTX, which is in
// csrc/cuda/ptx.cuh alone.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace dmao::cuda_on_host {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// Where a thread is, in CUDA's terms.
struct Place {
    Dim3 thread, block, block_size, grid_size;
    int lane = 0;
};
extern thread_local const Place* place;

// --- Launches

// Since `reset_counts`, of the launches of this OS thread.
struct Counts {
    long matrix_products;  // mma.sync
    long matrix_loads;     // ldmatrix
    long bank_conflicts;   // of ldmatrix: turns beyond the one that eight rows need
};
Counts counts();
void reset_counts();

// 0: threads and blocks take turns in order; else in an order that depends on the seed.
void set_schedule(unsigned seed);

void launch(Dim3 grid, Dim3 block, std::size_t shared_bytes, void (*kernel)(void*), void* context);

// Where DMAO_CUDA_LAUNCHES names a file, launches are written into it instead of being run, a line
// for each: where the kernel is in its library, threads, bytes of dynamic shared memory. Returns
// whether that is so.
bool record(const void* kernel, Dim3 block, std::size_t shared_bytes);

template <class Kernel, class... Arguments>
void run(Kernel kernel, Dim3 grid, Dim3 block, std::size_t shared_bytes, Arguments... arguments) {
    if (record(reinterpret_cast<const void*>(kernel), block, shared_bytes)) return;
    auto call = [=] { kernel(arguments...); };
    launch(
        grid, block, shared_bytes,
        [](void* context) { (*static_cast<decltype(call)*>(context))(); }, &call);
}

// --- What threads do together

// Barrier `id` for `threads` threads; 0: for all of the block that have not returned.
void wait_for_block(int id, int threads, std::source_location where);
void wait_for_warp(unsigned mask);
void shuffle(unsigned mask, const void* value, std::size_t size, int source, void* result);

// --- Memory

// The array that `id` names, for all threads of the block; the dynamic shared memory.
void* shared_array(int id, std::size_t bytes);
unsigned char* dynamic_shared();

void async_copy(void* target, const void* source, int bytes, int valid);
void async_commit();
void async_wait(int pending);

// --- Matrices

enum class Element { bfloat16, float16, tfloat32 };
void load_matrices(unsigned (&words)[4], const void* row, bool transposed);
// D += A B in the layout of PTX's mma.m16n8k16 (16-bit elements) or mma.m16n8k8 (tfloat32).
void multiply_matrices(Element element, float (&d)[4], const unsigned (&a)[4],
                       const unsigned (&b)[2]);

[[noreturn]] void fail(const char* what);

template <class T>
T shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 16);
    T result;
    shuffle(mask, &value, sizeof(T), source, &result);
    return result;
}

}  // namespace dmao::cuda_on_host

// --- CUDA's names

#define threadIdx (::dmao::cuda_on_host::place->thread)
#define blockIdx (::dmao::cuda_on_host::place->block)
#define blockDim (::dmao::cuda_on_host::place->block_size)
#define gridDim (::dmao::cuda_on_host::place->grid_size)

inline void __syncthreads(std::source_location where = std::source_location::current()) {
    ::dmao::cuda_on_host::wait_for_block(0, 0, where);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFF) { ::dmao::cuda_on_host::wait_for_warp(mask); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int lane = ::dmao::cuda_on_host::place->lane;
    return ::dmao::cuda_on_host::shuffle(mask, value,
                                         (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return ::dmao::cuda_on_host::shuffle(mask, value, ::dmao::cuda_on_host::place->lane ^ bits);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = ::dmao::cuda_on_host::place->lane, source = lane + static_cast<int>(delta);
    const bool inside = ((source ^ lane) & ~(width - 1)) == 0;
    return ::dmao::cuda_on_host::shuffle(mask, value, inside ? source : lane);
}
inline unsigned atomicAdd(unsigned* p, unsigned value) {
    return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float __fdividef(float a, float b) { return a / b; }
template <class T>
T __ldg(const T* p) {
    return *p;
}
inline float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
