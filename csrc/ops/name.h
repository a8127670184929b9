// A name among the arguments of an operator: of an activation, a norm, a metric.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>

namespace dmao {

// PyTorch 2.13's own conversion to std::string returns the copy of a string that nobody deletes:
// every call of an operator would lose 32 bytes for each name.
struct Name {
    std::string text;
    operator const std::string&() const { return text; }
};

}  // namespace dmao

template <>
struct torch::stable::detail::ToImpl<dmao::Name> {
    static dmao::Name call(StableIValue value, std::uint64_t version, bool is_internal) {
        const auto handle = ToImpl<StringHandle>::call(value, version, is_internal);
        const char* text = nullptr;
        std::size_t length = 0;
        STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
        STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
        dmao::Name name{std::string(text, length)};
        STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));  // it is the kernel's own
        return name;
    }
};
