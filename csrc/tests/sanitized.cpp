// The CPU kernels on random problems, for a build with -fsanitize=address,undefined
// (tests/native/test_sanitized.py). Every array is an allocation of its own of exactly the promised
// size, so that a read or a write beside it is seen.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <vector>

#include "dmao/component_ffn.h"
#include "dmao/importance.h"

using namespace dmao;
namespace kernels = dmao::DMAO_ISA_NAMESPACE;

namespace {

std::mt19937_64 random_bits(1);

std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(random_bits() % static_cast<std::uint64_t>(bound));
}

bool coin() { return below(2) == 0; }

std::int64_t one_of(std::initializer_list<std::int64_t> values) {
    return values.begin()[below(static_cast<std::int64_t>(values.size()))];
}

// A tensor of numbers in [-1, 1].
std::unique_ptr<char[]> tensor(std::int64_t count, DType dtype) {
    const std::size_t size = dtype == DType::float32 ? 4 : 2;
    std::unique_ptr<char[]> values(new char[count * size]);
    for (std::int64_t i = 0; i < count; ++i) {
        const float value = static_cast<float>(below(2001)) / 1000.0f - 1.0f;
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        const std::uint16_t high = static_cast<std::uint16_t>(bits >> 16);
        std::memcpy(values.get() + i * size,
                    size == 4 ? static_cast<const void*>(&bits) : static_cast<const void*>(&high),
                    size);
    }
    return values;
}

// Scratch memory as the operation hands it out: aligned, not initialised (here: NaN).
class Scratch {
  public:
    explicit Scratch(std::int64_t floats) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, std::max<std::size_t>(floats * sizeof(float), 1)) != 0) {
            std::abort();
        }
        std::memset(memory, 0xff, floats * sizeof(float));
        memory_.reset(static_cast<float*>(memory));
    }
    float* get() const { return memory_.get(); }

  private:
    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };
    std::unique_ptr<float, Free> memory_;
};

// One thread, ranges of any length.
const ParallelFor in_turn([](std::int64_t count, std::int64_t, ParallelFor::Body body,
                             void* context) {
    const std::int64_t step = 1 + below(count + 1);
    for (std::int64_t i = 0; i < count; i += step) {
        body(i, std::min(count, i + step), context);
    }
});

// No, some, all or the later half of the stored units.
std::vector<std::int32_t> choose_units(std::int64_t stored) {
    const std::int64_t mode = below(4);
    std::vector<std::int32_t> units;
    for (std::int64_t j = 0; j < stored; ++j) {
        if (mode == 0 || (mode == 1 && coin()) || (mode == 2 && j >= stored / 2)) {
            units.push_back(static_cast<std::int32_t>(j));
        }
    }
    units.shrink_to_fit();
    return units;
}

void run_component_ffn() {
    const auto width = [] { return one_of({0, 1, 3, 8, 15, 16, 17, 33, 47, 64, 97, 193, 200}); };
    ComponentFfn f{};
    const DType dtype = f.dtype = coin() ? DType::float32 : DType::bfloat16;
    f.activation = static_cast<Activation>(below(3));
    f.tokens = one_of({0, 1, 2, 5, 17, 64, 127, 130, 513, 700});
    f.in_width = width();
    f.out_width = width();
    f.stored_hidden = one_of({0, 1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 129, 200});
    const std::vector<std::int32_t> units = choose_units(f.stored_hidden);
    f.hidden = static_cast<std::int64_t>(units.size());
    f.units = units.data();
    f.p = coin() ? 0.0 : 0.3;
    f.seed = random_bits();
    const std::int64_t inputs = f.tokens * f.in_width, outputs = f.tokens * f.out_width;
    const std::int64_t size1 = f.stored_hidden * f.in_width, size2 = f.stored_hidden * f.out_width;
    const auto x = tensor(inputs, dtype), w1 = tensor(size1, dtype), w2 = tensor(size2, dtype),
               b1 = tensor(f.stored_hidden, dtype), b2 = tensor(f.out_width, dtype),
               y = tensor(outputs, dtype), kept = tensor(f.tokens * f.hidden, dtype),
               grad_y = tensor(outputs, dtype), grad_x = tensor(inputs, dtype),
               grad_w1 = tensor(size1, dtype), grad_w2 = tensor(size2, dtype),
               grad_b1 = tensor(f.stored_hidden, dtype), grad_b2 = tensor(f.out_width, dtype);
    f.x = x.get();
    f.w1 = w1.get();
    f.b1 = coin() ? b1.get() : nullptr;
    f.w2 = w2.get();

    const std::int64_t workers = 1 + below(3);
    for (void* pre_activation : {static_cast<void*>(nullptr), static_cast<void*>(kept.get())}) {
        const ComponentFfnForward problem{f, coin() ? b2.get() : nullptr, y.get(), pre_activation};
        const Scratch scratch(kernels::component_ffn_forward_scratch(problem, workers));
        kernels::component_ffn_forward(problem, {scratch.get(), workers}, in_turn);
    }
    const ComponentFfnBackward problem{f,
                                       grad_y.get(),
                                       kept.get(),
                                       grad_x.get(),
                                       grad_w1.get(),
                                       coin() ? grad_b1.get() : nullptr,
                                       grad_w2.get(),
                                       coin() ? grad_b2.get() : nullptr};
    const Scratch scratch(kernels::component_ffn_backward_scratch(problem, workers));
    kernels::component_ffn_backward(problem, {scratch.get(), workers}, in_turn);
}

void run_importance() {
    const std::int64_t repeats = one_of({1, 2, 3, 7}), components = one_of({1, 2, 5});
    const std::int64_t run = one_of({1, 2, 3, 7, 15, 16, 17, 33, 64, 100});
    ImportanceChunk chunk{};
    chunk.weight_dtype = coin() ? DType::float32 : DType::bfloat16;
    chunk.grad_dtype = coin() ? DType::float32 : DType::bfloat16;
    chunk.run = run;
    chunk.row_length = chunk.column_end = components * run;
    chunk.row_end = repeats;
    if (coin()) {  // part of one row
        chunk.row_begin = repeats - 1;
        chunk.column_begin = below(chunk.row_length);
        chunk.column_end = chunk.column_begin + 1 + below(chunk.row_length - chunk.column_begin);
    }
    const auto weight = tensor(repeats * chunk.row_length, chunk.weight_dtype);
    const auto grad = tensor(repeats * chunk.row_length, chunk.grad_dtype);
    const std::int64_t scored = (chunk.column_end - 1) / run - chunk.column_begin / run + 1;
    const std::unique_ptr<double[]> sums(new double[scored]);
    chunk.weight = weight.get();
    chunk.grad = grad.get();
    chunk.sums = sums.get();
    for (int metric = 0; metric < 4; ++metric) {
        kernels::importance({&chunk, 1, static_cast<Metric>(metric)}, in_turn);
    }
}

}  // namespace

int main() {
    for (int i = 0; i < 300; ++i) {
        run_component_ffn();
        run_importance();
    }
    std::puts("clean");
}
