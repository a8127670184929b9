// What the programs of linear layers share: matrices with gaps, results, comparison.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "linear_products.cuh"
#include "random_values.h"

namespace dmao {

using Element = bfloat16;  // the other types differ in products.cuh, quads.cuh and ptx.cuh only

inline int random_below(int count) {
    return static_cast<int>(random_bits() % static_cast<unsigned>(count));
}

inline void fill_with_nan(void* memory, std::size_t bytes) { std::memset(memory, 0xFF, bytes); }

// Random values in rows `stride` apart, in an allocation of exactly their size; between them NaN.
struct Given {
    std::unique_ptr<Element[]> values;
    int rows, columns, stride;

    Given(int rows, int columns, int stride) : rows(rows), columns(columns), stride(stride) {
        const int size = rows > 0 ? (rows - 1) * stride + columns : 0;
        values = random_values<Element>(size);
        for (int i = 0; i < size; ++i) {
            if (i % stride >= columns) values[i].bits = 0xFFFF;
        }
    }
    Given(int rows, int columns) : Given(rows, columns, columns > 0 ? columns : 1) {}

    Rows<Element> view() const { return {values.get(), stride, rows, columns}; }
    Element& operator()(int row, int column) { return values[row * stride + column]; }
    double at(int row, int column) const { return ptx::widen(values[row * stride + column]); }
};

// Zeros if only some of them are to be written, else NaN.
struct Result {
    std::unique_ptr<Element[]> values;
    int rows, columns;

    Result(int rows, int columns, bool zeros = false)
        : values(new Element[rows * columns]), rows(rows), columns(columns) {
        std::memset(values.get(), zeros ? 0 : 0xFF, sizeof(Element) * rows * columns);
    }
    double at(int row, int column) const { return ptx::widen(values[row * columns + column]); }
};

template <class... Parts>
[[noreturn]] void wrong(const char* format, Parts... parts) {
    char text[200] = "wrong: ";
    std::snprintf(text + 7, sizeof(text) - 7, format, parts...);
    throw std::logic_error(text);
}

// Against expected(row, column); `scale` is what sums of their terms come to.
inline void compare(const char* name, const Result& found, double scale,
                    const std::function<double(int, int)>& expected) {
    for (int i = 0; i < found.rows; ++i) {
        for (int j = 0; j < found.columns; ++j) {
            const double truth = expected(i, j), error = std::fabs(found.at(i, j) - truth);
            if (error <= 0.016 * (std::fabs(truth) + scale)) continue;
            wrong("%s [%d, %d] of [%d, %d] is %g, not %g", name, i, j, found.rows, found.columns,
                  found.at(i, j), truth);
        }
    }
}

// Runs work(run) twice: to count, then in so much memory.
inline void run_counted(int processors, const std::function<void(LinearRun&)>& work) {
    const Gpu gpu{80, processors, nullptr};
    LinearRun counting(gpu);
    work(counting);
    const std::size_t bytes = static_cast<std::size_t>(counting.bytes());
    std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(256, bytes + 256),
                                                       &std::free);
    fill_with_nan(memory.get(), bytes + 256);
    LinearRun run(gpu, memory.get());
    work(run);
    if (run.bytes() != counting.bytes()) wrong("%zu bytes of scratch were counted", bytes);
    for (std::size_t i = bytes; i < bytes + 256; ++i) {
        if (static_cast<unsigned char*>(memory.get())[i] != 0xFF) wrong("scratch is overrun");
    }
}

// As elements are.
inline double rounded(double value) {
    return ptx::widen(ptx::narrow<Element>(static_cast<float>(value)));
}

inline double activated(Activation activation, double h) {
    if (activation == Activation::silu) return h / (1.0 + std::exp(-h));
    if (activation == Activation::relu) return h > 0.0 ? h : 0.0;
    if (activation == Activation::gelu) return 0.5 * h * (1.0 + std::erf(h * std::sqrt(0.5)));
    return h;
}
inline double slope(Activation activation, double h) {
    const double s = 1.0 / (1.0 + std::exp(-h));
    if (activation == Activation::silu) return s + h * s * (1.0 - s);
    if (activation == Activation::relu) return h > 0.0 ? 1.0 : 0.0;
    if (activation == Activation::gelu) {
        return 0.5 * (1.0 + std::erf(h * std::sqrt(0.5))) +
               h * std::exp(-0.5 * h * h) * 0.3989422804014327;
    }
    return 1.0;
}

// main of a program: check(seed) throws what is wrong.
inline int run_checks(char** arguments, void (*check_all)()) {
    cuda_on_host::set_schedule(std::atoi(arguments[1]));
    try {
        check_all();
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    const cuda_on_host::Counts counts = cuda_on_host::counts();
    std::printf("right: %ld mma, %ld ldmatrix, %ld conflicts\n", counts.matrix_products,
                counts.matrix_loads, counts.bank_conflicts);
    return 0;
}

}  // namespace dmao
