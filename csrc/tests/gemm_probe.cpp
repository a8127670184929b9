// cpu/gemm.h as plain C functions, for tests/native/test_gemm.py and benchmarks/micro_kernel.py.
#include "../cpu/gemm.h"

using namespace dmao;
using namespace dmao::DMAO_ISA_NAMESPACE;

namespace {

// C[m, n] += A B, or C = start + A B. a holds A [m, depth] or, for Order::column, A^T; b likewise;
// rows and columns (null: all) select from the matrix in b. packed_b and packed_a have room for the
// packed operands, which are stored from their beginning on.
template <class T>
void product(Order order, bool b_transposed, std::int64_t m, std::int64_t n, std::int64_t depth,
             const T* a, std::int64_t a_stride, const T* b, std::int64_t b_stride,
             const std::int32_t* b_rows, const std::int32_t* b_columns, float* packed_a,
             float* packed_b, float* c, std::int64_t c_stride, const float* start) {
    using E = Operand<T>;
    E* panel = reinterpret_cast<E*>(packed_b);
    const Selection<T> matrix{b, b_stride, b_rows, b_columns};
    for (std::int64_t first = 0; first < n; first += kPanel) {
        const std::int64_t columns = smaller(kPanel, n - first);
        b_transposed ? pack_panel_transposed(matrix, 0, depth, first, columns, panel)
                     : pack_panel(matrix, 0, depth, first, columns, panel);
        panel += padded_depth<E>(depth) * padded_columns(columns);
    }
    const E* right = reinterpret_cast<const E*>(packed_b);
    E* left = reinterpret_cast<E*>(packed_a);
    if (order == Order::column) {
        const std::int64_t stride = padded_columns(m);
        pack_columns(a, a_stride, depth, m, left, stride);
        multiply<Order::column>(m, n, depth, left, stride, right, c, c_stride, start);
    } else if (order == Order::strips) {
        const std::int64_t stride = kRows * padded_depth<E>(depth);
        for (std::int64_t row = 0; row < m; row += kRows) {
            pack_strip(a + row * a_stride, a_stride, depth, smaller(kRows, m - row),
                       left + row / kRows * stride);
        }
        multiply<Order::strips>(m, n, depth, left, stride, right, c, c_stride, start);
    } else {
        const std::int64_t count = m == 0 ? 0 : (m - 1) * a_stride + depth;
        multiply<Order::row>(m, n, depth, as_operand(a, count, left), a_stride, right, c, c_stride,
                             start);
    }
}

// The signature of PyTorch's brgemm: C (+)= A B, all row by row with the given strides.
using Brgemm = void(std::int64_t m, std::int64_t n, std::int64_t depth, std::int64_t a_stride,
                    std::int64_t b_stride, std::int64_t c_stride, bool add, const float* a,
                    const float* b, float* c, bool paired);

}  // namespace

extern "C" {

void product_float32(int order, bool b_transposed, std::int64_t m, std::int64_t n,
                     std::int64_t depth, const float* a, std::int64_t a_stride, const float* b,
                     std::int64_t b_stride, const std::int32_t* b_rows,
                     const std::int32_t* b_columns, float* packed_a, float* packed_b, float* c,
                     std::int64_t c_stride, const float* start) {
    product(static_cast<Order>(order), b_transposed, m, n, depth, a, a_stride, b, b_stride, b_rows,
            b_columns, packed_a, packed_b, c, c_stride, start);
}

void product_bfloat16(int order, bool b_transposed, std::int64_t m, std::int64_t n,
                      std::int64_t depth, const bfloat16* a, std::int64_t a_stride,
                      const bfloat16* b, std::int64_t b_stride, const std::int32_t* b_rows,
                      const std::int32_t* b_columns, float* packed_a, float* packed_b, float* c,
                      std::int64_t c_stride, const float* start) {
    product(static_cast<Order>(order), b_transposed, m, n, depth, a, a_stride, b, b_stride, b_rows,
            b_columns, packed_a, packed_b, c, c_stride, start);
}

// `repeats` products of tiles that are packed already.
void repeat_float32(std::int64_t repeats, int order, std::int64_t m, std::int64_t n,
                    std::int64_t depth, const float* a, const float* b, float* c) {
    for (; repeats > 0; --repeats) {
        if (order == static_cast<int>(Order::row)) {
            multiply<Order::row>(m, n, depth, a, depth, b, c, n);
        } else if (order == static_cast<int>(Order::column)) {
            multiply<Order::column>(m, n, depth, a, padded_columns(m), b, c, n);
        } else {
            multiply<Order::strips>(m, n, depth, a, kRows * depth, b, c, n);
        }
    }
}

void repeat_brgemm(std::int64_t repeats, Brgemm* brgemm, std::int64_t m, std::int64_t n,
                   std::int64_t depth, const float* a, const float* b, float* c) {
    for (; repeats > 0; --repeats) brgemm(m, n, depth, depth, n, n, true, a, b, c, false);
}
}
