// cute_layouts: what CuTe's traits say of the instructions that csrc/cuda/ptx.cuh has, as arrays
// for csrc/tests/cuda/lane_layouts.cpp.
#include <cstdio>
#include <cute/tensor.hpp>

namespace {

// name[lane][value]: the place of a lane's value in a matrix, whose columns lie one after the
// other.
template <class Layout>
void print(const char* name, const Layout& layout, int values) {
    std::printf("constexpr int %s[32][%d] = {\n", name, values);
    for (int lane = 0; lane < 32; ++lane) {
        std::printf("    {");
        for (int i = 0; i < values; ++i) std::printf("%d, ", static_cast<int>(layout(lane, i)));
        std::printf("},\n");
    }
    std::printf("};\n");
}

template <class Operation>
void print_product(const char* a, const char* b, const char* c, int values) {
    using Traits = cute::MMA_Traits<Operation>;
    print(a, typename Traits::ALayout{}, values);
    print(b, typename Traits::BLayout{}, values / 2);
    print(c, typename Traits::CLayout{}, 4);
}

// name[lane][i]: which 16-bit element, of the 8 times 32 that lanes give the addresses of, is the
// i-th that a lane gets.
template <class Operation>
void print_load(const char* name) {
    using Traits = cute::Copy_Traits<Operation>;
    const typename Traits::SrcLayout source{};
    const typename Traits::DstLayout target{};
    const auto found = [&](int lane, int i) {
        for (int element = 0; element < 256; ++element) {
            if (source(element / 8, element % 8 * 16) == target(lane, i * 16)) return element;
        }
        return -1;
    };
    print(name, found, 8);
}

}  // namespace

int main() {
    print_product<cute::SM80_16x8x16_F32BF16BF16F32_TN>("kA16", "kB16", "kC16", 8);
    print_product<cute::SM80_16x8x8_F32TF32TF32F32_TN>("kA8", "kB8", "kC8", 4);
    print_load<cute::SM75_U32x4_LDSM_N>("kRows");
    print_load<cute::SM75_U16x8_LDSM_T>("kColumns");
}
