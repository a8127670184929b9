// The numbers of Philox4x32-7, for its two implementations: philox.h (CPU) and
// csrc/cuda/philox.cuh.
#pragma once

#include <cstdint>

namespace dmao {

inline constexpr int kPhiloxRounds = 7;
inline constexpr std::uint32_t kPhiloxMultiplier0 = 0xD2511F53, kPhiloxMultiplier1 = 0xCD9E8D57;
// What every round adds to the two words of the key.
inline constexpr std::uint32_t kPhiloxStep0 = 0x9E3779B9, kPhiloxStep1 = 0xBB67AE85;

}  // namespace dmao
