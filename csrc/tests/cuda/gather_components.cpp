// gather_components SEED: tensors of all types and many shapes and numbers, to the bit; prints
// "right" or "wrong: ...".
#include <cstdio>
#include <cstdlib>

#include "gather_components_launch.cuh"
#include "values.h"

namespace dmao {
namespace {

struct Problem {
    int repeats, components, run, old_components, given_components;
    Values x, given, out;
    std::vector<std::int64_t> index;
};

Problem random_problem(int repeats, int old_components, int given_components, int run,
                       int components, int skip) {
    const ElementType type = random_type();
    Problem problem{repeats,
                    components,
                    run,
                    old_components,
                    given_components,
                    Values(type, repeats * old_components * run, skip),
                    Values(type, repeats * given_components * run, skip),
                    Values(type, repeats * components * run),
                    {}};
    problem.out.fill(std::numeric_limits<float>::quiet_NaN());
    for (int i = 0; i < components; ++i) {
        problem.index.push_back(random_below(old_components + 1) - 1);
        problem.index.push_back(random_below(given_components + 1) - 1);
    }
    return problem;
}

void check_one(const Problem& p, const std::string& name) {
    Values rounded(p.x.type(), 1);
    for (int i = 0; i < p.out.count(); ++i) {
        const int entry = i % p.run, component = i / p.run % p.components;
        const int repeat = i / p.run / p.components;
        const auto source = static_cast<int>(p.index[2 * component]);
        const auto value = static_cast<int>(p.index[2 * component + 1]);
        const double old =
            source < 0 ? 0.0 : p.x[(repeat * p.old_components + source) * p.run + entry];
        const double given =
            value < 0 ? 0.0 : p.given[(repeat * p.given_components + value) * p.run + entry];
        double expected = source < 0 ? given : old;
        if (source >= 0 && value >= 0) {
            rounded.fill(static_cast<float>(old) - static_cast<float>(given));
            expected = rounded[0];
        }
        expect_close(p.out[i], expected, 0.0, name + ", entry " + std::to_string(i));
    }
}

void check(std::vector<Problem>& problems, bool one_index) {
    GatherLaunch launch;
    std::int32_t first_row = 0;
    for (Problem& p : problems) {
        if (!one_index || &p == &problems[0]) {
            first_row = launch.add_index(p.index.data(), p.components);
        }
        launch.add({p.x.data(), p.given.data(), p.out.data(), p.x.type(), p.repeats, p.components,
                    p.run, p.old_components, p.given_components},
                   first_row);
    }
    const std::unique_ptr<unsigned char[]> scratch(new unsigned char[launch.scratch_bytes()]);
    launch.run({80, 3, nullptr}, scratch.get());
    for (std::size_t i = 0; i < problems.size(); ++i) {
        check_one(problems[i], "tensor " + std::to_string(i));
    }
}

void check_shapes(int skip) {
    constexpr int shapes[][4] = {{1, 1, 1, 1},   {3, 5, 2, 7},    {2, 4, 3, 256}, {2, 4, 1, 257},
                                 {7, 2, 2, 264}, {8, 3, 2, 32},   {33, 3, 2, 33}, {1, 3, 2, 8200},
                                 {1, 9, 4, 8},   {700, 30, 5, 1}, {3, 0, 2, 9}};
    std::vector<Problem> problems;
    for (const auto& [repeats, old_components, given_components, run] : shapes) {
        problems.push_back(random_problem(repeats, old_components, given_components, run, 9, skip));
    }
    check(problems, false);
}

// More tensors, and more rows of indices, than a table holds.
void check_many() {
    std::vector<Problem> problems;
    for (int i = 0; i < Table<GatherEntry>::kCapacity + 9; ++i) {
        problems.push_back(random_problem(1, 2, 1, 1 + random_below(3), 9, 0));
    }
    check(problems, false);
    for (Problem& p : problems) p.index = problems[0].index;
    check(problems, true);
}

}  // namespace
}  // namespace dmao

int main(int, char** arguments) {
    dmao::cuda_on_host::set_schedule(std::atoi(arguments[1]));
    try {
        dmao::check_shapes(0);
        dmao::check_shapes(1);
        dmao::check_many();
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    std::puts("right");
}
