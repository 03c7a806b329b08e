// Products as Goto and van de Geijn order them (ACM TOMS 34:3, 2008): blocks of both operands are packed into panels
// that the innermost kernel reads in order; a tile of c stays in registers over a block of k.

#include "executor/layers/packed_sets.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "executor/elements.hpp"
#include "executor/layers/functors/storage.hpp"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

// This file may be compiled several times, each for another instruction set.
#ifndef SHARDWRIGHT_PACKED_SET
#define SHARDWRIGHT_PACKED_SET packedProductAsBuilt
#endif

namespace shardwright {

namespace {

// The tile fits the registers beside a row of b: 16 of 32, 12 of 16, 8 of 16.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileRows = 8;
constexpr int kTileVectors = 2;
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kTileRows = 4;
constexpr int kTileVectors = 3;
#else
constexpr int kLanes = 4;
constexpr int kTileRows = 4;
constexpr int kTileVectors = 2;
#endif
constexpr std::int64_t kTileColumns = kTileVectors * kLanes;

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));

/// From and to any address, whatever its alignment.
template <typename T> void take(T& value, const void* from)
{
    std::memcpy(&value, from, sizeof value);
}
template <typename T> void put(void* to, const T& value)
{
    std::memcpy(to, &value, sizeof value);
}

// A panel of b (depth x tile columns) stays in the first cache, a block of a in the second.
constexpr std::int64_t kDepth = 256;
constexpr std::int64_t kRows = 240;
constexpr std::int64_t kColumns = 960;
static_assert(kRows % kTileRows == 0 && kColumns % kTileColumns == 0);

/// Kinds of packed elements; `kGroup` of k stand together in one.
struct Single {
    using Packed = float;
    static constexpr int kGroup = 1;
};
#if defined(__AVX512BF16__)
struct Paired {
    using Packed = std::uint32_t; // two bf16
    static constexpr int kGroup = 2;
};
#endif

/// acc += a b over `depth` groups; a: (depth, kTileRows), b: (depth, kTileColumns).
inline void accumulate(const float* a, const float* b, std::int64_t depth, Vector (&acc)[kTileRows][kTileVectors])
{
    for (std::int64_t p = 0; p < depth; ++p, a += kTileRows, b += kTileColumns) {
        Vector row[kTileVectors];
        for (int v = 0; v < kTileVectors; ++v)
            take(row[v], b + v * kLanes);
        for (int i = 0; i < kTileRows; ++i)
            for (int v = 0; v < kTileVectors; ++v)
                acc[i][v] += a[i] * row[v];
    }
}

#if defined(__AVX512BF16__)
inline void accumulate(const std::uint32_t* a, const std::uint32_t* b, std::int64_t depth,
                       Vector (&acc)[kTileRows][kTileVectors])
{
    for (std::int64_t p = 0; p < depth; ++p, a += kTileRows, b += kTileColumns) {
        __m512bh row[kTileVectors];
        for (int v = 0; v < kTileVectors; ++v)
            row[v] = std::bit_cast<__m512bh>(_mm512_loadu_si512(b + v * kLanes));
        for (int i = 0; i < kTileRows; ++i) {
            const auto each = std::bit_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[i])));
            for (int v = 0; v < kTileVectors; ++v)
                acc[i][v] = std::bit_cast<Vector>(_mm512_dpbf16_ps(std::bit_cast<__m512>(acc[i][v]), each, row[v]));
        }
    }
}
#endif

/// A whole tile of c, in fp32.
template <typename Packed>
void wholeTile(const Packed* a, const Packed* b, std::int64_t depth, float* c, std::int64_t stride, bool add)
{
    Vector acc[kTileRows][kTileVectors] = {};
    accumulate(a, b, depth, acc);
    for (int i = 0; i < kTileRows; ++i)
        for (int v = 0; v < kTileVectors; ++v) {
            float* to = c + i * stride + v * kLanes;
            if (add) {
                Vector before;
                take(before, to);
                acc[i][v] += before;
            }
            put(to, acc[i][v]);
        }
}

/// One at the edge of c.
template <typename Packed>
void partOfTile(const Packed* a, const Packed* b, std::int64_t depth, float* c, std::int64_t stride, std::int64_t rows,
                std::int64_t columns, bool add)
{
    float tile[kTileRows * kTileColumns];
    wholeTile(a, b, depth, tile, kTileColumns, false);
    for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < columns; ++j)
            c[i * stride + j] = (add ? c[i * stride + j] : 0.0f) + tile[i * kTileColumns + j];
}

// Four bytes of a matrix: an fp32, or two bf16.
using Word = std::uint32_t;
using EightWords = Word __attribute__((vector_size(32)));
constexpr std::int64_t kWordBytes = sizeof(Word);

/// Eight words of each of eight rows, turned: row p of `to` has word p of each. Strides in bytes.
void turnEight(const std::byte* from, std::int64_t stride, std::byte* to, std::int64_t toStride)
{
    EightWords row[8], pair[8], four[8];
    for (int i = 0; i < 8; ++i)
        take(row[i], from + i * stride);
    for (int i = 0; i < 8; i += 2) {
        pair[i] = __builtin_shufflevector(row[i], row[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        pair[i + 1] = __builtin_shufflevector(row[i], row[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            four[i + 2 * j] = __builtin_shufflevector(pair[i + j], pair[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            four[i + 2 * j + 1] = __builtin_shufflevector(pair[i + j], pair[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; ++i) {
        put(to + i * toStride, __builtin_shufflevector(four[i], four[i + 4], 0, 1, 2, 3, 8, 9, 10, 11));
        put(to + (i + 4) * toStride, __builtin_shufflevector(four[i], four[i + 4], 4, 5, 6, 7, 12, 13, 14, 15));
    }
}

/// Packs rows of `words` words each, `stride` bytes apart: (words, kPanel).
template <int kPanel>
void packRows(const void* rowsAt, std::int64_t stride, std::int64_t rows, std::int64_t words, void* panel)
{
    const auto* from = static_cast<const std::byte*>(rowsAt);
    auto* to = static_cast<std::byte*>(panel);
    for (std::int64_t row = 0; row < rows; row += 8)
        for (std::int64_t word = 0; word < words; word += 8) {
            const std::byte* at = from + row * stride + word * kWordBytes;
            std::byte* into = to + (word * kPanel + row) * kWordBytes;
            if (rows - row >= 8 && words - word >= 8 && kPanel % 8 == 0) {
                turnEight(at, stride, into, kPanel * kWordBytes);
                continue;
            }
            for (std::int64_t i = 0; i < std::min<std::int64_t>(8, rows - row); ++i)
                for (std::int64_t p = 0; p < std::min<std::int64_t>(8, words - word); ++p)
                    std::memcpy(into + (p * kPanel + i) * kWordBytes, at + i * stride + p * kWordBytes, kWordBytes);
        }
}

float packedOf(const float* from, std::int64_t at)
{
    return from[at];
}
float packedOf(const Bf16* from, std::int64_t at)
{
    return floatOfBf16(from[at].bits);
}

/// Packs `width` (at most kPanel) of the outer and `depth` of the inner index: (depth, kPanel), zeros behind `width`.
template <int kPanel, typename T>
void packPanel(const T* from, std::int64_t outerStride, std::int64_t innerStride, std::int64_t width,
               std::int64_t depth, float* to)
{
    if (outerStride == 1 && width == kPanel) {
        for (std::int64_t p = 0; p < depth; ++p)
            for (int i = 0; i < kPanel; ++i)
                to[p * kPanel + i] = packedOf(from + p * innerStride, i);
        return;
    }
    if (width < kPanel)
        std::fill(to, to + depth * kPanel, 0.0f);
    if constexpr (std::is_same_v<T, float>)
        if (innerStride == 1) {
            packRows<kPanel>(from, outerStride * 4, width, depth, to);
            return;
        }
    for (std::int64_t i = 0; i < width; ++i)
        for (std::int64_t p = 0; p < depth; ++p)
            to[p * kPanel + i] = packedOf(from, i * outerStride + p * innerStride);
}

#if defined(__AVX512BF16__)
template <int kPanel>
void packPanel(const Bf16* from, std::int64_t outerStride, std::int64_t innerStride, std::int64_t width,
               std::int64_t depth, std::uint32_t* to)
{
    const std::int64_t pairs = depth / 2;
    if (width < kPanel || depth % 2 != 0)
        std::fill(to, to + (depth + 1) / 2 * kPanel, 0U);
    const auto bits = [&](std::int64_t i, std::int64_t p) {
        return static_cast<std::uint32_t>(from[i * outerStride + p * innerStride].bits);
    };
    if (outerStride == 1 && width == kPanel) {
        for (std::int64_t p = 0; p < pairs; ++p)
            for (std::int64_t i = 0; i < kPanel; ++i)
                to[p * kPanel + i] = static_cast<std::uint32_t>(from[i + 2 * p * innerStride].bits) |
                                     static_cast<std::uint32_t>(from[i + (2 * p + 1) * innerStride].bits) << 16;
    } else if (innerStride == 1) {
        packRows<kPanel>(from, outerStride * 2, width, pairs, to);
    } else {
        for (std::int64_t i = 0; i < width; ++i)
            for (std::int64_t p = 0; p < pairs; ++p)
                to[p * kPanel + i] = bits(i, 2 * p) | bits(i, 2 * p + 1) << 16;
    }
    if (depth % 2 != 0)
        for (std::int64_t i = 0; i < width; ++i)
            to[pairs * kPanel + i] = bits(i, depth - 1);
}
#endif

/// All panels of a block of `outer` by `depth`.
template <int kPanel, typename T, typename Packed>
void packBlock(const T* from, std::int64_t outerStride, std::int64_t innerStride, std::int64_t outer,
               std::int64_t depth, std::int64_t groups, Packed* to)
{
    for (std::int64_t first = 0; first < outer; first += kPanel)
        packPanel<kPanel>(from + first * outerStride, outerStride, innerStride,
                          std::min<std::int64_t>(kPanel, outer - first), depth, to + first * groups);
}

/// c in fp32.
template <typename Kind, typename A, typename B>
void multiplyBlocks(const MatrixView& a, const MatrixView& b, float* c, std::int64_t stride, std::int64_t m,
                    std::int64_t n, std::int64_t k, bool add, float* scratch)
{
    using Packed = typename Kind::Packed;
    auto* packedA = reinterpret_cast<Packed*>(scratch);
    Packed* packedB = packedA + kRows * kDepth;
    constexpr std::int64_t kDeep = kDepth * Kind::kGroup;
    for (std::int64_t column = 0; column < n; column += kColumns) {
        const std::int64_t columns = std::min(kColumns, n - column);
        for (std::int64_t deep = 0; deep < k; deep += kDeep) {
            const std::int64_t depth = std::min(kDeep, k - deep);
            const std::int64_t groups = ceilDivide(depth, Kind::kGroup);
            packBlock<kTileColumns>(static_cast<const B*>(b.data) + deep * b.rowStride + column * b.columnStride,
                                    b.columnStride, b.rowStride, columns, depth, groups, packedB);
            for (std::int64_t row = 0; row < m; row += kRows) {
                const std::int64_t rows = std::min(kRows, m - row);
                packBlock<kTileRows>(static_cast<const A*>(a.data) + row * a.rowStride + deep * a.columnStride,
                                     a.rowStride, a.columnStride, rows, depth, groups, packedA);
                for (std::int64_t j = 0; j < columns; j += kTileColumns)
                    for (std::int64_t i = 0; i < rows; i += kTileRows) {
                        float* to = c + (row + i) * stride + column + j;
                        const Packed* left = packedA + i * groups;
                        const Packed* right = packedB + j * groups;
                        if (rows - i >= kTileRows && columns - j >= kTileColumns)
                            wholeTile(left, right, groups, to, stride, add || deep > 0);
                        else
                            partOfTile(left, right, groups, to, stride, std::min<std::int64_t>(kTileRows, rows - i),
                                       std::min(kTileColumns, columns - j), add || deep > 0);
                    }
            }
        }
    }
}

constexpr std::size_t kPackedFloats = static_cast<std::size_t>((kRows + kColumns) * kDepth);

void multiplyInto(const MatrixView& a, const MatrixView& b, float* c, std::int64_t stride, std::int64_t m,
                  std::int64_t n, std::int64_t k, bool add, float* scratch)
{
    withStorage(a.dtype, [&](auto left) {
        withStorage(b.dtype, [&](auto right) {
            using A = decltype(left);
            using B = decltype(right);
#if defined(__AVX512BF16__)
            if constexpr (std::is_same_v<A, Bf16> && std::is_same_v<B, Bf16>) {
                multiplyBlocks<Paired, A, B>(a, b, c, stride, m, n, k, add, scratch);
                return;
            }
#endif
            multiplyBlocks<Single, A, B>(a, b, c, stride, m, n, k, add, scratch);
        });
    });
}

// Of a c that is not fp32, so much at a time.
constexpr std::int64_t kCastRows = 480;

} // namespace

void SHARDWRIGHT_PACKED_SET(const MatrixView& a, const MatrixView& b, const TargetView& c, std::int64_t m,
                            std::int64_t n, std::int64_t k, bool add)
{
    float* scratch = packedScratch(kPackedFloats + static_cast<std::size_t>(kCastRows * kColumns));
    if (c.dtype == DType::Fp32) {
        multiplyInto(a, b, static_cast<float*>(c.data), c.rowStride, m, n, k, add, scratch);
        return;
    }
    float* whole = scratch + kPackedFloats;
    const std::int64_t bytes = bitsOf(c.dtype) / 8;
    const auto from = [](const MatrixView& view, std::int64_t row, std::int64_t column) {
        MatrixView part = view;
        part.data = static_cast<const char*>(view.data) +
                    (row * view.rowStride + column * view.columnStride) * (bitsOf(view.dtype) / 8);
        return part;
    };
    for (std::int64_t column = 0; column < n; column += kColumns)
        for (std::int64_t row = 0; row < m; row += kCastRows) {
            const std::int64_t rows = std::min(kCastRows, m - row);
            const std::int64_t columns = std::min(kColumns, n - column);
            const auto place = [&](std::int64_t i) {
                return static_cast<char*>(c.data) + ((row + i) * c.rowStride + column) * bytes;
            };
            if (add)
                for (std::int64_t i = 0; i < rows; ++i)
                    convertElements(place(i), c.dtype, whole + i * columns, DType::Fp32, columns);
            multiplyInto(from(a, row, 0), from(b, 0, column), whole, columns, rows, columns, k, add, scratch);
            for (std::int64_t i = 0; i < rows; ++i)
                convertElements(whole + i * columns, DType::Fp32, place(i), c.dtype, columns);
        }
}

} // namespace shardwright
