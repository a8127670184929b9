// block_attention SEED: forward and backward of problems with everything in them, on the host,
// against loops in float64; prints "right: ... conflicts", "wrong: ..." or "error: ...".
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "block_attention_launch.cuh"
#include "random_values.h"

namespace dmao {
namespace {

using Values = std::vector<double>;

struct Shape {
    const char* name;
    std::vector<int> lengths;
    int padding, heads, width, reach;  // rows behind each utterance; reach < 0: no positions
    int left, right, chunk, left_chunks, block;
    bool dead_head, content, position;
    double p;
};

template <class E>
class Problem {
  public:
    explicit Problem(const Shape& shape) : s_(shape), h_(shape.heads), d_(shape.width) {
        int longest = 0;
        for (int length : s_.lengths) {
            spans_.push_back(rows_);
            spans_.push_back(length);
            rows_ += length + s_.padding;
            longest = length > longest ? length : longest;
        }
        line_ = (d_ + kPerChunk<E> - 1) / kPerChunk<E> * kPerChunk<E> * h_;  // aligned heads
        for (auto* each : {&q_, &k_, &v_, &grad_out_}) *each = poisoned_rows();
        if (s_.reach >= 0) rel_pos_ = random_values<E>((2 * s_.reach + 1) * line_);
        if (s_.content) content_bias_ = random_values<E>(h_ * d_);
        if (s_.position) position_bias_ = random_values<E>(h_ * d_);
        for (int i = 0; i < h_; ++i) alive_.push_back(!(s_.dead_head && i == h_ - 1));
        if (s_.block > 0) make_mask((longest + s_.block - 1) / s_.block);

        Attention& a = a_;
        a.q = rows(q_), a.k = rows(k_), a.v = rows(v_);
        if (s_.reach >= 0) a.rel_pos = rows(rel_pos_);
        a.content_bias = content_bias_.get();
        a.position_bias = position_bias_.get();
        a.spans = spans_.data();
        if (s_.block > 0) {
            a.key_lines = {row_offsets_.data(), column_ids_.data()};
            a.query_lines = {column_offsets_.data(), row_ids_.data()};
        }
        a.head_mask = s_.dead_head ? alive_copy() : nullptr;
        a.seed = s_.p > 0 ? &seed_ : nullptr;
        a.utterances = static_cast<int>(s_.lengths.size());
        a.rows = rows_, a.heads = h_, a.width = d_, a.frames = longest;
        a.block = s_.block, a.mask_lines = grid_;
        a.mask_count = static_cast<int>(column_ids_.size());
        set_bounds(a, s_.left, s_.right, s_.chunk, s_.left_chunks);
        a.reach = s_.reach < 0 ? 0 : s_.reach;
        a.threshold = dropout_threshold(s_.p);
        a.keep_factor = static_cast<float>(1 / (1 - s_.p));
        a.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d_)));
    }

    template <int kWidth>
    void check(double tolerance) {
        const attention::Launches<E, kWidth> launches(Gpu{90, 4, nullptr});
        const int size = rows_ * h_ * d_;
        std::vector<E> out = poison(size), grad_q = poison(size), grad_k = poison(size),
                       grad_v = poison(size);
        std::vector<E> grad_rel_pos = poison((2 * s_.reach + 1) * h_ * d_),
                       grad_content = poison(h_ * d_), grad_position = poison(h_ * d_);
        std::vector<float> lse(h_ * rows_, kNaN);
        launches.run(AttentionForward{a_, out.data(), lse.data()});
        const AttentionScratch sizes = launches.scratch(a_);
        std::vector<float> scratch(sizes.total(), kNaN);
        AttentionBackward backward{a_,
                                   rows(grad_out_),
                                   {out.data(), h_ * d_, d_},
                                   lse.data(),
                                   grad_q.data(),
                                   grad_k.data(),
                                   grad_v.data(),
                                   grad_rel_pos.data(),
                                   grad_content.data(),
                                   grad_position.data()};
        sizes.place(scratch.data(), backward);
        launches.run(backward);
        solve();
        compare("out", out, true_out_, tolerance);
        compare("grad_q", grad_q, true_q_, tolerance);
        compare("grad_k", grad_k, true_k_, tolerance);
        compare("grad_v", grad_v, true_v_, tolerance);
        if (s_.reach >= 0) compare("grad_rel_pos", grad_rel_pos, true_rel_pos_, tolerance);
        if (s_.content) compare("grad_content_bias", grad_content, true_content_, tolerance);
        if (s_.position) compare("grad_position_bias", grad_position, true_position_, tolerance);
    }

  private:
    static constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

    static std::vector<E> poison(int count) {
        if constexpr (sizeof(E) == 4) {
            return std::vector<E>(count < 0 ? 0 : count, kNaN);
        } else {
            return std::vector<E>(count < 0 ? 0 : count, E{0xFFFF});
        }
    }
    std::unique_ptr<E[]> poisoned_rows() const {
        auto made = random_values<E>(rows_ * line_);
        for (std::size_t u = 0; u < s_.lengths.size(); ++u) {
            for (int i = 0; i < s_.lengths[u] + s_.padding; ++i) {
                for (int h = 0; h < h_; ++h) {
                    const bool dead = i >= s_.lengths[u] || (s_.dead_head && h == h_ - 1);
                    for (int c = dead ? 0 : d_; c < line_ / h_; ++c) {
                        made[(spans_[2 * u] + i) * line_ + h * (line_ / h_) + c] = poison(1)[0];
                    }
                }
            }
        }
        return made;
    }
    void make_mask(int grid) {
        grid_ = grid;
        live_.assign(grid * grid, false);
        for (int i = 0; i < grid * grid; ++i) live_[i] = random_bits() % 2 == 0;
        for (bool by_row : {true, false}) {
            auto& offsets = by_row ? row_offsets_ : column_offsets_;
            auto& ids = by_row ? column_ids_ : row_ids_;
            offsets.push_back(0);
            for (int i = 0; i < grid; ++i) {
                for (int j = 0; j < grid; ++j) {
                    if (live_[by_row ? i * grid + j : j * grid + i]) ids.push_back(j);
                }
                offsets.push_back(static_cast<int>(ids.size()));
            }
        }
    }
    const bool* alive_copy() {
        mask_.reset(new bool[h_]);
        for (int i = 0; i < h_; ++i) mask_[i] = alive_[i];
        return mask_.get();
    }
    AttentionRows rows(const std::unique_ptr<E[]>& data) const {
        return {data.get(), line_, line_ / h_};
    }
    double at(const std::unique_ptr<E[]>& data, int row, int h, int c) const {
        return ptx::widen(data[row * line_ + h * (line_ / h_) + c]);
    }
    double bias(const std::unique_ptr<E[]>& data, int h, int c) const {
        return data ? ptx::widen(data[h * d_ + c]) : 0.0;
    }
    bool sees(int i, int j) const {
        if (s_.left >= 0 && j < i - s_.left) return false;
        if (s_.right >= 0 && j > i + s_.right) return false;
        if (s_.chunk > 0 && j / s_.chunk > i / s_.chunk) return false;
        if (s_.chunk > 0 && s_.left_chunks >= 0 && j / s_.chunk < i / s_.chunk - s_.left_chunks) {
            return false;
        }
        return s_.block == 0 || live_[i / s_.block * grid_ + j / s_.block];
    }

    void solve() {
        const int size = rows_ * h_ * d_;
        for (auto* each : {&true_out_, &true_q_, &true_k_, &true_v_}) each->assign(size, 0.0);
        true_rel_pos_.assign(s_.reach < 0 ? 0 : (2 * s_.reach + 1) * h_ * d_, 0.0);
        true_content_.assign(h_ * d_, 0.0);
        true_position_.assign(h_ * d_, 0.0);
        for (std::size_t u = 0; u < s_.lengths.size(); ++u) {
            for (int h = 0; h < h_; ++h) {
                for (int i = 0; alive_[h] && i < s_.lengths[u]; ++i) {
                    solve_row(static_cast<int>(u), h, i);
                }
            }
        }
    }
    void solve_row(int u, int h, int i) {
        const int first = spans_[2 * u], length = s_.lengths[u], row = first + i;
        Values score(length), weight(length), keep(length);
        const Philox philox(seed_);
        double total = 0.0, inner = 0.0;
        for (int j = 0; j < length; ++j) {
            if (!sees(i, j)) continue;
            for (int c = 0; c < d_; ++c) {
                const double q = at(q_, row, h, c);
                score[j] += (q + bias(content_bias_, h, c)) * at(k_, first + j, h, c);
                if (s_.reach < 0) continue;
                score[j] += (q + bias(position_bias_, h, c)) * at(rel_pos_, place(i, j), h, c);
            }
            weight[j] = std::exp(score[j] * a_.scale);
            total += weight[j];
            keep[j] = a_.threshold == 0                       ? 1.0
                      : philox.keep(i, j, a_.threshold, u, h) ? 1 / (1 - s_.p)
                                                              : 0.0;
        }
        Values grad(length);
        for (int j = 0; j < length; ++j) {
            if (!sees(i, j)) continue;
            weight[j] /= total;
            for (int c = 0; c < d_; ++c) {
                const int to = (row * h_ + h) * d_ + c;
                const double g = at(grad_out_, row, h, c), v = at(v_, first + j, h, c);
                true_out_[to] += weight[j] * keep[j] * v;
                true_v_[((first + j) * h_ + h) * d_ + c] += weight[j] * keep[j] * g;
                grad[j] += g * v * keep[j];
            }
            inner += weight[j] * grad[j];
        }
        for (int j = 0; j < length; ++j) {
            if (!sees(i, j)) continue;
            const double ds = weight[j] * (grad[j] - inner) * a_.scale;
            for (int c = 0; c < d_; ++c) {
                const double q = at(q_, row, h, c), k = at(k_, first + j, h, c);
                const int to = (row * h_ + h) * d_ + c;
                true_q_[to] += ds * k;
                true_k_[((first + j) * h_ + h) * d_ + c] += ds * (q + bias(content_bias_, h, c));
                true_content_[h * d_ + c] += ds * k;
                if (s_.reach < 0) continue;
                const double r = at(rel_pos_, place(i, j), h, c);
                true_q_[to] += ds * r;
                true_position_[h * d_ + c] += ds * r;
                true_rel_pos_[(place(i, j) * h_ + h) * d_ + c] +=
                    ds * (q + bias(position_bias_, h, c));
            }
        }
    }
    int place(int i, int j) const {
        const int at = s_.reach + j - i;
        return at < 0 ? 0 : at > 2 * s_.reach ? 2 * s_.reach : at;
    }

    void compare(const char* what, const std::vector<E>& found, const Values& truth,
                 double tolerance) const {
        double largest = 0.1;
        for (double value : truth) largest = std::fmax(largest, std::fabs(value));
        for (std::size_t i = 0; i < truth.size(); ++i) {
            const double error = std::fabs(ptx::widen(found[i]) - truth[i]);
            if (error <= tolerance * largest) continue;
            throw std::logic_error(
                "wrong: " + std::string(s_.name) + ", elements of " + std::to_string(sizeof(E)) +
                ", width " + std::to_string(d_) + ": " + what + "[" + std::to_string(i) + "] is " +
                std::to_string(ptx::widen(found[i])) + ", not " + std::to_string(truth[i]));
        }
    }

    const Shape& s_;
    int h_, d_, rows_ = 0, line_ = 0, grid_ = 0;
    std::int64_t seed_ = 0x123456789ABCDEF;
    std::vector<std::int32_t> spans_, row_offsets_, column_ids_, column_offsets_, row_ids_;
    std::vector<bool> alive_, live_;
    std::unique_ptr<bool[]> mask_;
    std::unique_ptr<E[]> q_, k_, v_, grad_out_, rel_pos_, content_bias_, position_bias_;
    Attention a_{};
    Values true_out_, true_q_, true_k_, true_v_, true_rel_pos_, true_content_, true_position_;
};

// lengths, padding, heads, width, reach, left, right, chunk, left_chunks, block, ...
const Shape kShapes[] = {
    {"plain", {70, 0, 1, 21}, 0, 2, 24, -1, -1, -1, 0, -1, 0, true, false, false, 0.0},
    {"window and chunk", {140, 33}, 3, 1, 32, -1, 40, 17, 24, 1, 0, false, true, false, 0.2},
    {"mask", {150, 77}, 0, 1, 17, -1, 70, -1, 0, -1, 16, false, false, false, 0.1},
    {"positions", {75, 40}, 2, 2, 32, 74, -1, -1, 0, -1, 0, true, true, true, 0.0},
    {"all", {150, 90}, 0, 1, 29, 30, 100, 60, 0, -1, 48, false, true, true, 0.3},
};

template <class E, int kWidth>
void check_all(double tolerance) {
    for (Shape shape : kShapes) {
        shape.width += kWidth - 32;
        Problem<E>(shape).template check<kWidth>(tolerance);
    }
}

}  // namespace
}  // namespace dmao

int main(int, char** arguments) {
    dmao::cuda_on_host::set_schedule(std::atoi(arguments[1]));
    try {
#if defined(DMAO_ALL_WIDTHS)
        dmao::check_all<dmao::bfloat16, 96>(2e-2);
        dmao::check_all<dmao::bfloat16, 128>(2e-2);
        dmao::check_all<dmao::float16, 64>(3e-3);
        dmao::check_all<dmao::float16, 256>(3e-3);
        dmao::check_all<float, 64>(3e-3);
        dmao::check_all<float, 128>(3e-3);
        dmao::check_all<float, 256>(3e-3);
#elif defined(DMAO_FLOAT)
        dmao::check_all<float, 32>(3e-3);
#else
        dmao::check_all<dmao::bfloat16, 32>(2e-2);
#endif
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    const dmao::cuda_on_host::Counts counts = dmao::cuda_on_host::counts();
    std::printf("right: %ld mma, %ld ldmatrix, %ld conflicts\n", counts.matrix_products,
                counts.matrix_loads, counts.bank_conflicts);
}
