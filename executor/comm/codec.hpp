#pragma once

// Elements encoded for the wire: blockwise symmetric integers (ZeRO++, arXiv 2306.10209) and signs with a scale (1-bit
// Adam, arXiv 2102.02888).
//
// Encoded elements stand packed, in order (two of 4 bits or eight signs to a byte, the first in the lowest bits), and
// behind them one fp32 scale a block, not aligned. What decoding gives back, for a block of d elements x with the
// largest magnitude m and u = 2^-23:
//   int8   q = round(x / s), s = m / 127: off by s (1/2 + 127 u) at most
//   int4   q = round(x / s), s = m / 7: off by s (1/2 + 7 u) at most
//   sign   +-s, s = |x|2 / sqrt(d), zero counting as positive: the whole block off by sqrt(2 (1 - 1 / sqrt(d))) |x|2
//          (1 + 2 u) at most, and the same norm as x
//   bits   the signs without their scale: of a size, but neither encoded nor decoded here (comm/sign_compression.hpp)
// Blocks whose magnitudes stay below 2^-119 come back as zeros. A block with an infinity or a NaN comes back as NaNs:
// an overflow is not lost. 16-bit elements are widened first and rounded once when decoded.

#include <cstddef>
#include <cstdint>

#include "core/actions.hpp"

namespace shardwright {

struct Encoding {
    Codec codec = Codec::Int8Blockwise; // not None
    std::int64_t block = 0;             // elements that share a scale; 0: all of them
};

/// Bytes of so many elements: the last block may be shorter, no elements take none.
Bytes encodedBytes(const Encoding& encoding, std::int64_t elements);

/// fp32, bf16 and fp16. `to` has encodedBytes().
void encode(const Encoding& encoding, const void* from, DType dtype, std::int64_t elements, std::byte* to);
void decode(const Encoding& encoding, const std::byte* from, std::int64_t elements, void* to, DType dtype);

} // namespace shardwright
