#include "fiber.h"

#if !defined(__x86_64__)
#error "CUDA kernels on the host need an x86-64 processor: switching stacks is written for it"
#endif

// The registers that a function must keep, in the order of the System V ABI; mxcsr and the x87
// control word are never changed here.
asm(R"(
.text
.globl dmao_switch_stack
.type dmao_switch_stack, @function
dmao_switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size dmao_switch_stack, .-dmao_switch_stack
)");
extern "C" void dmao_switch_stack(void** save, void* next);

namespace dmao::cuda_on_host {
namespace {

constexpr int kSavedRegisters = 6;
constexpr unsigned kNoOrder = 1;  // for ThreadSanitizer: only barriers order what fibers do
thread_local Fiber* left = nullptr;

}  // namespace

Fiber::Fiber() {
    if constexpr (kTsan) thread_ = __tsan_get_current_fiber();
}

Fiber::Fiber(char* stack, void (*entry)()) : stack_(stack), size_(kStack), owned_(true) {
    // As if `entry` had been called: the stack pointer is 8 beside a multiple of 16.
    void** top = reinterpret_cast<void**>(stack + kStack - 16);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
    stack_pointer_ = top;
    if constexpr (kTsan) thread_ = __tsan_create_fiber(0);
}

Fiber::~Fiber() {
    if constexpr (kTsan) {
        if (owned_) __tsan_destroy_fiber(thread_);
    }
}

void Fiber::switch_to(Fiber& next, bool last) {
    left = this;
    if constexpr (kTsan) __tsan_switch_to_fiber(next.thread_, kNoOrder);
    if constexpr (kAsan) {
        __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, next.stack_, next.size_);
    }
    dmao_switch_stack(&stack_pointer_, next.stack_pointer_);
    if constexpr (kAsan) __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
}

void Fiber::begin() {
    if constexpr (kAsan) {
        const void* stack = nullptr;
        std::size_t size = 0;
        __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
        if (left->stack_ == nullptr) {  // the OS thread's own, which nobody knew before
            left->stack_ = stack;
            left->size_ = size;
        }
    }
}

}  // namespace dmao::cuda_on_host
