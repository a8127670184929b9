// Rows of images for conv3x3: what stands in memory on one side, rows of floats with `lanes` per
// pixel on the other: what is read has its channels or whole vectors of them, what is written the
// latter.
#pragma once

#include <cstring>

#include "convert.h"
#include "dmao/conv3x3.h"
#include "dmao/integers.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

inline std::int64_t lanes_of(std::int64_t channels) { return round_up(channels, Vec::width); }

constexpr std::int64_t kBandRows = 4;

// How images are cut into bands of `rows` rows: whole tiles and whole windows of the pooling.
struct Bands {
    std::int64_t images, height, width, rows, per_image, count;

    explicit Bands(const Conv3x3& c)
        : images(c.images),
          height(c.height),
          width(c.width),
          rows(round_up(kBandRows, c.time % 2 == 0 ? c.time : 2 * c.time)),
          per_image(divide_up(c.height, rows)),
          count(images * per_image) {}

    std::int64_t image(std::int64_t band) const { return band / per_image; }
    std::int64_t first(std::int64_t band) const { return band % per_image * rows; }
    std::int64_t rows_in(std::int64_t band) const { return smaller(rows, height - first(band)); }
};

// Numbers of pixels, of as many channels as a vector has.
using Numbers = std::int32_t __attribute__((vector_size(sizeof(Vec))));
using Bytes = std::uint8_t __attribute__((vector_size(Vec::width)));

inline Numbers load_numbers(const std::uint8_t* p, int count) {
    Bytes bytes = {};
    std::memcpy(&bytes, p, count);
    return __builtin_convertvector(bytes, Numbers);
}

inline void store_numbers(std::uint8_t* p, Numbers numbers, int count) {
    const Bytes bytes = __builtin_convertvector(numbers, Bytes);
    std::memcpy(p, &bytes, count);
}

// f(first channel, how many) for all of them; with a constant where it is a whole vector.
template <class Function>
void by_vectors(std::int64_t channels, const Function& f) {
    std::int64_t n = 0;
    for (; n + Vec::width <= channels; n += Vec::width) f(n, Vec::width);
    if (n < channels) f(n, static_cast<int>(channels - n));
}

// Row h of y counts. h is counted over all images.
inline bool counts(const Conv3x3& c, std::int64_t h) { return c.valid == nullptr || c.valid[h]; }

// --- Read

template <class T>
void read_pixels(const T* pixels, std::int64_t count, std::int64_t channels, std::int64_t lanes,
                 float* row) {
    if (lanes == channels) return convert(pixels, count * channels, row);
    for (std::int64_t w = 0; w < count; ++w) {
        convert(pixels + w * channels, channels, row + w * lanes);
    }
}

// The rows of x.
template <class T>
struct Images {
    const Conv3x3& c;
    const T* x;
    std::int64_t lanes;

    std::int64_t channels() const { return c.in; }

    void read(std::int64_t image, std::int64_t h, float* row) const {
        read_pixels(x + (image * c.height + h) * c.width * c.in, c.width, c.in, lanes, row);
    }
};

// The rows of the gradient of what stands before ReLU and pooling.
template <class T>
struct Gradients {
    const Conv3x3& c;
    const T* grad_y;
    const std::uint8_t* choice;
    std::int64_t lanes;

    std::int64_t channels() const { return c.out; }

    void read(std::int64_t image, std::int64_t h, float* row) const {
        const std::int64_t rows = c.height / c.time, columns = c.width / c.frequency,
                           y = image * rows + h / c.time;
        if (h / c.time >= rows || !counts(c, y)) {
            std::memset(row, 0, c.width * lanes * sizeof(float));
            return;
        }
        if (!c.pooled) return read_pixels(grad_y + y * columns * c.out, c.width, c.out, lanes, row);
        for (std::int64_t column = 0; column < columns; ++column) {
            const std::int64_t from = (y * columns + column) * c.out;
            for (std::int64_t j = 0; j < c.frequency; ++j, row += lanes) {
                const auto number = static_cast<std::int32_t>(h % c.time * c.frequency + j);
                by_vectors(c.out, [&](std::int64_t n, int count) {
                    const auto chosen = load_numbers(choice + from + n, count) == number;
                    const Vec gradient = load(grad_y + from + n, count), zero(0.0f);
                    store(row + n, Vec(chosen ? gradient.v : zero.v), count);
                });
            }
        }
        std::memset(row, 0, (c.width - columns * c.frequency) * lanes * sizeof(float));
    }
};

// Rows first ... first + count - 1 of an image, each `size` floats, with `margin` pixels on their
// left; rows beyond the image are zero. What stands beside the image's pixels is left alone.
template <class Source>
void read_rows(const Source& source, std::int64_t image, std::int64_t first, std::int64_t count,
               std::int64_t margin, std::int64_t size, float* rows) {
    for (std::int64_t h = first; h < first + count; ++h, rows += size) {
        float* row = rows + margin * source.lanes;
        if (h >= 0 && h < source.c.height) {
            source.read(image, h, row);
        } else {
            std::memset(row, 0, source.c.width * source.lanes * sizeof(float));
        }
    }
}

// --- Written

// The gradient of x.
template <class T>
struct WrittenImages {
    const Conv3x3& c;
    T* grad_x;

    std::int64_t channels() const { return c.in; }

    // Rows first ... first + count - 1 of an image from `rows`, each `size` floats.
    void write(std::int64_t image, std::int64_t first, std::int64_t count, const float* rows,
               std::int64_t size) const {
        const std::int64_t lanes = lanes_of(c.in);
        T* to = grad_x + (image * c.height + first) * c.width * c.in;
        for (std::int64_t i = 0; i < count; ++i) {
            for (std::int64_t w = 0; w < c.width; ++w, to += c.in) {
                const float* from = rows + i * size + w * lanes;
                by_vectors(c.in,
                           [&](std::int64_t n, int in) { store(to + n, load(from + n), in); });
            }
        }
    }
};

// y, from sums without the bias.
template <class T>
struct Outputs {
    const Conv3x3& c;
    const float* bias;
    T* y;
    std::uint8_t* choice;

    std::int64_t channels() const { return c.out; }

    // Whole windows of rows, but for the last of an image, which are dropped if they fill none.
    void write(std::int64_t image, std::int64_t first, std::int64_t count, const float* sums,
               std::int64_t size) const {
        const std::int64_t rows = c.height / c.time, columns = c.width / c.frequency,
                           lanes = lanes_of(c.out);
        for (std::int64_t i = 0; i < count / c.time; ++i) {
            const std::int64_t row = image * rows + first / c.time + i;
            const std::int64_t at = row * columns * c.out;
            if (!counts(c, row)) {
                std::memset(y + at, 0, columns * c.out * sizeof(T));
                if (c.pooled) std::memset(choice + at, kConv3x3Window, columns * c.out);
                continue;
            }
            const float* window = sums + i * c.time * size;
            for (std::int64_t w = 0; w < columns; ++w, window += c.frequency * lanes) {
                const std::int64_t to = at + w * c.out;
                c.pooled ? pool(window, size, y + to, choice + to) : add_bias(window, y + to);
            }
        }
    }

    void add_bias(const float* sums, T* to) const {
        by_vectors(c.out, [&](std::int64_t n, int count) {
            store(to + n, load(sums + n) + load(bias + n), count);
        });
    }

    // Of equal pixels the first is chosen; NaN is chosen and stays, as in max_pool2d.
    void pool(const float* window, std::int64_t size, T* to, std::uint8_t* chosen) const {
        const std::int64_t lanes = lanes_of(c.out);
        by_vectors(c.out, [&](std::int64_t n, int count) {
            decltype(Vec::v) largest = Vec(0.0f).v;
            Numbers pixel = Numbers{} + static_cast<std::int32_t>(kConv3x3Window), number = {};
            for (std::int64_t i = 0; i < c.time; ++i) {
                for (std::int64_t j = 0; j < c.frequency; ++j, number += 1) {
                    const auto value = (load(window + i * size + j * lanes + n) + load(bias + n)).v;
                    const Numbers more = (value > largest) | (value != value);
                    largest = more ? value : largest;
                    pixel = more ? number : pixel;
                }
            }
            store(to + n, Vec(largest), count);
            store_numbers(chosen + n, pixel, count);
        });
    }
};

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
