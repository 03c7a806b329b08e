#pragma once

// Units. Every byte count in Shardwright is an integer of type Bytes; GB is 1e9 and GiB is 2^30, and every text says
// which. Arithmetic is checked: a number that leaves the range of 64 bits throws NumberTooLarge, it never wraps.

#include <compare>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace shardwright {

/// Thrown when valid but absurd input leads past 2^63-1. `main` reports it as bad input (exit code 2).
class NumberTooLarge : public std::overflow_error {
public:
    explicit NumberTooLarge(const std::string& what) : std::overflow_error(what) {}
};

[[noreturn]] void throwNumberTooLarge(const char* operation, std::int64_t left, std::int64_t right);

/// left + right, or NumberTooLarge.
inline std::int64_t checkedAdd(std::int64_t left, std::int64_t right)
{
    std::int64_t result = 0;
    if (__builtin_add_overflow(left, right, &result)) [[unlikely]]
        throwNumberTooLarge("+", left, right);
    return result;
}

/// left - right, or NumberTooLarge.
inline std::int64_t checkedSubtract(std::int64_t left, std::int64_t right)
{
    std::int64_t result = 0;
    if (__builtin_sub_overflow(left, right, &result)) [[unlikely]]
        throwNumberTooLarge("-", left, right);
    return result;
}

/// left * right, or NumberTooLarge.
inline std::int64_t checkedMultiply(std::int64_t left, std::int64_t right)
{
    std::int64_t result = 0;
    if (__builtin_mul_overflow(left, right, &result)) [[unlikely]]
        throwNumberTooLarge("*", left, right);
    return result;
}

/// Smallest integer >= dividend/divisor; dividend >= 0, divisor > 0. Cannot overflow.
constexpr std::int64_t ceilDivide(std::int64_t dividend, std::int64_t divisor)
{
    return dividend / divisor + (dividend % divisor != 0 ? 1 : 0);
}

/// Smallest multiple of `multiple` that is >= value.
inline std::int64_t roundUp(std::int64_t value, std::int64_t multiple)
{
    return checkedMultiply(ceilDivide(value, multiple), multiple);
}

/// Smallest power of two that is >= value (1 for value <= 1).
std::int64_t nextPowerOfTwo(std::int64_t value);

/// A number of bytes. A strong type: it mixes with plain integers only as a factor.
class Bytes {
public:
    constexpr Bytes() = default;
    constexpr explicit Bytes(std::int64_t count) : m_count(count) {}

    constexpr std::int64_t count() const { return m_count; }
    constexpr double asDouble() const { return static_cast<double>(m_count); }

    constexpr auto operator<=>(const Bytes&) const = default;

    Bytes& operator+=(Bytes other)
    {
        m_count = checkedAdd(m_count, other.m_count);
        return *this;
    }
    Bytes& operator-=(Bytes other)
    {
        m_count = checkedSubtract(m_count, other.m_count);
        return *this;
    }
    friend Bytes operator+(Bytes left, Bytes right) { return left += right; }
    friend Bytes operator-(Bytes left, Bytes right) { return left -= right; }
    friend Bytes operator*(Bytes bytes, std::int64_t factor) { return Bytes(checkedMultiply(bytes.m_count, factor)); }
    friend Bytes operator*(std::int64_t factor, Bytes bytes) { return bytes * factor; }

private:
    std::int64_t m_count = 0;
};

/// bytes x numerator / denominator, rounded up; the product may pass 64 bits, the result may not.
Bytes share(Bytes bytes, std::int64_t numerator, std::int64_t denominator);

constexpr double kGB = 1e9;
constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

constexpr Bytes operator""_B(unsigned long long count)
{
    return Bytes(static_cast<std::int64_t>(count));
}
constexpr Bytes operator""_KiB(unsigned long long count)
{
    return Bytes(static_cast<std::int64_t>(count) << 10);
}
constexpr Bytes operator""_MiB(unsigned long long count)
{
    return Bytes(static_cast<std::int64_t>(count) << 20);
}
constexpr Bytes operator""_GiB(unsigned long long count)
{
    return Bytes(static_cast<std::int64_t>(count) << 30);
}
constexpr Bytes operator""_MB(unsigned long long count)
{
    return Bytes(static_cast<std::int64_t>(count) * 1000000);
}
constexpr Bytes operator""_GB(unsigned long long count)
{
    return Bytes(static_cast<std::int64_t>(count) * 1000000000);
}

/// "12.34 GB" (1e9); picks kB, MB, GB, TB, PB by size.
std::string formatDecimal(Bytes bytes);

/// "12.34 GiB" (2^30); picks KiB, MiB, GiB, TiB, PiB by size.
std::string formatBinary(Bytes bytes);

} // namespace shardwright
