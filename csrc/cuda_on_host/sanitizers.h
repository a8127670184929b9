// What the sanitizers have to be told of fibers and of shared memory; nothing without them.
//
// The files of this folder are always built without -fsanitize, so that their own state is not
// looked at, and with -fno-builtin, so that they call no function that a sanitizer intercepts:
//     memory    kernels with -fsanitize=address,undefined, these files with -DDMAO_HOST_ASAN
//     threads   kernels with -fsanitize=thread, these files with -DDMAO_HOST_TSAN
#pragma once

#include <cstddef>

extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
void __asan_poison_memory_region(const volatile void* begin, std::size_t size);
void __asan_unpoison_memory_region(const volatile void* begin, std::size_t size);
void* __asan_region_is_poisoned(void* begin, std::size_t size);
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* begin, unsigned long size);
void __tsan_write_range(void* begin, unsigned long size);
}

namespace dmao::cuda_on_host {

#if defined(DMAO_HOST_ASAN)
inline constexpr bool kAsan = true;
#else
inline constexpr bool kAsan = false;
#endif
#if defined(DMAO_HOST_TSAN)
inline constexpr bool kTsan = true;
#else
inline constexpr bool kTsan = false;
#endif

inline void forbid(void* begin, std::size_t size) {
    if constexpr (kAsan) __asan_poison_memory_region(begin, size);
}
inline void permit(void* begin, std::size_t size) {
    if constexpr (kAsan) __asan_unpoison_memory_region(begin, size);
}
inline bool forbidden(const void* begin, std::size_t size) {
    if constexpr (kAsan) return __asan_region_is_poisoned(const_cast<void*>(begin), size);
    return false;
}

// What happened before a release of an address is ordered before what follows its acquisition.
inline void release(void* address) {
    if constexpr (kTsan) __tsan_release(address);
}
inline void acquire(void* address) {
    if constexpr (kTsan) __tsan_acquire(address);
}
inline void note_read(const void* begin, std::size_t size) {
    if constexpr (kTsan) __tsan_read_range(const_cast<void*>(begin), size);
}
inline void note_write(void* begin, std::size_t size) {
    if constexpr (kTsan) __tsan_write_range(begin, size);
}

// memcpy and memset are functions that sanitizers intercept.
inline void copy_bytes(void* target, const void* source, std::size_t size) {
    volatile char* to = static_cast<volatile char*>(target);
    const volatile char* from = static_cast<const volatile char*>(source);
    for (std::size_t i = 0; i < size; ++i) to[i] = from[i];
}
inline void fill_bytes(void* target, unsigned char value, std::size_t size) {
    volatile unsigned char* to = static_cast<volatile unsigned char*>(target);
    for (std::size_t i = 0; i < size; ++i) to[i] = value;
}

}  // namespace dmao::cuda_on_host
