// dmao::component_conv, dmao::depthwise_conv1d and their backward on the CPU key: checks,
// utterances, live channels, allocation, scratch.
#include "dmao/component_conv.h"

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"
#include "live.h"
#include "scratch.h"
#include "utterances.h"

namespace dmao {
namespace {

using Optional = std::optional<Tensor>;

// What component_conv adds to the depthwise convolution.
struct Around {
    Optional norm_weight, norm_bias, statistics_weight, live;
    std::int64_t components = 1;
    bool gated = false, normed = false;
    double eps = 0.0;
    Activation activation = Activation::none;
};

std::vector<ChannelRun> runs_of(const std::vector<std::int32_t>& channels) {
    std::vector<ChannelRun> runs;
    for (const std::int32_t channel : channels) {
        if (runs.empty() || runs.back().first + runs.back().count != channel) {
            runs.push_back({channel, 0});
        }
        ++runs.back().count;
    }
    return runs;
}

// Contiguous copies of the inputs, where needed, and the problem that points into them.
struct Inputs {
    const char* op;
    Tensor x, weight;
    Optional bias, norm_weight, norm_bias;
    std::vector<Utterance> utterances;
    std::vector<ChannelRun> runs;
    std::vector<float> share;
    std::int64_t kept_width = 0;  // of what the backward pass needs; live channels lie close
    ComponentConv conv{};

    Inputs(const char* op, const Tensor& x_, const Tensor& weight_, const Optional& bias_,
           const Optional& lengths, const Optional& offsets, const Around& around)
        : op(op),
          x(torch::stable::contiguous(x_)),
          weight(torch::stable::contiguous(weight_)),
          utterances(utterances_of(op, x, lengths, offsets)) {
        conv.dtype = float_dtype(op, "x", x);
        conv.gated = around.gated;
        conv.normed = around.normed;
        conv.activation = around.activation;
        conv.eps = around.eps;
        check(conv.normed || !(around.norm_weight.has_value() || around.norm_bias.has_value()), op,
              ": norm_weight and norm_bias must be None without a norm");
        check_tensor(op, "weight", weight, x.scalar_type());
        check(weight.dim() == 2 && weight.size(1) % 2 == 1, op,
              ": weight must be [C, k] with an odd k");
        conv.stored_channels = weight.size(0);
        conv.taps = weight.size(1);
        check(x.size(x.dim() - 1) == width(), op, ": x must have ", width(), " columns, got ",
              x.size(x.dim() - 1));
        conv.rows = x.dim() == 2 ? x.size(0) : x.size(0) * x.size(1);
        conv.utterances = utterances.data();
        conv.utterance_count = static_cast<std::int64_t>(utterances.size());
        const std::vector<std::int32_t> channels =
            live_units(op, around.live, around.components, conv.stored_channels, "channels");
        kept_width = listed_units(around.live, around.components, conv.stored_channels);
        runs = runs_of(channels);
        conv.channels = static_cast<std::int64_t>(channels.size());
        conv.runs = runs.data();
        conv.run_count = static_cast<std::int64_t>(runs.size());
        if (conv.normed) fill_share(around, channels);
        conv.share = share.data();
        conv.x = x.const_data_ptr();
        conv.weight = weight.const_data_ptr();
        conv.bias = parameter("bias", bias_, bias);
        conv.norm_weight = parameter("norm_weight", around.norm_weight, norm_weight);
        conv.norm_bias = parameter("norm_bias", around.norm_bias, norm_bias);
    }

    std::int64_t width() const {
        return conv.gated ? 2 * conv.stored_channels : conv.stored_channels;
    }

    // What the backward pass needs beside the inputs; nothing where it is the convolution alone.
    bool keeps() const { return conv.normed || conv.activation != Activation::none; }

    std::vector<std::int64_t> output_sizes() const {
        std::vector<std::int64_t> sizes;
        for (std::int64_t i = 0; i + 1 < x.dim(); ++i) sizes.push_back(x.size(i));
        sizes.push_back(conv.stored_channels);
        return sizes;
    }

    // A gradient of which the kernel writes the entries of live channels.
    Tensor gradient(const std::vector<std::int64_t>& sizes) const {
        return conv.channels == conv.stored_channels ? torch::stable::new_empty(x, sizes)
                                                     : torch::stable::new_zeros(x, sizes);
    }

  private:
    const void* parameter(const char* name, const Optional& given, Optional& kept) const {
        if (!given.has_value()) return nullptr;
        kept = torch::stable::contiguous(*given);
        check_tensor(op, name, *kept, x.scalar_type());
        check(kept->dim() == 1 && kept->size(0) == conv.stored_channels, op, ": ", name,
              " must be [", conv.stored_channels, "]");
        return kept->const_data_ptr();
    }

    // Every live channel's share in mean and variance.
    void fill_share(const Around& around, const std::vector<std::int32_t>& channels) {
        const float* weights = nullptr;
        if (around.statistics_weight.has_value()) {
            const Tensor& given = *around.statistics_weight;
            check_tensor(op, "statistics_weight", given, ScalarType::Float);
            check(given.dim() == 1 && given.size(0) == around.components, op,
                  ": statistics_weight must be [", around.components, "]");
            weights = given.const_data_ptr<float>();
        }
        const std::int64_t of_component =
            around.components == 0 ? 1 : conv.stored_channels / around.components;
        double total = 0.0;
        for (const std::int32_t channel : channels) {
            share.push_back(weights == nullptr ? 1.0f : weights[channel / of_component]);
            check(std::isfinite(share.back()) && share.back() >= 0.0f, op,
                  ": statistics_weight must be finite and not negative, got ", share.back());
            total += share.back();
        }
        check(total > 0.0 || channels.empty(), op,
              ": statistics_weight must not be zero for all live components");
        for (float& value : share) value = static_cast<float>(value / total);
    }
};

struct Outputs {
    Tensor y, normed, scales;
};

Outputs run_forward(const Inputs& in, bool keep) {
    const ComponentConv& f = in.conv;
    const bool keep_rows = keep && in.keeps(), keep_scales = keep && f.normed;
    Tensor y = torch::stable::new_empty(in.x, in.output_sizes());
    Tensor normed = torch::stable::new_empty(
        in.x, std::vector<std::int64_t>{keep_rows ? f.rows : 0, in.kept_width});
    Tensor scales = torch::stable::new_empty(
        in.x, std::vector<std::int64_t>{keep_scales ? f.rows : 0}, ScalarType::Float);
    if (f.channels == 0) {
        torch::stable::zero_(y);
        torch::stable::zero_(scales);
        return {y, normed, scales};
    }
    const ComponentConvForward problem{f, y.mutable_data_ptr(),
                                       keep_rows ? normed.mutable_data_ptr() : nullptr,
                                       keep_scales ? scales.mutable_data_ptr<float>() : nullptr};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch =
        thread_scratch(DMAO_CPU_KERNEL(component_conv_forward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(component_conv_forward)(problem, {scratch, workers}, torch_parallel());
    return {y, normed, scales};
}

struct Gradients {
    Tensor x, weight, bias, norm_weight, norm_bias;
};

// Which of the gradients of vectors are wanted.
struct Wanted {
    bool bias, norm_weight, norm_bias;
};

Gradients run_backward(const Inputs& in, const Tensor& grad_y, const void* normed,
                       const float* scales, const Wanted& wanted) {
    const ComponentConv& f = in.conv;
    const Tensor grad = torch::stable::contiguous(grad_y);
    check_tensor(in.op, "grad_y", grad, in.x.scalar_type());
    check(grad.numel() == f.rows * f.stored_channels, in.op, ": grad_y must have ",
          f.rows * f.stored_channels, " elements, got ", grad.numel());
    const auto vector = [&](bool is_wanted) {
        return in.gradient({is_wanted ? f.stored_channels : 0});
    };
    Gradients gradients{torch::stable::empty_like(in.x), in.gradient({f.stored_channels, f.taps}),
                        vector(wanted.bias), vector(wanted.norm_weight), vector(wanted.norm_bias)};
    if (f.channels == 0) {
        torch::stable::zero_(gradients.x);
        return gradients;
    }
    const ComponentConvBackward problem{
        f,
        grad.const_data_ptr(),
        normed,
        scales,
        gradients.x.mutable_data_ptr(),
        gradients.weight.mutable_data_ptr(),
        wanted.bias ? gradients.bias.mutable_data_ptr() : nullptr,
        wanted.norm_weight ? gradients.norm_weight.mutable_data_ptr() : nullptr,
        wanted.norm_bias ? gradients.norm_bias.mutable_data_ptr() : nullptr};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch =
        thread_scratch(DMAO_CPU_KERNEL(component_conv_backward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(component_conv_backward)(problem, {scratch, workers}, torch_parallel());
    return gradients;
}

// --- depthwise_conv1d

constexpr const char* kDepthwise = "depthwise_conv1d";

Tensor depthwise_conv1d(const Tensor& x, const Tensor& weight, const Optional& bias,
                        const Optional& lengths, const Optional& offsets) {
    return run_forward(Inputs(kDepthwise, x, weight, bias, lengths, offsets, {}), false).y;
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv1d_backward(const Tensor& grad_y, const Tensor& x,
                                                             const Tensor& weight,
                                                             const Optional& lengths,
                                                             const Optional& offsets, bool bias) {
    const Inputs in(kDepthwise, x, weight, std::nullopt, lengths, offsets, {});
    const Gradients found = run_backward(in, grad_y, nullptr, nullptr, {bias, false, false});
    return {found.x, found.weight, found.bias};
}

// --- component_conv

constexpr const char* kOp = "component_conv";

Around around(const Optional& norm_weight, const Optional& norm_bias,
              const Optional& statistics_weight, const Optional& live, std::int64_t components,
              const std::string& norm, double eps, const std::string& activation) {
    check(norm == "layer" || norm == "none", kOp, ": norm must be layer or none, got '", norm, "'");
    const bool none = activation == "none";
    return {norm_weight,
            norm_bias,
            statistics_weight,
            live,
            components,
            true,
            norm == "layer",
            eps,
            none ? Activation::none : parse_activation(kOp, activation)};
}

std::tuple<Tensor, Tensor, Tensor> component_conv(
    const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& norm_weight,
    const Optional& norm_bias, const Optional& statistics_weight, const Optional& live,
    std::int64_t components, const Optional& lengths, const Optional& offsets, const Name& norm,
    double eps, const Name& activation, bool keep) {
    const Inputs in(
        kOp, x, weight, bias, lengths, offsets,
        around(norm_weight, norm_bias, statistics_weight, live, components, norm, eps, activation));
    const Outputs found = run_forward(in, keep);
    return {found.y, found.normed, found.scales};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> component_conv_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const Optional& norm_weight,
    const Optional& norm_bias, const Optional& statistics_weight, const Optional& live,
    const Tensor& normed, const Tensor& scales, std::int64_t components, const Optional& lengths,
    const Optional& offsets, const Name& norm, double eps, const Name& activation, bool bias) {
    const Inputs in(
        kOp, x, weight, std::nullopt, lengths, offsets,
        around(norm_weight, norm_bias, statistics_weight, live, components, norm, eps, activation));
    const ComponentConv& f = in.conv;
    check_tensor(kOp, "normed", normed, in.x.scalar_type());
    check_tensor(kOp, "scales", scales, ScalarType::Float);
    const std::int64_t kept_rows = in.keeps() ? f.rows : 0, kept_scales = f.normed ? f.rows : 0;
    check(normed.numel() == kept_rows * in.kept_width && scales.numel() == kept_scales, kOp,
          ": the backward pass needs what the forward pass keeps with keep=True");
    const Gradients found = run_backward(in, grad_y, in.keeps() ? normed.const_data_ptr() : nullptr,
                                         f.normed ? scales.const_data_ptr<float>() : nullptr,
                                         {bias, norm_weight.has_value(), norm_bias.has_value()});
    return {found.x, found.weight, found.bias, found.norm_weight, found.norm_bias};
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) {
    m.impl("component_conv", TORCH_BOX(&dmao::component_conv));
    m.impl("component_conv_backward", TORCH_BOX(&dmao::component_conv_backward));
    m.impl("depthwise_conv1d", TORCH_BOX(&dmao::depthwise_conv1d));
    m.impl("depthwise_conv1d_backward", TORCH_BOX(&dmao::depthwise_conv1d_backward));
}
