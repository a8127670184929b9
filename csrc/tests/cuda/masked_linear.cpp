// masked_linear SEED: forward and backward, masks of every block size, against loops in double;
// prints "right: ... conflicts", "wrong: ..." or "error: ...".
#include <cstring>

#include "linear_layers.h"
#include "masked_linear_launch.cuh"

namespace dmao {
namespace {

struct Case {
    int tokens, inputs, outputs, block;  // block 0: no mask
    int live_of_ten;
    Activation activation;
    int processors = 4;  // 1: large tiles
};

// A random grid of blocks, as lists by its rows and columns.
struct Mask {
    int block, rows, columns;
    std::vector<bool> live;
    std::vector<std::int32_t> row_offsets{0}, column_ids, column_offsets{0}, row_ids;

    Mask(const Case& c)
        : block(c.block > 0 ? c.block : 1),
          rows((c.outputs + block - 1) / block),
          columns((c.inputs + block - 1) / block) {
        for (int i = 0; i < rows * columns; ++i) {
            live.push_back(c.block == 0 || random_below(10) < c.live_of_ten);
        }
        for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < columns; ++j) {
                if (live[i * columns + j]) column_ids.push_back(j);
            }
            row_offsets.push_back(static_cast<std::int32_t>(column_ids.size()));
        }
        for (int j = 0; j < columns; ++j) {
            for (int i = 0; i < rows; ++i) {
                if (live[i * columns + j]) row_ids.push_back(i);
            }
            column_offsets.push_back(static_cast<std::int32_t>(row_ids.size()));
        }
    }
    bool at(int output, int input) const { return live[output / block * columns + input / block]; }
};

void check(const Case& c) {
    const bool gated = c.activation == Activation::glu;
    const int width = gated ? c.outputs / 2 : c.outputs;
    const Given x(c.tokens, c.inputs, c.inputs + random_below(9)), bias(1, c.outputs);
    const Given grad_y(c.tokens, width, width + random_below(9));
    Given w(c.outputs, c.inputs);
    const Mask mask(c);
    for (int o = 0; o < c.outputs; ++o) {
        for (int i = 0; i < c.inputs; ++i) {
            if (!mask.at(o, i)) w(o, i).bits = 0xFFFF;
        }
    }
    const MaskedLinearLayer<Element> layer{x.view(),
                                           w.view(),
                                           c.block,
                                           static_cast<int>(mask.column_ids.size()),
                                           {mask.row_offsets.data(), mask.column_ids.data()},
                                           {mask.column_offsets.data(), mask.row_ids.data()},
                                           c.activation};
    const Result y(c.tokens, width), kept(c.tokens, c.outputs);
    run_counted(c.processors, [&](LinearRun& run) {
        masked_linear_forward(run, layer, bias.values.get(), y.values.get(), kept.values.get());
    });
    const auto h = [&](int token, int output) {
        double sum = bias.at(0, output);
        for (int i = 0; i < c.inputs; ++i) {
            if (mask.at(output, i)) sum += x.at(token, i) * w.at(output, i);
        }
        return sum;
    };
    compare("pre-activation", kept, 0.3, h);
    compare("y", y, 0.3, [&](int token, int output) {
        if (!gated) return activated(c.activation, h(token, output));
        return h(token, output) / (1.0 + std::exp(-h(token, width + output)));
    });

    const Result grad_x(c.tokens, c.inputs), grad_w(c.outputs, c.inputs, true);
    const Result grad_b(1, c.outputs);
    run_counted(c.processors, [&](LinearRun& run) {
        masked_linear_backward(run, layer, grad_y.view(), kept.values.get(), grad_x.values.get(),
                               grad_w.values.get(), grad_b.values.get());
    });
    std::vector<double> inner(static_cast<std::size_t>(c.tokens) * c.outputs);
    for (int t = 0; t < c.tokens; ++t) {
        for (int o = 0; o < c.outputs; ++o) {
            double& g = inner[t * c.outputs + o];
            g = grad_y.at(t, o % (gated ? width : c.outputs));
            if (gated) {
                const int partner = (o + width) % c.outputs;
                const double gate = 1.0 / (1.0 + std::exp(-kept.at(t, o < width ? partner : o)));
                g *= o < width ? gate : kept.at(t, partner) * gate * (1.0 - gate);
            } else {
                g *= slope(c.activation, kept.at(t, o));
            }
            g = rounded(g);
        }
    }
    compare("grad_x", grad_x, 0.3, [&](int token, int input) {
        double sum = 0.0;
        for (int o = 0; o < c.outputs; ++o) {
            if (mask.at(o, input)) sum += inner[token * c.outputs + o] * w.at(o, input);
        }
        return sum;
    });
    compare("grad_w", grad_w, 0.3, [&](int output, int input) {
        double sum = 0.0;
        for (int t = 0; t < c.tokens && mask.at(output, input); ++t) {
            sum += inner[t * c.outputs + output] * x.at(t, input);
        }
        return sum;
    });
    compare("grad_b", grad_b, 0.3, [&](int, int output) {
        double sum = 0.0;
        for (int t = 0; t < c.tokens; ++t) sum += inner[t * c.outputs + output];
        return sum;
    });
}

// 2^31 - 1 threads, and one more.
void check_most_rows() {
    if (row_blocks(INT32_MAX, 8) < 1) throw std::logic_error("wrong: rows that still fit");
    try {
        row_blocks(INT32_MAX / 2 + 1, 9);
    } catch (const std::runtime_error& error) {
        if (std::strstr(error.what(), "1073741824 rows with 2 each") != nullptr) return;
    }
    throw std::logic_error("wrong: too many rows are not told");
}

void check_all() {
    using enum Activation;
    check_most_rows();
    check({530, 24, 40, 0, 10, none});  // spans of tokens
    check({40, 72, 88, 0, 10, none});
    check({37, 43, 50, 0, 10, glu});         // nothing is a multiple of anything
    check({150, 136, 200, 0, 10, relu, 1});  // tiles of 128 x 128
    check({70, 40, 34, 0, 10, glu, 1});
    check({1, 1, 1, 0, 10, silu});
    check({0, 5, 4, 0, 10, silu});
    check({5, 0, 4, 0, 10, silu});
    check({5, 4, 0, 0, 10, silu});
    for (int block = 16; block <= 128; block += 16) {
        check({20 + block % 7, 2 * block + 5, block + 9, block, 6, gelu});
    }
    check({33, 100, 90, 32, 0, silu});  // nothing lives
    check({33, 100, 90, 32, 10, glu});  // everything does
    check({530, 24, 40, 16, 5, none});
}

}  // namespace
}  // namespace dmao

int main(int, char** arguments) { return dmao::run_checks(arguments, dmao::check_all); }
