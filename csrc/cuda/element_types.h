// Types of elements by name, for what chooses among kernels when it runs.
#pragma once

#include "elements.cuh"

namespace dmao {

enum class ElementType { float32, bfloat16, float16 };
inline constexpr int kElementTypes = 3;

constexpr int place_of(ElementType type) { return static_cast<int>(type); }

template <class E>
inline constexpr ElementType type_of =
    sizeof(E) == 4 ? ElementType::float32 : ElementType::bfloat16;
template <>
inline constexpr ElementType type_of<float16> = ElementType::float16;

// Calls visit(E{}) for every type.
template <class Visit>
void for_each_element_type(const Visit& visit) {
    visit(float{});
    visit(bfloat16{});
    visit(float16{});
}

}  // namespace dmao
