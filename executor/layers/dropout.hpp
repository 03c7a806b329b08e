#pragma once

// Dropout by position: whether an element goes depends on where it stands in the run, on nothing else. So ranks,
// threads and recomputation agree, and backward draws anew what forward drew.

#include <array>

#include "executor/layers/functors/storage.hpp"
#include "executor/state/random.hpp"

namespace shardwright {

/// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC'11): four numbers of a counter and a key.
SHARDWRIGHT_FUNCTOR std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::uint64_t key)
{
    constexpr std::uint64_t kMultiplier0 = 0xd2511f53;
    constexpr std::uint64_t kMultiplier1 = 0xcd9e8d57;
    constexpr std::uint32_t kWeyl0 = 0x9e3779b9;
    constexpr std::uint32_t kWeyl1 = 0xbb67ae85;
    constexpr int kRounds = 10;
    auto key0 = static_cast<std::uint32_t>(key);
    auto key1 = static_cast<std::uint32_t>(key >> 32);
    std::uint32_t a = counter[0], b = counter[1], c = counter[2], d = counter[3];
    for (int round = 0; round < kRounds; ++round) {
        const std::uint64_t first = kMultiplier0 * a;
        const std::uint64_t second = kMultiplier1 * c;
        a = static_cast<std::uint32_t>(second >> 32) ^ b ^ key0;
        b = static_cast<std::uint32_t>(second);
        c = static_cast<std::uint32_t>(first >> 32) ^ d ^ key1;
        d = static_cast<std::uint32_t>(first);
        key0 += kWeyl0;
        key1 += kWeyl1;
    }
    return {a, b, c, d};
}

/// Where in a layer something is dropped: of the embedding, what it gives counts as attention's.
enum class DropoutPlace : std::uint64_t { Probabilities, Attention, Mlp };
constexpr std::uint64_t kDropoutPlaces = 4;

/// `layer`: position in Model::layers.
constexpr std::uint64_t dropoutKey(std::uint64_t seed, int layer, DropoutPlace place)
{
    return randomBits(seed, static_cast<std::uint64_t>(layer) * kDropoutPlaces + static_cast<std::uint64_t>(place));
}

/// What is dropped from the rows of a tensor. `key`: dropoutKey's.
struct Dropout {
    float probability = 0;
    std::uint64_t key = 0;
    std::int64_t firstSequence = 0; // number in the run of the micro-batch's first sequence

    bool none() const { return probability == 0; }
};

/// A row's columns in stretches of so many: counter i of a stretch gives those at i, 16 + i, 32 + i and 48 + i.
constexpr std::int64_t kDropoutColumns = 64;

} // namespace shardwright
