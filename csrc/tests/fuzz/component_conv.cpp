#include "dmao/component_conv.h"

#include <vector>

#include "fuzz.h"

namespace dmao::fuzzing {

void fuzz(const ParallelFor& parallel, std::int64_t workers) {
    ComponentConv c{};
    const DType dtype = c.dtype = some_dtype();
    c.activation = static_cast<Activation>(below(4));
    c.gated = coin();
    c.normed = coin();
    c.eps = 1e-5;
    c.taps = one_of({1, 3, 5, 15, 31, 63});
    // Utterances with rows of none between them.
    std::vector<Utterance> utterances;
    std::int64_t rows = 0;
    for (std::int64_t i = below(5); i > 0; --i) {
        rows += coin() ? below(4) : 0;
        const std::int64_t length = one_of({0, 1, 2, 7, 40, 150});
        utterances.push_back({rows, length});
        rows += length;
    }
    c.rows = rows + (coin() ? below(4) : 0);
    c.utterances = utterances.data();
    c.utterance_count = static_cast<std::int64_t>(utterances.size());
    // Runs of live channels with dead ones between them.
    std::vector<ChannelRun> runs;
    std::int64_t stored = 0;
    for (std::int64_t i = below(4); i > 0; --i) {
        stored += below(9);
        const std::int64_t count = one_of({1, 3, 8, 16, 17, 40});
        runs.push_back({stored, count});
        stored += count;
        c.channels += count;
    }
    c.stored_channels = stored + below(5);
    c.runs = runs.data();
    c.run_count = static_cast<std::int64_t>(runs.size());
    const std::unique_ptr<float[]> share(new float[c.channels]);
    for (std::int64_t i = 0; i < c.channels; ++i) {
        share[i] = 1.0f / static_cast<float>(c.channels);
    }
    c.share = share.get();
    const std::int64_t inputs = c.rows * c.stored_channels * (c.gated ? 2 : 1);
    const std::int64_t outputs = c.rows * c.stored_channels, channels = c.stored_channels;
    const auto x = tensor(inputs, dtype), weight = tensor(channels * c.taps, dtype),
               bias = tensor(channels, dtype), gain = tensor(channels, dtype),
               shift = tensor(channels, dtype), y = tensor(outputs, dtype),
               convolved = tensor(c.rows * c.channels, dtype), grad_y = tensor(outputs, dtype),
               grad_x = tensor(inputs, dtype), grad_weight = tensor(channels * c.taps, dtype),
               grad_bias = tensor(channels, dtype), grad_gain = tensor(channels, dtype),
               grad_shift = tensor(channels, dtype);
    const auto statistics = floats(2 * c.rows);
    c.x = x.get();
    c.weight = weight.get();
    c.bias = coin() ? bias.get() : nullptr;
    c.norm_weight = c.normed && coin() ? gain.get() : nullptr;
    c.norm_bias = c.normed && coin() ? shift.get() : nullptr;
    const bool kept = c.normed || c.activation != Activation::none;
    for (const bool keep : {false, true}) {
        const ComponentConvForward problem{c, y.get(), keep && kept ? convolved.get() : nullptr,
                                           keep && c.normed ? statistics.get() : nullptr};
        const Scratch scratch(kernels::component_conv_forward_scratch(problem, workers));
        kernels::component_conv_forward(problem, {scratch.get(), workers}, parallel);
        record(y.get(), outputs, dtype);
    }
    const ComponentConvBackward problem{c,
                                        grad_y.get(),
                                        kept ? convolved.get() : nullptr,
                                        c.normed ? statistics.get() : nullptr,
                                        grad_x.get(),
                                        grad_weight.get(),
                                        coin() ? grad_bias.get() : nullptr,
                                        c.normed && coin() ? grad_gain.get() : nullptr,
                                        c.normed && coin() ? grad_shift.get() : nullptr};
    const Scratch scratch(kernels::component_conv_backward_scratch(problem, workers));
    kernels::component_conv_backward(problem, {scratch.get(), workers}, parallel);
    record(grad_x.get(), inputs, dtype);
    record(grad_weight.get(), channels * c.taps, dtype);
    for (const auto* gradient : {&grad_bias, &grad_gain, &grad_shift}) {
        record(gradient->get(), channels, dtype);
    }
}

}  // namespace dmao::fuzzing
