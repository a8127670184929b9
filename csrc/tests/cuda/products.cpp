// products SEED: every layout and element type of TileProduct, on matrices that fill their tiles
// and on others; prints "right: ... conflicts", "wrong: ..." or "error: ...".
#include "products.cuh"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>

#include "random_values.h"

namespace dmao {
namespace {

constexpr int kRows = 64, kColumns = 64, kDepth = 32;
template <class E, Layout a, Layout b>
using Product = TileProduct<E, a, b, kRows, kColumns, kDepth, 2, 2, 3>;

// The chunks of a matrix whose lines are `wide` (of k) or `deep` (across), from line or column
// `first` on.
template <class E, Layout layout>
struct Matrix {
    const E* values;
    int wide, deep, first;

    auto operator()(int step) const {
        return [this, step](int line, int chunk) -> Chunk {
            const int place = chunk * kPerChunk<E>;
            const bool along = layout == Layout::lines_of_k;
            const int i = first + (along ? line : place),
                      k = step * kDepth + (along ? place : line);
            const bool inside = along ? i < wide : k < deep;
            const int left = along ? deep - k : wide - i;
            if (!inside || left <= 0) return {values, 0};
            const int at = along ? i * deep + k : k * wide + i;
            const int count = left < kPerChunk<E> ? left : kPerChunk<E>;
            return {values + at, count * static_cast<int>(sizeof(E))};
        };
    }
    double at(int i, int k) const {
        return ptx::widen(layout == Layout::lines_of_k ? values[i * deep + k]
                                                       : values[k * wide + i]);
    }
};

template <class E, Layout a, Layout b>
void multiply(Matrix<E, a> left, Matrix<E, b> right, float* c) {
    DMAO_DYNAMIC_SHARED(shared);
    left.first = static_cast<int>(blockIdx.y) * kRows;
    right.first = static_cast<int>(blockIdx.x) * kColumns;
    Product<E, a, b> product;
    product.add(shared, (left.deep + kDepth - 1) / kDepth, left, right);
    product.template visit_runs<8>(shared, [&](int row, int column, const float* run) {
        row += left.first;
        column += right.first;
        if (row >= left.wide) return;
        for (int i = 0; i < 8 && column + i < right.wide; ++i) {
            c[row * right.wide + column + i] = run[i];
        }
    });
}

template <class E, Layout a, Layout b>
void check(int m, int n, int k, double tolerance) {
    const auto x = random_values<E>(m * k), y = random_values<E>(n * k);
    const Matrix<E, a> left{x.get(), m, k, 0};
    const Matrix<E, b> right{y.get(), n, k, 0};
    std::unique_ptr<float[]> c(new float[m * n]);
    const cuda_on_host::Dim3 grid{static_cast<unsigned>((n + kColumns - 1) / kColumns),
                                  static_cast<unsigned>((m + kRows - 1) / kRows)};
    cuda_on_host::run(multiply<E, a, b>, grid, {Product<E, a, b>::kThreads},
                      Product<E, a, b>::kSharedBytes, left, right, c.get());
    for (int i = 0; i < m * n; ++i) {
        double sum = 0.0;
        for (int q = 0; q < k; ++q) sum += left.at(i / n, q) * right.at(i % n, q);
        if (std::fabs(c[i] - sum) < tolerance) continue;
        char text[160];
        std::snprintf(text, sizeof(text),
                      "wrong: element %zu of [%d, %d] = a b, k %d, layouts %d %d", sizeof(E), m, n,
                      k, static_cast<int>(a), static_cast<int>(b));
        throw std::logic_error(text);
    }
}

template <class E>
void check_all(double tolerance) {
    constexpr int u = kPerChunk<E>;
    constexpr Layout along = Layout::lines_of_k, across = Layout::lines_across;
    constexpr int sizes[][3] = {{64, 128, 64}, {64 + 3 * u, 5 * u, 9 * u}, {u, u, u}};
    for (const auto& [m, n, k] : sizes) {
        check<E, along, along>(m, n, k, tolerance);
        check<E, along, across>(m, n, k, tolerance);
        check<E, across, along>(m, n, k, tolerance);
        check<E, across, across>(m, n, k, tolerance);
    }
}

}  // namespace
}  // namespace dmao

int main(int, char** arguments) {
    dmao::cuda_on_host::set_schedule(std::atoi(arguments[1]));
    try {
        dmao::check_all<dmao::bfloat16>(1e-5);
        dmao::check_all<dmao::float16>(1e-5);
        dmao::check_all<float>(1e-2);  // of tf32: 2^-11 of 64 products
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    const dmao::cuda_on_host::Counts counts = dmao::cuda_on_host::counts();
    std::printf("right: %ld mma, %ld ldmatrix, %ld conflicts\n", counts.matrix_products,
                counts.matrix_loads, counts.bank_conflicts);
}
