// Launches of kernels: on a GPU where nvcc compiles this, else on the host (dmao/cuda_on_host.h).
#pragma once

#include <cstddef>

#include "ptx.cuh"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#else
#include <cstdio>
#include <cstdlib>
#endif

namespace dmao {

// Where kernels are launched, and what tiles are chosen by.
struct Gpu {
    int architecture;  // ten times the compute capability: 80, 86, 89, 90, 100, 120
    int processors;    // streaming multiprocessors
    void* stream;      // cudaStream_t
};

struct Grid {
    unsigned x = 1, y = 1, z = 1;
};

#if defined(__CUDACC__)

inline void check_cuda(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string("dmao_kernels: ") + what + ": " +
                             cudaGetErrorString(error));
}

inline constexpr std::size_t kSharedWithoutAsking = 48 << 10;

// Of the current device.
template <auto kernel, class... Arguments>
void launch(const Gpu& gpu, Grid grid, int threads, std::size_t shared_bytes,
            Arguments... arguments) {
    if (shared_bytes > kSharedWithoutAsking) {
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)),
                   "shared memory of a kernel");
    }
    kernel<<<dim3(grid.x, grid.y, grid.z), threads, shared_bytes,
             static_cast<cudaStream_t>(gpu.stream)>>>(arguments...);
    check_cuda(cudaGetLastError(), "launch of a kernel");
}

#else

// The GPU to choose tiles for: "architecture,processors" in DMAO_CUDA_GPU.
inline Gpu gpu_on_host() {
    Gpu gpu{80, 4, nullptr};
    const char* text = std::getenv("DMAO_CUDA_GPU");
    if (text != nullptr) std::sscanf(text, "%d,%d", &gpu.architecture, &gpu.processors);
    return gpu;
}

template <auto kernel, class... Arguments>
void launch(const Gpu&, Grid grid, int threads, std::size_t shared_bytes, Arguments... arguments) {
    cuda_on_host::run(kernel, {grid.x, grid.y, grid.z}, {static_cast<unsigned>(threads)},
                      shared_bytes, arguments...);
}

#endif

}  // namespace dmao
