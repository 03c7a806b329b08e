#pragma once

// Rotary frequencies of a model, plain or stretched for longer contexts.

#include <cstdint>
#include <vector>

#include "core/model.hpp"

namespace shardwright {

/// Turns of the elements j and j + d/2 of a head a token, in radians, and what cosines and sines are multiplied by.
struct RotaryFrequencies {
    std::vector<float> each; // (d/2)
    float scale = 1;

    bool operator==(const RotaryFrequencies&) const = default;
};

/// For sequences of `length` tokens. In fp32 where transformers' modeling_rope_utils is.
RotaryFrequencies rotaryFrequencies(const Architecture& architecture, std::int64_t length);

} // namespace shardwright
