// How tensors of all shapes are cut into pieces, which the blocks of one launch take in turns. A
// pure function of the shape, and so are the bits of sums.
//
// A tensor [repeats, components, run] is cut in one of two ways. Few long runs: every run is a
// matrix of its own, folded into rows of kPieceColumns. Else the tensor is one matrix, [repeats,
// components * run]. A piece is at most kPieceRows x kPieceColumns of a matrix.
#pragma once

#include <cstdint>

namespace dmao {

inline constexpr int kPieceRows = 32, kPieceColumns = 256;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Cut {
    std::int64_t matrices;
    std::int64_t size, rows, width;  // entries of a matrix; its last row may be shorter
    bool folded;                     // a piece has one sum, else one for each column

    // Pieces of a matrix, one below the other and side by side.
    constexpr std::int64_t down() const { return ceil_div(rows, kPieceRows); }
    constexpr std::int64_t across() const { return ceil_div(width, kPieceColumns); }
    constexpr std::int64_t pieces() const { return matrices * down() * across(); }
    constexpr std::int64_t sums() const { return folded ? pieces() : down() * width; }
};

// Of a tensor that has entries.
constexpr Cut cut_of(std::int64_t repeats, std::int64_t components, std::int64_t run) {
    if (repeats < 8 && run >= kPieceColumns) {
        return {repeats * components, run, ceil_div(run, kPieceColumns), kPieceColumns, true};
    }
    return {1, repeats * components * run, repeats, components * run, false};
}

// Where the sums of one component stand among those of its tensor: at rows * columns places, from
// that of component c, `columns` times c, on; rows are `stride` apart.
struct SumsOfComponent {
    std::int64_t rows, columns, stride;
};

constexpr SumsOfComponent sums_of_component(const Cut& cut, std::int64_t repeats,
                                            std::int64_t components, std::int64_t run) {
    const std::int64_t columns = cut.folded ? cut.down() : run;
    return {cut.folded ? repeats : cut.down(), columns, components * columns};
}

}  // namespace dmao
