#include "executor/comm/codec.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "executor/elements.hpp"

namespace shardwright {

namespace {

constexpr float kSmallestScale = 0x1p-126F; // below it, 1 / scale overflows
constexpr int kInt8Steps = 127;             // from zero to the largest magnitude
constexpr int kInt4Steps = 7;

int bitsAnElement(Codec codec)
{
    switch (codec) {
    case Codec::Int8Blockwise: return 8;
    case Codec::Int4Blockwise: return 4;
    case Codec::Sign:
    case Codec::Bits: return 1;
    case Codec::None: break;
    }
    throw std::logic_error("elements without a code are not encoded");
}

std::int64_t blocksOf(const Encoding& encoding, std::int64_t elements)
{
    if (elements == 0 || encoding.codec == Codec::Bits)
        return 0;
    return encoding.block == 0 ? 1 : ceilDivide(elements, encoding.block);
}

std::int64_t packedBytes(Codec codec, std::int64_t elements)
{
    return ceilDivide(checkedMultiply(elements, bitsAnElement(codec)), 8);
}

/// The largest magnitude as its bits, which sort as magnitudes do, infinities and NaNs above all numbers. Integers,
/// because compilers do not vectorise the maximum of floats.
std::uint32_t largestMagnitude(const float* values, std::int64_t count)
{
    std::uint32_t largest = 0;
    for (std::int64_t i = 0; i < count; ++i)
        largest = std::max(largest, std::bit_cast<std::uint32_t>(values[i]) & 0x7fffffffU);
    return largest;
}

/// NaN where a value is not finite, 0 where all are too small.
float scaleOf(const float* values, std::int64_t count, int steps)
{
    const auto largest = std::bit_cast<float>(largestMagnitude(values, count));
    if (!std::isfinite(largest))
        return std::numeric_limits<float>::quiet_NaN();
    const float scale = largest / static_cast<float>(steps);
    return scale < kSmallestScale ? 0.0F : scale;
}

/// Root of the mean square.
float signScaleOf(const float* values, std::int64_t count)
{
    const double squares = squaresOf(values, DType::Fp32, count);
    return std::isfinite(squares) ? static_cast<float>(std::sqrt(squares / static_cast<double>(count)))
                                  : std::numeric_limits<float>::quiet_NaN();
}

/// round(x / scale) to nearest, ties to even: adding 1.5 x 2^23 leaves no bits behind the point.
void quantize(const float* values, std::int64_t count, float scale, std::int8_t* quantized)
{
    constexpr float kShift = 12582912.0F;
    if (!(scale > 0)) {
        std::fill_n(quantized, count, std::int8_t{0});
        return;
    }
    const float inverse = 1.0F / scale;
    for (std::int64_t i = 0; i < count; ++i)
        quantized[i] = static_cast<std::int8_t>((values[i] * inverse + kShift) - kShift);
}

/// Block by block; `use` gets the block's number, its first element and how many it has.
template <typename Use> void eachBlock(const Encoding& encoding, std::int64_t elements, const Use& use)
{
    const std::int64_t length = encoding.block == 0 ? elements : encoding.block;
    for (std::int64_t block = 0; block < blocksOf(encoding, elements); ++block)
        use(block, block * length, std::min(length, elements - block * length));
}

/// `packed` holds zeros where nothing was packed yet.
void packInt4(const std::int8_t* quantized, std::int64_t first, std::int64_t count, std::byte* packed)
{
    std::int64_t i = 0;
    const auto put = [&](std::int64_t element) {
        const auto nibble = static_cast<std::byte>(quantized[element - first] & 0xf);
        packed[element / 2] |= element % 2 == 0 ? nibble : nibble << 4;
    };
    if (first % 2 != 0 && count > 0) {
        put(first);
        i = 1;
    }
    for (; i + 1 < count; i += 2)
        packed[(first + i) / 2] = static_cast<std::byte>((quantized[i] & 0xf) | ((quantized[i + 1] & 0xf) << 4));
    if (i < count)
        put(first + i);
}

float unpackedInt4(const std::byte* packed, std::int64_t element)
{
    const auto both = static_cast<unsigned>(packed[element / 2]);
    const unsigned nibble = element % 2 == 0 ? both & 0xfU : both >> 4;
    return static_cast<float>(static_cast<int>(nibble ^ 8U) - 8); // the fourth bit is the sign's
}

void refuseBits(const Encoding& encoding)
{
    if (encoding.codec == Codec::Bits)
        throw std::logic_error("signs whose scale is elsewhere are not coded by themselves");
}

void packSigns(const float* values, std::int64_t first, std::int64_t count, std::byte* packed)
{
    for (std::int64_t i = 0; i < count; ++i)
        if (values[i] >= 0)
            packed[(first + i) / 8] |= std::byte{1} << ((first + i) % 8);
}

void encodeBlock(Codec codec, const float* values, std::int64_t first, std::int64_t count, std::byte* packed,
                 float& scale, std::vector<std::int8_t>& quantized)
{
    switch (codec) {
    case Codec::Int8Blockwise:
        scale = scaleOf(values, count, kInt8Steps);
        quantize(values, count, scale, reinterpret_cast<std::int8_t*>(packed + first));
        return;
    case Codec::Int4Blockwise:
        scale = scaleOf(values, count, kInt4Steps);
        quantized.resize(static_cast<std::size_t>(count));
        quantize(values, count, scale, quantized.data());
        packInt4(quantized.data(), first, count, packed);
        return;
    case Codec::Sign:
        scale = signScaleOf(values, count);
        packSigns(values, first, count, packed);
        return;
    case Codec::Bits:
    case Codec::None: return;
    }
}

void decodeBlock(Codec codec, const std::byte* packed, float scale, std::int64_t first, std::int64_t count,
                 float* values)
{
    switch (codec) {
    case Codec::Int8Blockwise: {
        const auto* quantized = reinterpret_cast<const std::int8_t*>(packed + first);
        for (std::int64_t i = 0; i < count; ++i)
            values[i] = static_cast<float>(quantized[i]) * scale;
        return;
    }
    case Codec::Int4Blockwise:
        for (std::int64_t i = 0; i < count; ++i)
            values[i] = unpackedInt4(packed, first + i) * scale;
        return;
    case Codec::Sign:
        for (std::int64_t i = 0; i < count; ++i) {
            const auto byte = static_cast<unsigned>(packed[(first + i) / 8]);
            values[i] = ((byte >> ((first + i) % 8)) & 1U) != 0 ? scale : -scale;
        }
        return;
    case Codec::Bits:
    case Codec::None: return;
    }
}

} // namespace

Bytes encodedBytes(const Encoding& encoding, std::int64_t elements)
{
    return Bytes(packedBytes(encoding.codec, elements)) + bytesOf(blocksOf(encoding, elements), DType::Fp32);
}

void encode(const Encoding& encoding, const void* from, DType dtype, std::int64_t elements, std::byte* to)
{
    refuseBits(encoding);
    const std::int64_t packed = packedBytes(encoding.codec, elements);
    std::fill_n(to, packed, std::byte{0});
    const auto* source = static_cast<const std::byte*>(from);
    std::vector<float> wide;
    std::vector<std::int8_t> quantized;
    eachBlock(encoding, elements, [&](std::int64_t block, std::int64_t first, std::int64_t count) {
        const std::byte* stored = source + first * (bitsOf(dtype) / 8);
        const auto* values = reinterpret_cast<const float*>(stored);
        if (dtype != DType::Fp32) {
            wide.resize(static_cast<std::size_t>(count));
            convertElements(stored, dtype, wide.data(), DType::Fp32, count);
            values = wide.data();
        }
        float scale = 0;
        encodeBlock(encoding.codec, values, first, count, to, scale, quantized);
        std::memcpy(to + packed + block * 4, &scale, sizeof scale);
    });
}

void decode(const Encoding& encoding, const std::byte* from, std::int64_t elements, void* to, DType dtype)
{
    refuseBits(encoding);
    const std::int64_t packed = packedBytes(encoding.codec, elements);
    auto* target = static_cast<std::byte*>(to);
    std::vector<float> wide;
    eachBlock(encoding, elements, [&](std::int64_t block, std::int64_t first, std::int64_t count) {
        float scale = 0;
        std::memcpy(&scale, from + packed + block * 4, sizeof scale);
        std::byte* stored = target + first * (bitsOf(dtype) / 8);
        if (dtype == DType::Fp32) {
            decodeBlock(encoding.codec, from, scale, first, count, reinterpret_cast<float*>(stored));
            return;
        }
        wide.resize(static_cast<std::size_t>(count));
        decodeBlock(encoding.codec, from, scale, first, count, wide.data());
        convertElements(wide.data(), DType::Fp32, stored, dtype, count);
    });
}

} // namespace shardwright
