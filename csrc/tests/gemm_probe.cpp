// cpu/gemm.h as plain C functions, for tests/native/test_gemm.py and benchmarks/gemm.py.
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

// `repeats` products of tiles that are packed already.
template <Order order, class E>
void repeat(std::int64_t repeats, std::int64_t m, std::int64_t n, std::int64_t depth, const E* a,
            const E* b, float* c) {
    for (; repeats > 0; --repeats) {
        multiply<order>(m, n, depth, a, order == Order::row ? depth : m, b, c, n);
    }
}

}  // namespace

extern "C" {

int panel_width() { return kPanel; }

// Whether bfloat16 is multiplied as such.
int multiplies_bfloat16() { return kPerWord<Operand<bfloat16>> == 2; }

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

void repeat_float32(std::int64_t repeats, bool a_transposed, std::int64_t m, std::int64_t n,
                    std::int64_t depth, const float* a, const float* b, float* c) {
    a_transposed ? repeat<Order::column>(repeats, m, n, depth, a, b, c)
                 : repeat<Order::row>(repeats, m, n, depth, a, b, c);
}

void repeat_bfloat16(std::int64_t repeats, bool a_transposed, std::int64_t m, std::int64_t n,
                     std::int64_t depth, const void* a, const void* b, float* c) {
    using E = Operand<bfloat16>;
    const E *left = static_cast<const E*>(a), *right = static_cast<const E*>(b);
    a_transposed ? repeat<Order::column>(repeats, m, n, depth, left, right, c)
                 : repeat<Order::row>(repeats, m, n, depth, left, right, c);
}

// The most multiply-adds that this instruction set can do: 12 independent sums, no memory.
// Returns flops; `kind` 0: float, 1: Operand<bfloat16>.
double peak(std::int64_t repeats, int kind, float* sink) {
    constexpr int kSums = 12;
    decltype(Vec::v) sums[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = Vec(static_cast<float>(i)).v;
    Vec a(0.5f), b(0.25f);
    const auto run = [&](auto element) {
        for (std::int64_t i = 0; i < repeats; ++i) {
            asm volatile("" : "+m"(*sink));
#pragma GCC unroll 12
            for (int j = 0; j < kSums; ++j) sums[j] = multiply_add(&element, a, b, sums[j]).v;
        }
        return 2.0 * kPerWord<decltype(element)> * Vec::width * kSums *
               static_cast<double>(repeats);
    };
    const double flops = kind == 0 ? run(float{}) : run(Operand<bfloat16>{});
    for (int i = 0; i < kSums; ++i) *sink += sum(sums[i]);
    return flops;
}
}
