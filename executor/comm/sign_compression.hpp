#pragma once

// One bit an element with error feedback, as DeepSpeed's compressed_allreduce has it (deepspeed/runtime/comm/nccl.py;
// 1-bit Adam, arXiv 2102.02888): what a compression does not say is added to what is compressed next. Signs stand
// packed, the first in the lowest bit of a byte, a set bit positive; zero counts as positive. One scale serves all
// elements of a compression: what is decoded has the norm of what was encoded.

#include <cstddef>
#include <cstdint>

namespace shardwright {

/// values += leftOver; signs and *scale = |values|2 / sqrt(count) say them; leftOver = values - what is said. `signs`
/// has ceil(count / 8) bytes.
void compressSigns(float* values, float* leftOver, std::int64_t count, std::byte* signs, float* scale);

/// values[p x count + i] = +-scales[p], of `parts` parts of `count` elements each, a multiple of 8.
void expandSigns(const std::byte* signs, const float* scales, std::int64_t parts, std::int64_t count, float* values);

/// mean[i] of what expandSigns would give over the parts, added in their order.
void averageSigns(const std::byte* signs, const float* scales, std::int64_t parts, std::int64_t count, float* mean);

} // namespace shardwright
