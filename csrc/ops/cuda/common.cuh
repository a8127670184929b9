// What every operation of csrc/ops/cuda needs. Each file is compiled twice: by nvcc for tensors on
// GPUs, and by the host's compiler for tensors on the CPU, where its kernels run on
// dmao/cuda_on_host.h. Both register in the namespace dmao_cuda, for different devices.
#pragma once

#include "../common.h"
#include "launch.cuh"

#if defined(__CUDACC__)
#include <torch/csrc/stable/accelerator.h>
#define DMAO_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(dmao_cuda, CUDA, m)
#else
#define DMAO_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(dmao_cuda, CPU, m)
#endif

namespace dmao {

// The device of a tensor, current as long as this lives.
class OnDevice {
  public:
#if defined(__CUDACC__)
    explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
        const int device = tensor.get_device_index();
        gpu.stream = torch::stable::accelerator::getCurrentStream(device).nativeHandle();
        gpu.architecture = 10 * attribute(device, cudaDevAttrComputeCapabilityMajor) +
                           attribute(device, cudaDevAttrComputeCapabilityMinor);
        gpu.processors = attribute(device, cudaDevAttrMultiProcessorCount);
    }
#else
    explicit OnDevice(const Tensor&) : gpu(gpu_on_host()) {}
#endif

    Gpu gpu{};

#if defined(__CUDACC__)
  private:
    static int attribute(int device, cudaDeviceAttr which) {
        int value = 0;
        check_cuda(cudaDeviceGetAttribute(&value, which, device), "properties of a GPU");
        return value;
    }
    torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// Where the kernels of this file run.
inline bool is_here(const Tensor& tensor) {
#if defined(__CUDACC__)
    return tensor.is_cuda();
#else
    return tensor.is_cpu();
#endif
}

// On the device of `like`, and of this dtype.
inline void check_beside(const char* op, const std::string& argument, const Tensor& tensor,
                         const Tensor& like, ScalarType dtype) {
    check(is_here(tensor) && tensor.get_device_index() == like.get_device_index(), op, ": ",
          argument, " must be on the device of the first tensor");
    check(tensor.scalar_type() == dtype, op, ": ", argument, " must be ",
          torch::headeronly::toString(dtype), ", got ",
          torch::headeronly::toString(tensor.scalar_type()));
}

// Returns use(E{}) with the type of a tensor's elements; float stands for products in tf32.
template <class Use>
auto with_elements(const char* op, const std::string& argument, const Tensor& tensor,
                   const Use& use) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float:
            return use(float{});
        case ScalarType::BFloat16:
            return use(bfloat16{});
        case ScalarType::Half:
            return use(float16{});
        default:
            throw std::runtime_error(std::string(op) + ": " + argument +
                                     " must be float32, bfloat16 or float16, got " +
                                     torch::headeronly::toString(tensor.scalar_type()));
    }
}

}  // namespace dmao
