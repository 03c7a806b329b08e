#pragma once

#include "core/enum_names.hpp"
#include "core/units.hpp"

namespace shardwright {

/// Element types of tensors, in storage and on the wire.
enum class DType : std::uint8_t { Fp32, Fp16, Bf16, Fp8, Int8, Int4, Nf4, Int64 };

template <> struct EnumNames<DType> {
    static constexpr std::array<std::pair<DType, std::string_view>, 8> table{{{DType::Fp32, "fp32"},
                                                                              {DType::Fp16, "fp16"},
                                                                              {DType::Bf16, "bf16"},
                                                                              {DType::Fp8, "fp8"},
                                                                              {DType::Int8, "int8"},
                                                                              {DType::Int4, "int4"},
                                                                              {DType::Nf4, "nf4"},
                                                                              {DType::Int64, "int64"}}};
};

/// Bits of one element. nf4 counts its payload only; block constants are counted where they are stored.
constexpr std::int64_t bitsOf(DType dtype)
{
    switch (dtype) {
    case DType::Fp32: return 32;
    case DType::Fp16:
    case DType::Bf16: return 16;
    case DType::Fp8:
    case DType::Int8: return 8;
    case DType::Int4:
    case DType::Nf4: return 4;
    case DType::Int64: return 64;
    }
    return 0;
}

constexpr bool is16Bit(DType dtype)
{
    return dtype == DType::Fp16 || dtype == DType::Bf16;
}

/// Bytes of `elements` elements, rounded up to a whole byte.
inline Bytes bytesOf(std::int64_t elements, DType dtype)
{
    const std::int64_t bits = bitsOf(dtype);
    if (bits >= 8)
        return Bytes(checkedMultiply(elements, bits / 8));
    return Bytes(ceilDivide(elements, 8 / bits));
}

} // namespace shardwright
