// importance SEED: all metrics and types, on tensors of many shapes and numbers, against loops in
// float64; prints "right: ..." or "wrong: ...".
#include <cstdio>
#include <cstdlib>

#include "importance_launch.cuh"
#include "values.h"

namespace dmao {
namespace {

struct Shape {
    int repeats, components, run;
};

struct Tensor {
    Shape shape;
    int first;
    Values weight, grad;
};

double entry(Metric metric, double weight, double grad) {
    if (metric == Metric::gradient) return std::fabs(grad);
    if (metric == Metric::magnitude) return std::fabs(weight);
    return metric == Metric::taylor ? std::fabs(weight * grad) : weight * grad;
}

// Averages of `components` after the update, by the definition.
std::vector<double> by_hand(const std::vector<Tensor>& tensors, Metric metric, double beta,
                            const std::vector<float>& ema, const std::vector<float>& inverse) {
    std::vector<double> sums(ema.size()), found(ema.begin(), ema.end());
    std::vector<bool> scored(ema.size());
    for (const Tensor& tensor : tensors) {
        const auto [repeats, components, run] = tensor.shape;
        for (int i = 0; i < repeats * components * run; ++i) {
            const int component = tensor.first + i / run % components;
            sums[component] += entry(metric, metric == Metric::gradient ? 0 : tensor.weight[i],
                                     metric == Metric::magnitude ? 0 : tensor.grad[i]);
            scored[component] = true;
        }
    }
    for (std::size_t c = 0; c < ema.size(); ++c) {
        const double mean = sums[c] * inverse[c];
        if (scored[c] && std::isfinite(mean)) found[c] = beta * found[c] + (1 - beta) * mean;
    }
    return found;
}

void check(std::vector<Tensor>& tensors, int components, Metric metric) {
    constexpr double beta = 0.75;
    std::vector<int> counts(components);
    for (const Tensor& tensor : tensors) {
        for (int c = 0; c < tensor.shape.components; ++c) {
            counts[tensor.first + c] += tensor.shape.repeats * tensor.shape.run;
        }
    }
    std::vector<float> ema(components), inverse(components);
    for (int c = 0; c < components; ++c) {
        ema[c] = static_cast<float>(random_below(1000)) / 1000.0f;
        inverse[c] = 1.0f / static_cast<float>(std::max(counts[c], 1));
    }
    const std::vector<double> expected = by_hand(tensors, metric, beta, ema, inverse);
    ImportanceLaunch launch(metric, {ema.data(), inverse.data(), components, beta});
    for (Tensor& tensor : tensors) {
        const auto [repeats, own, run] = tensor.shape;
        launch.add({metric == Metric::gradient ? nullptr : tensor.weight.data(),
                    metric == Metric::magnitude ? nullptr : tensor.grad.data(),
                    tensor.weight.type(), tensor.grad.type(), repeats, own, run, tensor.first});
    }
    launch.run({80, 3, nullptr}, not_a_number(launch.scratch()).get());
    for (int c = 0; c < components; ++c) {
        expect_close(ema[c], expected[c], 1e-5,
                     "metric " + std::to_string(static_cast<int>(metric)) + ", component " +
                         std::to_string(c) + " of " + std::to_string(components));
    }
}

Tensor random_tensor(const Shape& shape, int first, int skip) {
    const int size = shape.repeats * shape.components * shape.run;
    return {shape, first, Values(random_type(), size, skip), Values(random_type(), size, skip)};
}

// Every component in one tensor.
void check_shapes(int skip) {
    for (Metric metric :
         {Metric::taylor, Metric::gradient, Metric::magnitude, Metric::signed_taylor}) {
        std::vector<Tensor> tensors;
        int first = 2;  // nobody scores the first ones
        for (const Shape& shape : {Shape{1, 1, 1},
                                   {1, 17, 1},
                                   {3, 5, 7},
                                   {7, 2, 256},
                                   {7, 2, 255},
                                   {8, 1, 264},
                                   {1, 2, 8200},
                                   {2, 1, 8192},
                                   {33, 3, 86},
                                   {65, 2, 4}}) {
            tensors.push_back(random_tensor(shape, first, skip));
            first += shape.components;
        }
        tensors[0].grad.fill(std::numeric_limits<float>::infinity());
        check(tensors, first + 3, metric);
    }
}

// More tensors than one table holds, whose components overlap.
void check_many() {
    constexpr int components = 40, count = Table<ScoredRange>::kCapacity + 9;
    static_assert(count > Table<ImportanceEntry>::kCapacity);
    std::vector<Tensor> tensors;
    for (int i = 0; i < count; ++i) {
        const int own = 1 + random_below(7);
        tensors.push_back(random_tensor({1 + random_below(2), own, 1 + random_below(4)},
                                        random_below(components - own), 0));
    }
    check(tensors, components, Metric::taylor);
    for (Tensor& tensor : tensors) tensor.first = components - tensor.shape.components;
    check(tensors, components, Metric::signed_taylor);
}

}  // namespace
}  // namespace dmao

int main(int, char** arguments) {
    dmao::cuda_on_host::set_schedule(std::atoi(arguments[1]));
    try {
        dmao::check_shapes(0);
        dmao::check_shapes(1);
        dmao::check_many();
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    std::puts("right");
}
