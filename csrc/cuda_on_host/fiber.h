// A flow of control with a stack of its own, which runs until it switches to another one.
#pragma once

#include <cstddef>

#include "sanitizers.h"

namespace dmao::cuda_on_host {

class Fiber {
  public:
    static constexpr std::size_t kStack = 64 * 1024, kGuard = 4096;

    // The one that runs already, on the stack of the OS thread.
    Fiber();
    // One that will call `entry`, which must not return, on the stack of kStack bytes from `stack`
    // on, whose first kGuard bytes nobody may touch.
    Fiber(char* stack, void (*entry)());
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // Goes on where `next` had stopped; returns when somebody switches back. last: nobody will.
    void switch_to(Fiber& next, bool last = false);
    // The first thing that `entry` does.
    static void begin();

  private:
    void* stack_pointer_ = nullptr;
    const void* stack_ = nullptr;
    std::size_t size_ = 0;
    void* fake_stack_ = nullptr;  // AddressSanitizer's
    void* thread_ = nullptr;      // ThreadSanitizer's
    bool owned_ = false;
};

}  // namespace dmao::cuda_on_host
