// The residual step, x + scale * dropout(y), alone and with the LayerNorm of its sum.
//
// Floor: memory. Each of these arrays of rows once at the bandwidth of a copy:
//     dropout_add        x and y in, the sum out
//     with norm          the norm out as well
//     its gradients      grad_sum, grad_norm and the sum in, grad_x and grad_y out
// The dropout mask costs 0.15 ns an element and core (dmao/philox.h), a quarter of a copy's time
// from memory, and mostly hides behind it; where the rows are in a cache, it adds to the copy. A
// row is read again, for its statistics and for the norm, while it is in the first level cache.
#include "dmao/dropout_add.h"

#include <cstring>

#include "arena.h"
#include "dmao/philox.h"
#include "sum_span.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kGrain = 1 << 14;  // elements below which a thread does not pay

std::int64_t grain_rows(const DropoutAdd& step) { return divide_up(kGrain, step.width); }

// --- Vectors of a row

// body(i) for every full vector, body(i, count) for the rest, as in sum_span.
template <class Body>
void each_vector(std::int64_t count, const Body& body) {
    std::int64_t i = 0;
    for (; i + Vec::width <= count; i += Vec::width) body(i);
    if (i < count) body(i, static_cast<int>(count - i));
}

Vec first(Vec x) { return x; }

// --- Dropout

// What all rows share: the generator, and its part that does not know the row.
struct Mask {
    Dropout dropout;
    float scale;  // of kept elements
    PhiloxGroup* groups;

    Mask(const DropoutAdd& step, Arena& arena)
        : dropout(step.p, step.seed, step.scale),
          scale(static_cast<float>(step.scale / (1.0 - step.p))),
          groups(reinterpret_cast<PhiloxGroup*>(
              arena.take(dropout.active() ? divide_up(step.width, kPhiloxUnits) * kGroup : 0))) {}

    void fill(std::int64_t width) const {
        if (!dropout.active()) return;
        for (std::int64_t i = 0; i * kPhiloxUnits < width; ++i) {
            groups[i] = dropout.group(static_cast<std::uint32_t>(i));
        }
    }

    static constexpr std::int64_t kGroup = sizeof(PhiloxGroup) / sizeof(float);
};

// The factors of one worker's elements, a group at a time: so little that drawing them overlaps
// with the traffic of the rows.
struct Factors {
    const Mask& mask;
    alignas(64) float group[kPhiloxUnits];

    explicit Factors(const Mask& mask) : mask(mask) {
        if (mask.dropout.active()) return;
        for (float& factor : group) factor = mask.scale;
    }

    // body(first column, count, factors) for every group of a row.
    template <class Body>
    void each_group(std::int64_t row, std::int64_t width, const Body& body) {
        for (std::int64_t first = 0; first < width; first += kPhiloxUnits) {
            if (mask.dropout.active()) {
                mask.dropout.factors(mask.groups + first / kPhiloxUnits, 1,
                                     static_cast<std::uint32_t>(row), group);
            }
            body(first, smaller(kPhiloxUnits, width - first), group);
        }
    }
};

// --- Forward

template <class X, class Y>
void add_row(const X* x, const Y* y, std::int64_t row, std::int64_t width, Factors& factors,
             X* sum) {
    factors.each_group(
        row, width, [&](std::int64_t begin, std::int64_t count, const float* factor) {
            each_vector(count, [&](std::int64_t i, auto... n) {
                const std::int64_t j = begin + i;
                const Vec kept = load(factor + i), value = load(y + j, n...);
                store(sum + j, x == nullptr ? value * kept : fma(value, kept, load(x + j, n...)),
                      n...);
            });
        });
}

// LayerNorm of a row, and its statistics. The variance is that of the centered values: the mean may
// be large against it.
template <class X>
void normalize_row(const DropoutAddNormForward& problem, const X* sum, X* norm, float* statistics) {
    const std::int64_t width = problem.step.width;
    const auto value = [&](std::int64_t i, auto... n) { return load(sum + i, n...); };
    statistics[0] = static_cast<float>(sum_span(value, 0, width) / width);
    const Vec mean(statistics[0]);
    const auto square = [&](std::int64_t i, auto... n) {
        const Vec centered = load(sum + i, n...) - mean;
        return first(centered * centered, n...);
    };
    const double variance = sum_span(square, 0, width) / width;
    statistics[1] = static_cast<float>(1.0 / __builtin_sqrt(variance + problem.eps));
    const Vec scale(statistics[1]);
    each_vector(width, [&](std::int64_t i, auto... n) {
        const Vec standard = (load(sum + i, n...) - mean) * scale;
        store(norm + i, fma(standard, load(problem.weight + i, n...), load(problem.bias + i, n...)),
              n...);
    });
}

template <class X, class Y>
void forward(const DropoutAddNormForward& problem, const Mask& mask, std::int64_t begin,
             std::int64_t end) {
    const std::int64_t width = problem.step.width;
    const X* x = static_cast<const X*>(problem.x);
    const Y* y = static_cast<const Y*>(problem.y);
    Factors factors(mask);
    for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t place = row * width;
        X* sum = static_cast<X*>(problem.sum) + place;
        add_row(x + place, y + place, row, width, factors, sum);
        normalize_row(problem, sum, static_cast<X*>(problem.norm) + place,
                      problem.statistics + 2 * row);
    }
}

// --- Backward of the norm

constexpr std::int64_t kSpans = 32;     // of rows, each with its own sums over rows; at most
constexpr std::int64_t kSpanRows = 64;  // at least

// Equal spans of rows. They follow from the number of rows alone, and so do the bits of the sums.
struct Spans {
    std::int64_t count, rows;

    explicit Spans(std::int64_t all)
        : count(smaller(kSpans, divide_up(all, kSpanRows))), rows(divide_up(all, count)) {}
};

struct BackwardScratch {
    Arena arena;
    Mask mask;
    Spans spans;
    std::int64_t stride;  // of the sums below
    float* sums;          // [span, 2, stride]: parts of grad_weight and grad_bias

    BackwardScratch(const DropoutAdd& step, float* scratch)
        : arena(scratch),
          mask(step, arena),
          spans(step.rows),
          stride(round_up(step.width, 16)),
          sums(arena.take(spans.count * 2 * stride)) {}
};

// Of a row: the means of g and of g z, for z the standardized values and g the gradient by them.
struct Means {
    float grad, product;
};

// Also adds the row to a span's sums for grad_weight and grad_bias.
template <class X>
Means reduce_row(const X* grad_norm, const X* values, const float* weight, const float* statistics,
                 std::int64_t width, float* grad_weight, float* grad_bias) {
    const Vec mean(statistics[0]), scale(statistics[1]);
    Vec grads(0.0f), products(0.0f);
    each_vector(width, [&](std::int64_t i, auto... n) {
        const Vec grad = load(grad_norm + i, n...);
        const Vec standard = (load(values + i, n...) - mean) * scale;
        const Vec by_standard = grad * load(weight + i, n...);
        grads = grads + by_standard;
        products = fma(by_standard, standard, products);
        store(grad_weight + i, fma(grad, standard, load(grad_weight + i, n...)), n...);
        store(grad_bias + i, load(grad_bias + i, n...) + grad, n...);
    });
    return {sum(grads) / width, sum(products) / width};
}

template <class X, class Y>
void backward_row(const DropoutAddNormBackward& problem, std::int64_t row, Factors& factors,
                  float* grad_weight, float* grad_bias) {
    const std::int64_t width = problem.step.width, place = row * width;
    const X* values = static_cast<const X*>(problem.sum) + place;
    const X* grad_norm = static_cast<const X*>(problem.grad_norm) + place;
    const X* grad_sum = static_cast<const X*>(problem.grad_sum);
    if (grad_sum != nullptr) grad_sum += place;
    X* grad_x = static_cast<X*>(problem.grad_x) + place;
    const float* statistics = problem.statistics + 2 * row;
    const Means means =
        reduce_row(grad_norm, values, problem.weight, statistics, width, grad_weight, grad_bias);
    const Vec mean(statistics[0]), scale(statistics[1]);
    const Vec mean_grad(means.grad), mean_product(means.product), zero(0.0f);
    // The gradient by x, which is stored and returned.
    const auto differentiate = [&](std::int64_t i, auto... n) {
        const Vec standard = (load(values + i, n...) - mean) * scale;
        const Vec by_standard = load(grad_norm + i, n...) * load(problem.weight + i, n...);
        const Vec centered = by_standard - mean_grad - standard * mean_product;
        const Vec grad =
            fma(centered, scale, grad_sum == nullptr ? zero : load(grad_sum + i, n...));
        store(grad_x + i, grad, n...);
        return grad;
    };
    if (problem.grad_y == nullptr) {
        each_vector(width, differentiate);
        return;
    }
    Y* grad_y = static_cast<Y*>(problem.grad_y) + place;
    factors.each_group(
        row, width, [&](std::int64_t begin, std::int64_t count, const float* factor) {
            each_vector(count, [&](std::int64_t i, auto... n) {
                store(grad_y + begin + i, differentiate(begin + i, n...) * load(factor + i), n...);
            });
        });
}

// grad_weight and grad_bias: the sums of the spans, one after the other.
void add_spans(const DropoutAddNormBackward& problem, const BackwardScratch& scratch) {
    each_vector(problem.step.width, [&](std::int64_t i, auto... n) {
        Vec weight(0.0f), bias(0.0f);
        for (std::int64_t span = 0; span < scratch.spans.count; ++span) {
            const float* sums = scratch.sums + span * 2 * scratch.stride + i;
            weight = weight + load(sums, n...);
            bias = bias + load(sums + scratch.stride, n...);
        }
        store(problem.grad_weight + i, weight, n...);
        store(problem.grad_bias + i, bias, n...);
    });
}

template <class X, class Y>
void backward(const DropoutAddNormBackward& problem, const BackwardScratch& scratch,
              const ParallelFor& parallel) {
    const DropoutAdd& step = problem.step;
    const Spans& spans = scratch.spans;
    parallel(spans.count, 1, [&](std::int64_t begin, std::int64_t end) {
        Factors factors(scratch.mask);
        for (std::int64_t span = begin; span < end; ++span) {
            float* sums = scratch.sums + span * 2 * scratch.stride;
            std::memset(sums, 0, 2 * scratch.stride * sizeof(float));
            const std::int64_t last = smaller((span + 1) * spans.rows, step.rows);
            for (std::int64_t row = span * spans.rows; row < last; ++row) {
                backward_row<X, Y>(problem, row, factors, sums, sums + scratch.stride);
            }
        }
    });
    add_spans(problem, scratch);
}

// run<X, Y>() for the dtypes of x and y.
template <class Run>
void choose(const DropoutAdd& step, const Run& run) {
    if (step.x_dtype == DType::bfloat16) {
        run.template operator()<bfloat16, bfloat16>();
    } else if (step.y_dtype == DType::bfloat16) {
        run.template operator()<float, bfloat16>();
    } else {
        run.template operator()<float, float>();
    }
}

}  // namespace

std::int64_t dropout_add_scratch(const DropoutAdd& step) {
    Arena arena(nullptr);
    Mask(step, arena);
    return arena.used();
}

void dropout_add(const DropoutAddForward& problem, float* scratch, const ParallelFor& parallel) {
    const DropoutAdd& step = problem.step;
    Arena arena(scratch);
    const Mask mask(step, arena);
    mask.fill(step.width);
    choose(step, [&]<class X, class Y>() {
        const X* x = static_cast<const X*>(problem.x);
        const Y* y = static_cast<const Y*>(problem.y);
        X* sum = static_cast<X*>(problem.sum);
        parallel(step.rows, grain_rows(step), [&](std::int64_t begin, std::int64_t end) {
            Factors factors(mask);
            for (std::int64_t row = begin; row < end; ++row) {
                const std::int64_t place = row * step.width;
                add_row(x == nullptr ? nullptr : x + place, y + place, row, step.width, factors,
                        sum + place);
            }
        });
    });
}

void dropout_add_norm_forward(const DropoutAddNormForward& problem, float* scratch,
                              const ParallelFor& parallel) {
    const DropoutAdd& step = problem.step;
    Arena arena(scratch);
    const Mask mask(step, arena);
    mask.fill(step.width);
    choose(step, [&]<class X, class Y>() {
        parallel(step.rows, grain_rows(step), [&](std::int64_t begin, std::int64_t end) {
            forward<X, Y>(problem, mask, begin, end);
        });
    });
}

std::int64_t dropout_add_norm_backward_scratch(const DropoutAdd& step) {
    return BackwardScratch(step, nullptr).arena.used();
}

void dropout_add_norm_backward(const DropoutAddNormBackward& problem, float* scratch,
                               const ParallelFor& parallel) {
    const BackwardScratch memory(problem.step, scratch);
    memory.mask.fill(problem.step.width);
    choose(problem.step, [&]<class X, class Y>() { backward<X, Y>(problem, memory, parallel); });
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
