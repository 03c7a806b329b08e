// Matrix products against plain loops: sizes around tiles and blocks, operands turned, strided and of either dtype.

#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "executor/elements.hpp"
#include "executor/layers/packed_choice.hpp"

using namespace shardwright;

namespace {

/// A matrix in memory with a margin around its rows, in either order.
class Stored {
public:
    Stored(std::int64_t rows, std::int64_t columns, bool turned, DType dtype, unsigned seed)
        : m_stride((turned ? rows : columns) + 3), m_turned(turned), m_dtype(dtype)
    {
        std::mt19937 random(seed);
        std::uniform_real_distribution<float> uniform(-1, 1);
        m_values.resize(static_cast<std::size_t>((turned ? columns : rows) * m_stride));
        for (float& value : m_values)
            value = dtype == DType::Bf16 ? floatOfBf16(bf16Of(uniform(random))) : uniform(random);
        m_bytes.resize(m_values.size() * 4);
        convertElements(m_values.data(), DType::Fp32, m_bytes.data(), dtype, count());
    }
    std::int64_t count() const { return static_cast<std::int64_t>(m_values.size()); }
    std::int64_t stride() const { return m_stride; }
    double at(std::int64_t row, std::int64_t column) const
    {
        return static_cast<double>(
            m_values[static_cast<std::size_t>(m_turned ? column * m_stride + row : row * m_stride + column)]);
    }
    MatrixView view() const { return {m_bytes.data(), m_dtype, m_turned ? 1 : m_stride, m_turned ? m_stride : 1}; }
    TargetView target() { return {m_bytes.data(), m_dtype, m_stride}; }
    /// After it was written.
    double written(std::int64_t row, std::int64_t column) const
    {
        float value = 0;
        convertElements(m_bytes.data() + (row * m_stride + column) * (bitsOf(m_dtype) / 8), m_dtype, &value,
                        DType::Fp32, 1);
        return static_cast<double>(value);
    }

private:
    std::vector<float> m_values;
    std::vector<char> m_bytes;
    std::int64_t m_stride;
    bool m_turned;
    DType m_dtype;
};

struct Size {
    std::int64_t m, n, k;
};

void expectProduct(const PackedSet& set, const Size& size, bool turnA, bool turnB, DType a, DType b, DType c, bool add)
{
    const Stored left(size.m, size.k, turnA, a, 1);
    const Stored right(size.k, size.n, turnB, b, 2);
    Stored result(size.m, size.n, false, c, 3);
    set.product(left.view(), right.view(), result.target(), size.m, size.n, size.k, add);
    // Of k products of numbers below one, summed in fp32; rounded once to c.
    const double rounding = 1e-6 * std::sqrt(static_cast<double>(size.k)) * 4;
    for (std::int64_t row = 0; row < size.m; ++row)
        for (std::int64_t column = 0; column < size.n + 3 && row * result.stride() + column < result.count();
             ++column) {
            if (column >= size.n) { // the margin stays
                ASSERT_EQ(result.written(row, column), result.at(row, column));
                continue;
            }
            double expected = add ? result.at(row, column) : 0;
            for (std::int64_t i = 0; i < size.k; ++i)
                expected += left.at(row, i) * right.at(i, column);
            const double tolerance = rounding + (c == DType::Bf16 ? std::abs(expected) / 256 : 0);
            ASSERT_NEAR(result.written(row, column), expected, tolerance)
                << set.name << ": " << size.m << " x " << size.n << " x " << size.k << " at " << row << ", " << column;
        }
}

} // namespace

TEST(PackedProduct, isThatOfPlainLoopsInEverySetThatRunsHere)
{
    for (const PackedSet& set : packedSets())
        for (const Size& size : {Size{1, 1, 1}, Size{8, 32, 16}, Size{7, 31, 9}, Size{17, 65, 33}, Size{3, 100, 513},
                                 Size{250, 40, 11}, Size{12, 970, 5}})
            for (const bool turnA : {false, true})
                for (const bool turnB : {false, true}) {
                    expectProduct(set, size, turnA, turnB, DType::Fp32, DType::Fp32, DType::Fp32, false);
                    expectProduct(set, size, turnA, turnB, DType::Fp32, DType::Bf16, DType::Fp32, true);
                    expectProduct(set, size, turnA, turnB, DType::Bf16, DType::Bf16, DType::Fp32, true);
                    expectProduct(set, size, turnA, turnB, DType::Bf16, DType::Bf16, DType::Bf16, false);
                    expectProduct(set, size, turnA, turnB, DType::Bf16, DType::Bf16, DType::Bf16, true);
                }
}

/// What a row of c is does not depend on the rows computed with it: ranks and threads that split them agree to the bit.
TEST(PackedProduct, rowsAndColumnsDoNotKnowOfEachOther)
{
    for (const PackedSet& set : packedSets())
        for (const DType dtype : {DType::Fp32, DType::Bf16}) {
            constexpr std::int64_t kM = 21, kN = 45, kK = 300;
            const Stored left(kM, kK, false, dtype, 1);
            const Stored right(kK, kN, false, dtype, 2);
            Stored whole(kM, kN, false, DType::Fp32, 3);
            set.product(left.view(), right.view(), whole.target(), kM, kN, kK, false);
            for (std::int64_t row = 0; row < kM; ++row) {
                Stored one(1, kN, false, DType::Fp32, 4);
                MatrixView part = left.view();
                part.data = static_cast<const char*>(part.data) + row * left.stride() * (bitsOf(dtype) / 8);
                set.product(part, right.view(), one.target(), 1, kN, kK, false);
                for (std::int64_t column = 0; column < kN; ++column)
                    ASSERT_EQ(one.written(0, column), whole.written(row, column)) << set.name;
            }
        }
}
