// All products of csrc/cuda/linear.cuh: which kernel belongs to which tile.
#pragma once

#include "linear_launch.cuh"

namespace dmao {

template <class E, Pass pass, class Shape>
void launch_tile(const LinearRun& run, const LinearProduct<E>& p) {
    const std::int64_t tiles =
        static_cast<std::int64_t>(TilePlace::tiles(p, Axis::rows, p.rows, Shape::kRows)) *
        TilePlace::tiles(p, Axis::columns, p.columns, Shape::kColumns);
    const auto start = [&]<bool gathered>() {
        run.launch<linear_kernel<E, pass, Shape, gathered>>(
            tiles, p.plane_count, Shape::kThreads, Shape::template Product<E, pass>::kSharedBytes,
            p);
    };
    if constexpr (pass != Pass::weights) {
        if (p.listed == Axis::depth && p.b_by_element && !p.list.everything) {
            return start.template operator()<true>();
        }
    }
    start.template operator()<false>();
}

template <Pass pass, class E>
void launch_product(const LinearRun& run, const LinearProduct<E>& p, LinearTile tile) {
    const auto take = [&]<class Shape>() { launch_tile<E, pass, Shape>(run, p); };
    if (tile == LinearTile::t128x128) {
        constexpr int across = sizeof(E) == 2 && pass != Pass::weights ? 4 : 2;
        return take.template operator()<TileShape<128, 128, 2, across, 3, 2>>();
    }
    if (tile == LinearTile::t64x64)
        return take.template operator()<TileShape<64, 64, 2, 2, 4, 3>>();
    if constexpr (pass == Pass::weights) {
        if (tile == LinearTile::t64x128)
            return take.template operator()<TileShape<64, 128, 2, 4, 3, 2>>();
        if (tile == LinearTile::t32x128)
            return take.template operator()<TileShape<32, 128, 1, 4, 3, 3>>();
        return take.template operator()<TileShape<16, 128, 1, 4, 4, 3>>();
    } else {
        if (tile == LinearTile::t128x64)
            return take.template operator()<TileShape<128, 64, 2, 2, 3, 3>>();
        if (tile == LinearTile::t128x32)
            return take.template operator()<TileShape<128, 32, 4, 1, 3, 3>>();
        if constexpr (pass == Pass::forward) {
            if (tile == LinearTile::t128x48)
                return take.template operator()<TileShape<128, 48, 4, 1, 3, 3>>();
        }
        return take.template operator()<TileShape<128, 16, 4, 1, 4, 3>>();
    }
}

}  // namespace dmao

// For the one file that compiles the kernels of a type.
#define DMAO_LINEAR_PRODUCTS(E)                                                                \
    namespace dmao {                                                                           \
    template void launch_product<Pass::forward, E>(const LinearRun&, const LinearProduct<E>&,  \
                                                   LinearTile);                                \
    template void launch_product<Pass::backward, E>(const LinearRun&, const LinearProduct<E>&, \
                                                    LinearTile);                               \
    template void launch_product<Pass::weights, E>(const LinearRun&, const LinearProduct<E>&,  \
                                                   LinearTile);                                \
    }
