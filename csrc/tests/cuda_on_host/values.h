// Arrays of any type of elements, for programs that run kernels on the host.
#pragma once

#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "element_types.h"
#include "random_values.h"

namespace dmao {

// `count` random numbers in [-1, 1] from the element `skip` of an allocation on, which ends behind
// them: what is accessed beside it is seen by AddressSanitizer.
class Values {
  public:
    Values(ElementType type, int count, int skip = 0) : type_(type), skip_(skip), count_(count) {
        for_each_element_type([&](auto element) {
            using E = decltype(element);
            if (type_of<E> != type_) return;
            size_ = sizeof(E);
            bytes_.reset(new unsigned char[(skip + count) * sizeof(E)]);
            const auto random = random_values<E>(skip + count);
            std::memcpy(bytes_.get(), random.get(), (skip + count) * sizeof(E));
        });
    }

    ElementType type() const { return type_; }
    int count() const { return count_; }
    void* data() { return bytes_.get() + skip_ * size_; }

    // Of the values as they are now.
    double operator[](int i) const {
        double value = 0.0;
        for_each_element_type([&](auto element) {
            using E = decltype(element);
            if (type_of<E> != type_) return;
            E found;
            std::memcpy(&found, bytes_.get() + (skip_ + i) * sizeof(E), sizeof(E));
            value = ptx::widen(found);
        });
        return value;
    }

    Values copy() const {
        Values other(type_, count_, skip_);
        std::memcpy(other.bytes_.get(), bytes_.get(), (skip_ + count_) * size_);
        return other;
    }

    void fill(float value) {
        for_each_element_type([&](auto element) {
            using E = decltype(element);
            if (type_of<E> != type_) return;
            for (int i = 0; i < count_; ++i) {
                E one;
                if constexpr (sizeof(E) == 4) {
                    one = value;
                } else {
                    one.bits = ptx::round_half(E{}, value);
                }
                std::memcpy(bytes_.get() + (skip_ + i) * sizeof(E), &one, sizeof(E));
            }
        });
    }

  private:
    ElementType type_;
    int skip_, count_;
    std::size_t size_ = 0;
    std::unique_ptr<unsigned char[]> bytes_;
};

// Memory that was not written.
inline std::unique_ptr<float[]> not_a_number(std::int64_t count) {
    std::unique_ptr<float[]> made(new float[count]);
    for (std::int64_t i = 0; i < count; ++i) made[i] = std::numeric_limits<float>::quiet_NaN();
    return made;
}

inline int random_below(int count) { return static_cast<int>(random_bits() % count); }

inline ElementType random_type() { return static_cast<ElementType>(random_below(kElementTypes)); }

inline void expect(bool right, const std::string& what) {
    if (!right) throw std::logic_error("wrong: " + what);
}

inline void expect_close(double found, double expected, double tolerance, const std::string& what) {
    if (std::fabs(found - expected) <= tolerance) return;  // false for NaN
    throw std::logic_error("wrong: " + what + " is " + std::to_string(found) + " instead of " +
                           std::to_string(expected));
}

}  // namespace dmao
