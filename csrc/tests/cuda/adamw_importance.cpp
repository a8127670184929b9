// adamw_importance SEED: parameters of all types, updated, scored or both, against loops in
// float64; scores against those of importance, to the bit; prints "right" or "wrong: ...".
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "adamw_importance_launch.cuh"
#include "importance_launch.cuh"
#include "values.h"

namespace dmao {
namespace {

enum class Kind { updated, scored, both };

struct Parameter {
    Kind kind;
    int repeats, components, run, first;
    Values weight, grad, average, square;
    float step;
    bool on_gpu;  // the step

    int size() const { return repeats * components * run; }
    bool updated() const { return kind != Kind::scored; }
};

constexpr double kGroups[][6] = {{1e-2, 0.9, 0.999, 1e-8, 0.1, 0.0},
                                 {3e-3, 0.8, 0.95, 1e-6, 0.0, 1.0}};
const double* group_of(std::size_t i) { return kGroups[i % 2]; }

// What one rounding to the type may change, the smallest numbers of float16 included.
double rounding(ElementType type, double value) {
    constexpr double relative[kElementTypes] = {1e-6, 0.004, 0.0005};
    return relative[place_of(type)] * std::fabs(value) + 5e-7;
}

void check_parameter(const Parameter& before, const Parameter& after, const double* group,
                     double factor, const std::string& name) {
    const double lr = group[0], beta1 = group[1], beta2 = group[2], eps = group[3];
    const double step = before.step + 1;
    for (int i = 0; i < before.size(); ++i) {
        const double g = before.grad[i] * (group[5] != 0 ? -factor : factor);
        const double m = beta1 * before.average[i] + (1 - beta1) * g;
        const double v = beta2 * before.square[i] + (1 - beta2) * g * g;
        const double w = (1 - lr * group[4]) * before.weight[i] -
                         lr / (1 - std::pow(beta1, step)) * m /
                             (std::sqrt(v / (1 - std::pow(beta2, step))) + eps);
        const auto close = [&](const Values& found, double expected, const char* what) {
            expect_close(found[i], expected, rounding(found.type(), expected),
                         name + what + std::to_string(i));
        };
        close(after.average, m, ", average ");
        close(after.square, v, ", square ");
        close(after.weight, w, ", weight ");
    }
}

Parameter copy(const Parameter& p) {
    return {p.kind,        p.repeats,        p.components,    p.run,  p.first, p.weight.copy(),
            p.grad.copy(), p.average.copy(), p.square.copy(), p.step, p.on_gpu};
}

void check(std::vector<Parameter>& parameters, int components, Metric metric,
           const float* grad_factor) {
    std::vector<float> ema(components, 0.5f), same = ema, inverse(components, 0.01f);
    const Gpu gpu{80, 1, nullptr};
    ImportanceLaunch importance(metric, {same.data(), inverse.data(), components, 0.9});
    AdamWLaunch launch(metric, {ema.data(), inverse.data(), components, 0.9});
    std::vector<Parameter> before;
    std::vector<std::unique_ptr<float>> steps;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
        Parameter& p = parameters[i];
        before.push_back(copy(p));
        steps.push_back(std::make_unique<float>(p.step));
        std::int32_t factors = -1;
        if (p.updated()) {
            factors = p.on_gpu ? launch.add_step(group_of(i), steps.back().get(), 0.0f)
                               : launch.add_step(group_of(i), nullptr, p.step + 1);
        }
        const bool reads_grad = p.updated() || metric != Metric::magnitude;
        const AdamWParameter parameter{p.weight.data(), reads_grad ? p.grad.data() : nullptr,
                                       p.updated() ? p.average.data() : nullptr,
                                       p.updated() ? p.square.data() : nullptr, p.weight.type()};
        if (p.kind == Kind::updated) {
            launch.add_updated(parameter, factors, p.size());
            continue;
        }
        launch.add_scored(parameter, factors, p.repeats, p.components, p.run, p.first);
        importance.add({before[i].weight.data(), before[i].grad.data(), p.weight.type(),
                        p.weight.type(), p.repeats, p.components, p.run, p.first});
    }
    launch.run(gpu, grad_factor, not_a_number(launch.scratch()).get());
    importance.run(gpu, not_a_number(importance.scratch()).get());
    for (std::size_t i = 0; i < parameters.size(); ++i) {
        const Parameter& p = parameters[i];
        const std::string name = "parameter " + std::to_string(i);
        if (p.updated()) {
            check_parameter(before[i], p, group_of(i), grad_factor ? *grad_factor : 1.0, name);
        } else {
            for (int k = 0; k < p.size(); ++k) {
                expect(p.weight[k] == before[i].weight[k], name + " is only scored");
            }
        }
        expect(*steps[i] == p.step + (p.updated() && p.on_gpu), name + ": step");
    }
    for (int c = 0; c < components; ++c) {
        expect(ema[c] == same[c], "score " + std::to_string(c) + " is not that of importance");
    }
}

Parameter random_parameter(int repeats, int components, int run, int first, int skip) {
    const int size = repeats * components * run;
    const ElementType type = random_type();
    Parameter p{static_cast<Kind>(random_below(3)),
                repeats,
                components,
                run,
                first,
                Values(type, size, skip),
                Values(type, size, skip),
                Values(type, size, skip),
                Values(type, size, skip),
                static_cast<float>(random_below(9)),
                random_below(2) == 1};
    p.square.fill(0.25f);
    return p;
}

void check_shapes(int skip, Metric metric, const float* grad_factor) {
    constexpr int shapes[][3] = {{1, 1, 1},   {1, 17, 1},  {3, 5, 7},    {7, 2, 256},
                                 {7, 2, 255}, {8, 1, 264}, {1, 2, 8200}, {33, 3, 86}};
    std::vector<Parameter> parameters;
    int first = 0;
    for (int round = 0; round < 2; ++round) {
        for (const auto& [repeats, components, run] : shapes) {
            parameters.push_back(random_parameter(repeats, components, run, first, skip));
            first += components;
        }
    }
    check(parameters, first, metric, grad_factor);
}

// More parameters than a table holds.
void check_many() {
    constexpr int count = Table<StepEntry>::kCapacity + Table<AdamWEntry>::kCapacity;
    std::vector<Parameter> parameters;
    for (int i = 0; i < count; ++i) {
        parameters.push_back(random_parameter(1 + random_below(2), 1, 1 + random_below(3), i, 0));
    }
    check(parameters, count, Metric::taylor, nullptr);
}

}  // namespace
}  // namespace dmao

int main(int, char** arguments) {
    dmao::cuda_on_host::set_schedule(std::atoi(arguments[1]));
    const float factor = 0.7f;
    try {
        dmao::check_shapes(0, dmao::Metric::taylor, nullptr);
        dmao::check_shapes(1, dmao::Metric::signed_taylor, &factor);
        dmao::check_shapes(0, dmao::Metric::magnitude, &factor);
        dmao::check_shapes(0, dmao::Metric::gradient, nullptr);
        dmao::check_many();
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    std::puts("right");
}
