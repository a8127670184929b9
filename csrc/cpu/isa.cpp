// Which kernels run on this machine. Compiled with the baseline flags, into both the operations and
// the host module.
#include "dmao/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace dmao {
namespace {

#if defined(__x86_64__)
constexpr int kBuilt = 4;

bool supported(Isa isa) {
    __builtin_cpu_init();
    switch (isa) {
        case Isa::portable:
            return true;
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        case Isa::avx512:
            return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl");
        case Isa::avx512_bf16:
            return supported(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
    }
    return false;
}
#else
constexpr int kBuilt = 1;

bool supported(Isa isa) { return isa == Isa::portable; }
#endif

Isa best_isa() {
    for (int i = kBuilt - 1; i > 0; --i) {
        if (supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
    }
    return Isa::portable;
}

Isa choose_isa() {
    const char* forced = std::getenv("DMAO_CPU_CAPABILITY");
    if (forced == nullptr || *forced == '\0') return best_isa();
    for (int i = 0; i < kBuilt; ++i) {
        const Isa isa = static_cast<Isa>(i);
        if (std::strcmp(forced, isa_name(isa)) != 0) continue;
        if (supported(isa)) return isa;
        throw std::runtime_error(std::string("DMAO_CPU_CAPABILITY: this CPU does not support ") +
                                 forced + "; the best it supports is " + isa_name(best_isa()));
    }
    throw std::runtime_error(std::string("DMAO_CPU_CAPABILITY: must be one of ") + built_isas() +
                             ", got '" + forced + "'");
}

}  // namespace

const char* isa_name(Isa isa) {
    constexpr const char* names[] = {"portable", "avx2", "avx512", "avx512_bf16"};
    return names[static_cast<int>(isa)];
}

const char* built_isas() { return kBuilt == 4 ? "portable avx2 avx512 avx512_bf16" : "portable"; }

Isa active_isa() {
    static const Isa isa = choose_isa();
    return isa;
}

}  // namespace dmao
