// component_ffn SEED: forward and backward over live lists, with dropout, against loops in double;
// prints "right: ... conflicts", "wrong: ..." or "error: ...".
#include "component_ffn_launch.cuh"
#include "linear_layers.h"

namespace dmao {
namespace {

struct Case {
    int tokens, inputs, components, width, outputs;
    int listed;  // ids in the list, fillers too; -1: no list
    double p;
    Activation activation;
    int processors = 4;  // 1: large tiles
};

// Ascending ids of about two thirds of the components, then what fills up.
std::vector<std::int32_t> random_list(const Case& c) {
    std::vector<std::int32_t> list;
    for (int i = 0; i < c.components && static_cast<int>(list.size()) < c.listed; ++i) {
        if (random_below(3) != 0) list.push_back(i);
    }
    while (static_cast<int>(list.size()) < c.listed) list.push_back(c.components);
    return list;
}

void check(const Case& c) {
    const int hidden = c.components * c.width;
    const std::int64_t seed = 0x123456789ABCDEF;
    const std::vector<std::int32_t> list = random_list(c);
    std::vector<int> units;  // of each position
    for (int id = 0; id < c.components && c.listed < 0; ++id) {
        for (int i = 0; i < c.width; ++i) units.push_back(id * c.width + i);
    }
    for (std::int32_t id : list) {
        for (int i = 0; i < c.width && id < c.components; ++i) units.push_back(id * c.width + i);
    }
    std::vector<bool> live(hidden);
    for (int unit : units) live[unit] = true;

    const Given x(c.tokens, c.inputs, c.inputs + random_below(9));
    const Given grad_y(c.tokens, c.outputs, c.outputs + random_below(9)), b2(1, c.outputs);
    Given w1(hidden, c.inputs), b1(1, hidden), w2(c.outputs, hidden);
    for (int unit = 0; unit < hidden; ++unit) {
        if (live[unit]) continue;
        b1(0, unit).bits = 0xFFFF;
        for (int i = 0; i < c.inputs; ++i) w1(unit, i).bits = 0xFFFF;
        for (int o = 0; o < c.outputs; ++o) w2(o, unit).bits = 0xFFFF;
    }
    FfnLayer<Element> layer{x.view(),     w1.view(), w2.view(), LiveList::all(hidden),
                            c.activation, c.p,       &seed};
    if (c.listed >= 0) {
        layer.live.everything = false;
        layer.live.ids = list.data();
        layer.live.capacity = c.listed;
        layer.live.things = c.components;
        layer.live.width = Divisor(c.width);
    }
    const int positions = layer.positions(), count = static_cast<int>(units.size());
    const Result y(c.tokens, c.outputs), kept(c.tokens, positions);
    run_counted(c.processors, [&](LinearRun& run) {
        component_ffn_forward<Element>(run, layer, b1.values.get(), b2.values.get(),
                                       {y.values.get(), kept.values.get()});
    });

    const Philox philox(&seed);
    std::vector<double> factors(c.tokens * count), h(c.tokens * count), outside(c.tokens * count),
        inside(c.tokens * count);
    for (int t = 0; t < c.tokens; ++t) {
        for (int j = 0; j < count; ++j) {
            const int at = t * count + j;
            const bool keep = philox.keep(static_cast<unsigned>(t), static_cast<unsigned>(units[j]),
                                          dropout_threshold(c.p));
            factors[at] = keep ? 1.0 / (1.0 - c.p) : 0.0;
            double sum = b1.at(0, units[j]);
            for (int i = 0; i < c.inputs; ++i) sum += x.at(t, i) * w1.at(units[j], i);
            h[at] = rounded(activated(c.activation, sum) * factors[at]);
            const double error = std::fabs(kept.at(t, j) - sum);
            if (!(error <= 0.016 * (std::fabs(sum) + 0.3))) {
                wrong("pre-activation [%d, %d] is %g, not %g", t, j, kept.at(t, j), sum);
            }
        }
        for (int j = count; j < positions; ++j) {
            if (kept.at(t, j) == kept.at(t, j)) wrong("position %d, a filler, is written", j);
        }
    }
    compare("y", y, 0.5, [&](int token, int output) {
        double sum = b2.at(0, output);
        for (int j = 0; j < count; ++j) sum += h[token * count + j] * w2.at(output, units[j]);
        return sum;
    });

    const Result grad_x(c.tokens, c.inputs), grad_w1(hidden, c.inputs, true);
    const Result grad_b1(1, hidden, true), grad_w2(c.outputs, hidden, true);
    const Result grad_b2(1, c.outputs);
    run_counted(c.processors, [&](LinearRun& run) {
        component_ffn_backward<Element>(
            run, layer, grad_y.view(), kept.values.get(),
            {grad_x.values.get(), grad_w1.values.get(), grad_b1.values.get(), grad_w2.values.get(),
             grad_b2.values.get()});
    });
    for (int t = 0; t < c.tokens; ++t) {
        for (int j = 0; j < count; ++j) {
            const int at = t * count + j;
            double sum = 0.0;
            for (int o = 0; o < c.outputs; ++o) sum += grad_y.at(t, o) * w2.at(o, units[j]);
            inside[at] = rounded(sum * factors[at] * slope(c.activation, kept.at(t, j)));
            outside[at] = rounded(activated(c.activation, kept.at(t, j)) * factors[at]);
        }
    }
    std::vector<int> position_of(hidden, -1);
    for (int j = 0; j < count; ++j) position_of[units[j]] = j;
    // Sums over tokens for a unit, which are zero where it is dead.
    const auto over_tokens = [&](int unit, const std::vector<double>& values, const auto& other) {
        double sum = 0.0;
        const int j = position_of[unit];
        for (int t = 0; t < c.tokens && j >= 0; ++t) sum += values[t * count + j] * other(t);
        return sum;
    };
    compare("grad_x", grad_x, 0.5, [&](int token, int input) {
        double sum = 0.0;
        for (int j = 0; j < count; ++j) sum += inside[token * count + j] * w1.at(units[j], input);
        return sum;
    });
    compare("grad_w1", grad_w1, 0.5, [&](int unit, int input) {
        return over_tokens(unit, inside, [&](int token) { return x.at(token, input); });
    });
    compare("grad_b1", grad_b1, 0.5,
            [&](int, int unit) { return over_tokens(unit, inside, [](int) { return 1.0; }); });
    compare("grad_w2", grad_w2, 0.5, [&](int output, int unit) {
        return over_tokens(unit, outside, [&](int token) { return grad_y.at(token, output); });
    });
    compare("grad_b2", grad_b2, 0.5, [&](int, int output) {
        double sum = 0.0;
        for (int t = 0; t < c.tokens; ++t) sum += grad_y.at(t, output);
        return sum;
    });
}

void check_all() {
    using enum Activation;
    check({530, 16, 3, 16, 16, 3, 0.0, silu});  // spans of tokens
    check({40, 24, 4, 24, 40, -1, 0.0, silu});
    check({37, 19, 5, 13, 21, 4, 0.3, silu});         // nothing is a multiple of anything
    check({37, 24, 6, 12, 32, 6, 0.3, gelu});         // chunks across two components
    check({70, 40, 3, 136, 72, 3, 0.25, relu});       // groups of 128 units that components share
    check({150, 72, 3, 64, 136, -1, 0.25, silu, 1});  // tiles of 128 x 128
    check({130, 40, 5, 32, 40, 5, 0.5, gelu, 1});
    check({9, 16, 200, 1, 16, 150, 0.3, silu});
    check({33, 17, 3, 8, 16, 0, 0.3, silu});
    check({1, 1, 1, 1, 1, -1, 0.0, relu});
    check({0, 5, 2, 3, 4, 2, 0.3, silu});
    check({5, 0, 2, 4, 5, 2, 0.3, silu});
    check({5, 4, 2, 4, 0, 2, 0.3, silu});
}

}  // namespace
}  // namespace dmao

int main(int, char** arguments) { return dmao::run_checks(arguments, dmao::check_all); }
