#pragma once

// Random numbers by position: the same whatever the order in which they are asked for.

#include <cmath>
#include <cstdint>
#include <numbers>

namespace shardwright {

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection whose outputs pass as independent.
constexpr std::uint64_t mixed(std::uint64_t value)
{
    value += 0x9e3779b97f4a7c15U;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
    return value ^ (value >> 31);
}

/// Number `position` of the stream `key`.
constexpr std::uint64_t randomBits(std::uint64_t key, std::uint64_t position)
{
    return mixed(mixed(key) ^ (position * 0xd1342543de82ef95U));
}

/// In (0, 1].
constexpr double uniform(std::uint64_t bits)
{
    return (static_cast<double>(bits >> 11) + 1) * 0x1p-53;
}

/// Standard normal (Box and Muller 1958).
inline double normal(std::uint64_t key, std::uint64_t position)
{
    const double radius = std::sqrt(-2 * std::log(uniform(randomBits(key, 2 * position))));
    return radius * std::cos(2 * std::numbers::pi * uniform(randomBits(key, 2 * position + 1)));
}

} // namespace shardwright
