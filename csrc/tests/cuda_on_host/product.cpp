// product SEED: prints "right", "wrong: ..." or "error: ..."; with counts of what was done.
#include "product.cuh"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "random_values.h"

namespace dmao {
namespace {

template <class E>
double error_of_product(int m, int n, int k) {
    const auto a = random_values<E>(m * k), b = random_values<E>(n * k);
    std::unique_ptr<float[]> c(new float[m * n]);
    const cuda_on_host::Dim3 grid{static_cast<unsigned>((n + kTile - 1) / kTile),
                                  static_cast<unsigned>((m + kTile - 1) / kTile)};
    cuda_on_host::run(product<E>, grid, {kProductThreads}, kStages * kStageBytes, a.get(), b.get(),
                      c.get(), m, n, k);
    double largest = 0.0;
    for (int i = 0; i < m; ++i) {
        for (int j = 0; j < n; ++j) {
            double sum = 0.0;
            for (int q = 0; q < k; ++q) {
                sum += static_cast<double>(ptx::widen(a[i * k + q])) * ptx::widen(b[j * k + q]);
            }
            const double error = std::fabs(c[i * n + j] - sum);
            if (!(error <= largest)) largest = error;  // NaN, too
        }
    }
    return largest;
}

bool sum_is_right(int n) {
    std::vector<unsigned> x(n);
    unsigned expected = 0, total = 0;
    for (unsigned& value : x) expected += value = random_bits();
    cuda_on_host::run(sum_up, {static_cast<unsigned>((n + 255) / 256)}, {256}, 0, x.data(), &total,
                      n);
    return total == expected;
}

int check() {
    double largest = 0.0;
    constexpr int kSizes[][3] = {{64, 64, 32}, {65, 130, 72}, {1, 7, 8}, {128, 64, 200}};
    for (const auto [m, n, k] : kSizes) {
        const double errors[] = {error_of_product<bfloat16>(m, n, k),
                                 error_of_product<float16>(m, n, k)};
        for (const double error : errors) {
            if (!(error <= largest)) largest = error;
        }
    }
    if (!(largest < 1e-4)) {
        std::printf("wrong: product, error %g\n", largest);
        return 1;
    }
    for (const int n : {1, 256, 1000}) {
        if (!sum_is_right(n)) {
            std::printf("wrong: sum of %d\n", n);
            return 1;
        }
    }
    const cuda_on_host::Counts counts = cuda_on_host::counts();
    std::printf("right: %ld mma, %ld ldmatrix, %ld conflicts\n", counts.matrix_products,
                counts.matrix_loads, counts.bank_conflicts);
    return 0;
}

}  // namespace
}  // namespace dmao

int main(int, char** arguments) {
    dmao::cuda_on_host::set_schedule(std::atoi(arguments[1]));
    try {
        return dmao::check();
    } catch (const std::runtime_error& error) {
        std::printf("error: %s\n", error.what());
        return 66;
    }
}
