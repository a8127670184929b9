// All inline PTX: one function per instruction, and beside it what the instruction does on the host
// (dmao/cuda_on_host.h). Titles in quotes are those of sections of the PTX ISA.
#pragma once

#include "elements.cuh"

#if !defined(__CUDACC__)
#include <bit>

#include "dmao/cuda_on_host.h"
#endif

namespace dmao::ptx {

#if defined(__CUDACC__)

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// "Warp-level matrix load instruction: ldmatrix": lane l gives the row l % 8 of matrix l / 8, 16
// bytes each.
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void load_transposed(unsigned (&words)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// "Multiply-and-accumulate instruction: mma": D += A B, 16 x 8 sums over 16 (of 16-bit elements) or
// 8 (tf32) products.
template <class Element>
__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]);
template <>
__device__ __forceinline__ void multiply<bfloat16>(float (&d)[4], const unsigned (&a)[4],
                                                   const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void multiply<float16>(float (&d)[4], const unsigned (&a)[4],
                                                  const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void multiply<float>(float (&d)[4], const unsigned (&a)[4],
                                                const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// "Data Movement and Conversion Instructions: cp.async": 16 bytes past the registers, of which the
// first `valid` are read and the others are zeros.
__device__ __forceinline__ void async_copy(void* shared, const void* global, int valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid)
                 : "memory");
}
__device__ __forceinline__ void async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most so many of the last groups are under way.
template <int pending>
__device__ __forceinline__ void async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// "Data Movement and Conversion Instructions: cvt": two floats, rounded to nearest even, the first
// in the low half.
__device__ __forceinline__ unsigned round_pair(bfloat16, float first, float second) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
}
__device__ __forceinline__ unsigned round_pair(float16, float first, float second) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
}
__device__ __forceinline__ float widen(float16 value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}
__device__ __forceinline__ unsigned round_to_tf32(float value) {
    unsigned word;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
    return word;
}

// "Floating Point Instructions: ex2": 2 to the power of the value, with an error of 2^-22.
__device__ __forceinline__ float exp2(float value) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
}

// The same number, of which the compiler knows nothing: so that what follows from it is computed
// here, and not ahead of a loop for registers to keep.
__device__ __forceinline__ int fresh(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

#else

inline int fresh(int value) { return value; }

inline void load_matrices(unsigned (&words)[4], const void* row) {
    cuda_on_host::load_matrices(words, row, false);
}
inline void load_transposed(unsigned (&words)[4], const void* row) {
    cuda_on_host::load_matrices(words, row, true);
}

template <class E>
void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    using cuda_on_host::Element;
    constexpr Element element = std::is_same_v<E, bfloat16>  ? Element::bfloat16
                                : std::is_same_v<E, float16> ? Element::float16
                                                             : Element::tfloat32;
    cuda_on_host::multiply_matrices(element, d, a, b);
}

inline void async_copy(void* shared, const void* global, int valid) {
    cuda_on_host::async_copy(shared, global, 16, valid);
}
inline void async_commit() { cuda_on_host::async_commit(); }
template <int pending>
void async_wait() {
    cuda_on_host::async_wait(pending);
}

inline std::uint16_t round_half(bfloat16, float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    if (value != value) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
    return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline std::uint16_t round_half(float16, float value) {
    return std::bit_cast<std::uint16_t>(static_cast<_Float16>(value));
}
template <class E>
unsigned round_pair(E element, float first, float second) {
    return round_half(element, first) | static_cast<unsigned>(round_half(element, second)) << 16;
}
inline float widen(float16 value) {
    return static_cast<float>(std::bit_cast<_Float16>(value.bits));
}
// To nearest, ties away from zero.
inline unsigned round_to_tf32(float value) {
    return (std::bit_cast<std::uint32_t>(value) + 0x1000) & 0xFFFFE000;
}
inline float exp2(float value) { return std::exp2f(value); }

#endif

// bfloat16 is the upper half of a float.
__device__ __forceinline__ float widen(bfloat16 value) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
__device__ __forceinline__ float widen(float value) { return value; }

// To nearest even.
template <class E>
__device__ __forceinline__ E narrow(float value) {
    if constexpr (sizeof(E) == 4) {
        return value;
    } else {
        return {static_cast<std::uint16_t>(round_pair(E{}, value, 0.0f))};
    }
}

}  // namespace dmao::ptx

// Shared memory: the one array whose size the launch gives, and arrays of n elements.
#if defined(__CUDACC__)
#define DMAO_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define DMAO_SHARED(T, name, n) __shared__ T name[n]
#else
#define DMAO_DYNAMIC_SHARED(name) unsigned char* name = ::dmao::cuda_on_host::dynamic_shared()
#define DMAO_SHARED(T, name, n) \
    T* name = static_cast<T*>(::dmao::cuda_on_host::shared_array(__COUNTER__, sizeof(T) * (n)))
#endif
