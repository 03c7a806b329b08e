#include "executor/layers/host_multiply.hpp"

#include <algorithm>
#include <vector>

#include <Eigen/Core>

#include "executor/elements.hpp"

namespace shardwright {

namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Strided = Eigen::Map<Matrix, Eigen::Unaligned, Eigen::OuterStride<>>;
using ConstStrided = Eigen::Map<const Matrix, Eigen::Unaligned, Eigen::OuterStride<>>;

/// Of what is cast to fp32 block by block: 2 MiB a thread for the three of them, and few enough casts an element.
constexpr std::int64_t kBlockRows = 256;
constexpr std::int64_t kBlockColumns = 512;
constexpr std::int64_t kBlockDepth = 512;

/// Rows or columns of c that are worth a thread.
constexpr std::int64_t kThreadMultiple = 16;
constexpr double kThreadWork = 1e5; // multiplications

/// c (rows x columns) (+)= a b, where `a` and `b` stand as they are stored.
void multiplyStored(const ConstStrided& a, Transpose transposeA, const ConstStrided& b, Transpose transposeB, Strided c,
                    bool add)
{
    const auto assign = [&](const auto& product) {
        if (add)
            c.noalias() += product;
        else
            c.noalias() = product;
    };
    if (transposeA == Transpose::No && transposeB == Transpose::No)
        assign(a * b);
    else if (transposeA == Transpose::No)
        assign(a * b.transpose());
    else if (transposeB == Transpose::No)
        assign(a.transpose() * b);
    else
        assign(a.transpose() * b.transpose());
}

/// A part of a stored operand: `rows` x `columns` of the operand from (row, column), where the whole has `wholeRows` x
/// `wholeColumns`, all before transposition.
struct Part {
    std::int64_t row, column, rows, columns;
};

const float* at(const TensorView& view, std::int64_t element)
{
    return view.as<const float>() + element;
}

ConstStrided partOf(const TensorView& view, Transpose transpose, std::int64_t wholeRows, std::int64_t wholeColumns,
                    const Part& part)
{
    if (transpose == Transpose::No)
        return {at(view, part.row * wholeColumns + part.column), part.rows, part.columns,
                Eigen::OuterStride<>(wholeColumns)};
    return {at(view, part.column * wholeRows + part.row), part.columns, part.rows, Eigen::OuterStride<>(wholeRows)};
}

/// The part as it is stored, cast to fp32 in `to`.
ConstStrided castPart(const TensorView& view, Transpose transpose, std::int64_t wholeRows, std::int64_t wholeColumns,
                      const Part& part, float* to)
{
    const bool plain = transpose == Transpose::No;
    const std::int64_t rows = plain ? part.rows : part.columns;
    const std::int64_t columns = plain ? part.columns : part.rows;
    const std::int64_t stride = plain ? wholeColumns : wholeRows;
    const std::int64_t first = plain ? part.row * stride + part.column : part.column * stride + part.row;
    const std::int64_t bytes = bitsOf(view.dtype) / 8;
    for (std::int64_t row = 0; row < rows; ++row)
        convertElements(view.as<const char>() + (first + row * stride) * bytes, view.dtype, to + row * columns,
                        DType::Fp32, columns);
    return {to, rows, columns, Eigen::OuterStride<>(columns)};
}

/// Rows [row, row + rows) and columns [column, column + columns) of c.
void multiplyPlain(const Product& p, const Part& part)
{
    const ConstStrided a = partOf(p.a, p.transposeA, p.m, p.k, {part.row, 0, part.rows, p.k});
    const ConstStrided b = partOf(p.b, p.transposeB, p.k, p.n, {0, part.column, p.k, part.columns});
    multiplyStored(a, p.transposeA, b, p.transposeB,
                   {p.c.as<float>() + part.row * p.n + part.column, part.rows, part.columns, Eigen::OuterStride<>(p.n)},
                   p.add);
}

/// The same of operands that are not all fp32: block by block through fp32, c rounded once.
void multiplyCast(const Product& p, const Part& part)
{
    float* a = threadScratch(
        static_cast<std::size_t>(kBlockRows * kBlockDepth + kBlockDepth * kBlockColumns + kBlockRows * kBlockColumns));
    float* b = a + kBlockRows * kBlockDepth;
    float* c = b + kBlockDepth * kBlockColumns;
    const std::int64_t bytes = bitsOf(p.c.dtype) / 8;
    for (std::int64_t column = part.column; column < part.column + part.columns; column += kBlockColumns)
        for (std::int64_t row = part.row; row < part.row + part.rows; row += kBlockRows) {
            const std::int64_t rows = std::min(kBlockRows, part.row + part.rows - row);
            const std::int64_t columns = std::min(kBlockColumns, part.column + part.columns - column);
            const auto place = [&](std::int64_t i) { return p.c.as<char>() + ((row + i) * p.n + column) * bytes; };
            if (p.add)
                for (std::int64_t i = 0; i < rows; ++i)
                    convertElements(place(i), p.c.dtype, c + i * columns, DType::Fp32, columns);
            for (std::int64_t depth = 0; depth < p.k; depth += kBlockDepth) {
                const std::int64_t deep = std::min(kBlockDepth, p.k - depth);
                multiplyStored(castPart(p.a, p.transposeA, p.m, p.k, {row, depth, rows, deep}, a), p.transposeA,
                               castPart(p.b, p.transposeB, p.k, p.n, {depth, column, deep, columns}, b), p.transposeB,
                               {c, rows, columns, Eigen::OuterStride<>(columns)}, p.add || depth > 0);
            }
            for (std::int64_t i = 0; i < rows; ++i)
                convertElements(c + i * columns, DType::Fp32, place(i), p.c.dtype, columns);
        }
}

} // namespace

void hostMultiply(WorkerPool& pool, const Product& product)
{
    if (product.m == 0 || product.n == 0)
        return;
    const bool plain =
        product.a.dtype == DType::Fp32 && product.b.dtype == DType::Fp32 && product.c.dtype == DType::Fp32;
    const bool byRows = product.m >= product.n;
    const std::int64_t length = byRows ? product.m : product.n;
    const double workEach = static_cast<double>(product.k) * static_cast<double>(byRows ? product.n : product.m);
    const std::int64_t perThread = ceilDivide(length, pool.threads());
    const auto least = static_cast<std::int64_t>(kThreadWork / std::max(1.0, workEach)) + 1;
    const std::int64_t grain = roundUp(std::max(perThread, least), kThreadMultiple);
    pool.share(length, grain, [&](std::int64_t begin, std::int64_t end) {
        const Part part = byRows ? Part{begin, 0, end - begin, product.n} : Part{0, begin, product.m, end - begin};
        if (plain)
            multiplyPlain(product, part);
        else
            multiplyCast(product, part);
    });
}

float* threadScratch(std::size_t count)
{
    thread_local std::vector<float> scratch;
    if (scratch.size() < count)
        scratch.resize(count);
    return scratch.data();
}

} // namespace shardwright
