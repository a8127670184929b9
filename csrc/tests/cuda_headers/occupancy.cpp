// occupancy ARCHITECTURE PROCESSORS THREADS SHARED SHARED_OF_A_BLOCK: how many blocks run at a time
// on one processor, by NVIDIA's own header; prints lines "registers threads shared blocks". The
// arguments after the architecture are what cudaGetDeviceProperties would tell.
#include <cuda_occupancy.h>

#include <cstdio>
#include <cstdlib>
#include <random>

namespace {

cudaOccDeviceProp device;

void print(int registers, int threads, int shared) {
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin;
    kernel.numBlockBarriers = 1;
    const cudaOccDeviceState state;
    cudaOccResult result;
    const cudaOccError error =
        cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
    if (error != CUDA_OCC_SUCCESS) {
        std::printf("error %d\n", static_cast<int>(error));
        std::exit(1);
    }
    std::printf("%d %d %d %d\n", registers, threads, shared, result.activeBlocksPerMultiprocessor);
}

}  // namespace

int main(int, char** arguments) {
    const int architecture = std::atoi(arguments[1]);
    device.computeMajor = architecture / 10;
    device.computeMinor = architecture % 10;
    device.maxThreadsPerBlock = 1024;
    device.numSms = std::atoi(arguments[2]);
    device.maxThreadsPerMultiprocessor = std::atoi(arguments[3]);
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = std::atoi(arguments[4]);
    device.sharedMemPerBlockOptin = std::atoi(arguments[5]);
    device.reservedSharedMemPerBlock = 1024;
    const int most = static_cast<int>(device.sharedMemPerBlockOptin);
    for (int registers = 16; registers <= 255; ++registers) {
        for (int threads = 32; threads <= 1024; threads += 32) print(registers, threads, 0);
    }
    for (int shared = 0; shared <= most; shared += 128) {
        print(16, 32, shared);
        print(64, 256, shared);
    }
    std::mt19937 random(1);
    for (int i = 0; i < 20000; ++i) {
        const int registers = 16 + static_cast<int>(random() % 240);
        const int threads = 32 * (1 + static_cast<int>(random() % 32));
        print(registers, threads, static_cast<int>(random() % (most + 1)));
    }
}
