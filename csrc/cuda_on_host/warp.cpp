// What the lanes of a warp do together. Layouts of fragments: PTX ISA, "Warp-level matrix
// instructions", mma.m16n8k16, mma.m16n8k8 and ldmatrix.
#include <bit>

#include "block.h"

namespace dmao::cuda_on_host {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFF;

template <class T>
T read(const void* from) {
    T value;
    copy_bytes(&value, from, sizeof(T));
    return value;
}

// --- Shuffles

constexpr std::size_t kValue = 16;  // bytes of a shuffled value; the lane to read stands behind it

void shuffle_lanes(Warp::Words in, Warp::Words out, unsigned mask) {
    for (int lane = 0; lane < kWarp; ++lane) {
        if ((mask >> lane & 1) == 0) continue;
        const int source = read<int>(in[lane] + kValue);
        if (source < 0 || source >= kWarp || (mask >> source & 1) == 0) {
            fail("a shuffle reads from a lane that does not take part");
        }
        copy_bytes(out[lane], in[source], kValue);
    }
}

// --- ldmatrix: four matrices of 8 rows of 16 bytes; lane l has the address of row l % 8 of l / 8

constexpr int kRowsAtOnce = 8, kBankGroups = 8;

// Eight rows are read in one turn if they fall into different groups of four banks, or are one.
void count_conflicts(const unsigned char* const* rows) {
    int turns = 1;
    for (int group = 0; group < kBankGroups; ++group) {
        int different = 0;
        for (int i = 0; i < kRowsAtOnce; ++i) {
            bool first = std::bit_cast<std::uintptr_t>(rows[i]) / 16 % kBankGroups ==
                         static_cast<std::uintptr_t>(group);
            for (int j = 0; j < i; ++j) first = first && rows[j] != rows[i];
            different += first;
        }
        turns = different > turns ? different : turns;
    }
    totals.bank_conflicts += turns - 1;
}

template <bool transposed>
void load(Warp::Words in, Warp::Words out, unsigned) {
    const unsigned char* rows[kWarp];
    for (int lane = 0; lane < kWarp; ++lane) rows[lane] = read<const unsigned char*>(in[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
        const unsigned char* const* own = rows + matrix * kRowsAtOnce;
        count_conflicts(own);
        for (int lane = 0; lane < kWarp; ++lane) {
            unsigned char* word = out[lane] + 4 * matrix;
            if (transposed) {
                copy_bytes(word, own[lane % 4 * 2] + lane / 4 * 2, 2);
                copy_bytes(word + 2, own[lane % 4 * 2 + 1] + lane / 4 * 2, 2);
            } else {
                copy_bytes(word, own[lane / 4] + lane % 4 * 4, 4);
            }
        }
    }
    ++totals.matrix_loads;
}

// --- mma: what a lane brings is d[4], a[4], b[2]; group = lane / 4, pair = lane % 4

template <Element element>
float half_of(unsigned word, int half) {
    const std::uint16_t bits = static_cast<std::uint16_t>(word >> (16 * half));
    if constexpr (element == Element::bfloat16) {
        return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
    } else {
        return static_cast<float>(std::bit_cast<_Float16>(bits));
    }
}

float tfloat32(unsigned word) { return std::bit_cast<float>(word & 0xFFFFE000); }

template <Element element>
void multiply(Warp::Words in, Warp::Words out, unsigned) {
    constexpr int depth = element == Element::tfloat32 ? 8 : 16;
    float a[16][depth], b[depth][8];
    double d[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
        const int group = lane / 4, pair = lane % 4;
        const float* sums = reinterpret_cast<const float*>(in[lane]);
        const unsigned* left = reinterpret_cast<const unsigned*>(in[lane] + 16);
        const unsigned* right = reinterpret_cast<const unsigned*>(in[lane] + 32);
        for (int i = 0; i < 4; ++i) d[group + i / 2 * 8][2 * pair + i % 2] = sums[i];
        if constexpr (element == Element::tfloat32) {
            for (int i = 0; i < 4; ++i) a[group + i % 2 * 8][pair + i / 2 * 4] = tfloat32(left[i]);
            for (int i = 0; i < 2; ++i) b[pair + 4 * i][group] = tfloat32(right[i]);
        } else {
            for (int half = 0; half < 2; ++half) {
                for (int i = 0; i < 4; ++i) {
                    a[group + i % 2 * 8][2 * pair + half + i / 2 * 8] =
                        half_of<element>(left[i], half);
                }
                for (int i = 0; i < 2; ++i) {
                    b[2 * pair + half + 8 * i][group] = half_of<element>(right[i], half);
                }
            }
        }
    }
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < depth; ++k) {
            for (int column = 0; column < 8; ++column) {
                d[row][column] += static_cast<double>(a[row][k]) * b[k][column];
            }
        }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
        float* sums = reinterpret_cast<float*>(out[lane]);
        for (int i = 0; i < 4; ++i) {
            sums[i] = static_cast<float>(d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
        }
    }
    ++totals.matrix_products;
}

}  // namespace

void shuffle(unsigned mask, const void* value, std::size_t size, int source, void* result) {
    unsigned char brought[kValue + sizeof(int)] = {};
    copy_bytes(brought, value, size);
    copy_bytes(brought + kValue, &source, sizeof(source));
    block->collective(shuffle_lanes, mask, brought, sizeof(brought), result, size);
}

void load_matrices(unsigned (&words)[4], const void* row, bool transposed) {
    if (std::bit_cast<std::uintptr_t>(row) % 16 != 0) fail("ldmatrix: a row is not aligned");
    if (forbidden(row, 16)) fail("ldmatrix: a row is not inside of shared memory");
    note_read(row, 16);
    block->collective(transposed ? load<true> : load<false>, kAllLanes, &row, sizeof(row), words,
                      sizeof(words));
}

void multiply_matrices(Element element, float (&d)[4], const unsigned (&a)[4],
                       const unsigned (&b)[2]) {
    unsigned char brought[40];
    copy_bytes(brought, d, 16);
    copy_bytes(brought + 16, a, 16);
    copy_bytes(brought + 32, b, 8);
    const Warp::Operation operation = element == Element::bfloat16  ? multiply<Element::bfloat16>
                                      : element == Element::float16 ? multiply<Element::float16>
                                                                    : multiply<Element::tfloat32>;
    block->collective(operation, kAllLanes, brought, sizeof(brought), d, sizeof(d));
}

}  // namespace dmao::cuda_on_host
