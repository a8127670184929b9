// One kernel source, several instruction sets.
//
// CMake compiles every csrc/cpu/<op>.cpp once per instruction set, each time with that set's flags
// and with DMAO_ISA_NAMESPACE naming the namespace its symbols live in. Because the linker keeps
// ONE copy of an inline function that several translation units define, whatever is inline in such
// a unit must live in DMAO_ISA_NAMESPACE: otherwise a machine without AVX-512 could be handed a
// copy that was compiled for it. The same holds for templates of the standard library, so kernels
// use none; std:: containers belong into csrc/ops.
#pragma once

namespace dmao {

// In ascending order of preference.
enum class Isa : int { portable, avx2, avx512, avx512_bf16 };

const char* isa_name(Isa isa);

// The instruction set whose kernels run: the best that is built and supported by this CPU, or what
// the environment variable DMAO_CPU_CAPABILITY names. Throws std::runtime_error when that name is
// unknown or not supported here.
Isa active_isa();

// The names of the instruction sets that are compiled in, separated by spaces.
const char* built_isas();

}  // namespace dmao

// DMAO_DECLARE_CPU_KERNEL(name, Signature), Signature a function type in dmao, declares
// dmao::<isa>::name for every compiled instruction set; DMAO_CPU_KERNEL(name) is a pointer to the
// one that this machine is to run.
#if defined(__x86_64__)
#define DMAO_DECLARE_CPU_KERNEL(name, Signature) \
    namespace dmao::portable {                   \
    Signature name;                              \
    }                                            \
    namespace dmao::avx2 {                       \
    Signature name;                              \
    }                                            \
    namespace dmao::avx512 {                     \
    Signature name;                              \
    }                                            \
    namespace dmao::avx512_bf16 {                \
    Signature name;                              \
    }
#define DMAO_CPU_KERNEL(name)                                                    \
    [] {                                                                         \
        constexpr decltype(&::dmao::portable::name) table[] = {                  \
            &::dmao::portable::name, &::dmao::avx2::name, &::dmao::avx512::name, \
            &::dmao::avx512_bf16::name};                                         \
        return table[static_cast<int>(::dmao::active_isa())];                    \
    }()
#else
#define DMAO_DECLARE_CPU_KERNEL(name, Signature) \
    namespace dmao::portable {                   \
    Signature name;                              \
    }
#define DMAO_CPU_KERNEL(name) (&::dmao::portable::name)
#endif
