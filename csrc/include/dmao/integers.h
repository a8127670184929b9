// Arithmetic of sizes. Internal to every file that includes it: of a shared inline function the
// linker would keep one copy, compiled with the flags of any instruction set (see types.h).
#pragma once

#include <cstdint>

namespace dmao {
namespace {

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }
constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

}  // namespace
}  // namespace dmao
