// pieces: of tensors of many shapes the pieces cover every entry once, and their sums stand side by
// side; prints "right" or "wrong: ...".
#include "pieces.cuh"

#include <cstdio>
#include <vector>

#include "values.h"

namespace dmao {
namespace {

void check(int repeats, int components, int run) {
    const std::string name = "[" + std::to_string(repeats) + ", " + std::to_string(components) +
                             ", " + std::to_string(run) + "]";
    const Cut cut = cut_of(repeats, components, run);
    const int size = repeats * components * run;
    // Of every entry and of every sum: how often it was met. Of a sum: whose it is.
    std::vector<int> entries(size), sums(cut.sums());
    std::vector<int> owner(cut.sums(), -1);
    const auto meet = [&](std::int64_t sum, std::int64_t entry) {
        const int component = static_cast<int>(entry / run % components);
        expect(owner[sum] == -1 || owner[sum] == component, name + ": a sum of two components");
        owner[sum] = component;
        ++entries[entry];
    };
    for (int i = 0; i < cut.pieces(); ++i) {
        const Piece piece = piece_of(cut, 0, i);
        expect(piece.rows >= 1 && piece.rows <= kPieceRows, name + ": rows");
        expect(piece.columns >= 1 && piece.columns <= kPieceColumns, name + ": columns");
        for (int column = 0; column < (piece.single ? 1 : piece.columns); ++column) {
            ++sums[piece.sums + column];
        }
        for (int row = 0; row < piece.rows; ++row) {
            for (int column = 0; column < piece.columns; ++column) {
                const std::int64_t at = row * piece.stride + column;
                if (at >= piece.rest) continue;
                meet(piece.sums + (piece.single ? 0 : column), piece.first + at);
            }
        }
    }
    for (int met : entries) expect(met == 1, name + ": an entry is met not once");
    for (int met : sums) expect(met == 1, name + ": a sum is met not once");
    const SumsOfComponent own = sums_of_component(cut, repeats, components, run);
    for (int c = 0; c < components; ++c) {
        for (int place = 0; place < own.rows * own.columns; ++place) {
            int& found =
                owner[c * own.columns + place / own.columns * own.stride + place % own.columns];
            expect(found == c, name + ": a sum belongs to another component");
            found = -2;
        }
    }
    for (int found : owner) expect(found == -2, name + ": a sum belongs to no component");
}

}  // namespace
}  // namespace dmao

int main() {
    try {
        for (int repeats : {1, 2, 7, 8, 9, 32, 33, 70}) {
            for (int components : {1, 3}) {
                for (int run : {1, 3, 8, 255, 256, 257, 512, 8192, 8200}) {
                    if (repeats * run < 100000) dmao::check(repeats, components, run);
                }
            }
        }
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    std::puts("right");
}
