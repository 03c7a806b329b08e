#include "executor/layers/host_multiply.hpp"

#include <algorithm>

#include "executor/layers/packed_product.hpp"

namespace shardwright {

namespace {

/// Rows or columns of c that are worth a thread.
constexpr std::int64_t kThreadMultiple = 32;
constexpr double kThreadWork = 1e5; // multiplications

/// (rows x columns) as it is multiplied, from (row, column) on; stored the other way round where transposed.
MatrixView viewOf(const TensorView& tensor, Transpose transpose, std::int64_t rows, std::int64_t columns,
                  std::int64_t row, std::int64_t column)
{
    const bool plain = transpose == Transpose::No;
    const std::int64_t rowStride = plain ? columns : 1;
    const std::int64_t columnStride = plain ? 1 : rows;
    const std::int64_t bytes = bitsOf(tensor.dtype) / 8;
    return {tensor.as<const char>() + (row * rowStride + column * columnStride) * bytes, tensor.dtype, rowStride,
            columnStride};
}

} // namespace

void hostMultiply(WorkerPool& pool, const Product& p)
{
    if (p.m == 0 || p.n == 0)
        return;
    const bool byRows = p.m >= p.n;
    const std::int64_t length = byRows ? p.m : p.n;
    const double workEach = static_cast<double>(p.k) * static_cast<double>(byRows ? p.n : p.m);
    const std::int64_t perThread = ceilDivide(length, pool.threads());
    const auto least = static_cast<std::int64_t>(kThreadWork / std::max(1.0, workEach)) + 1;
    const std::int64_t grain = roundUp(std::max(perThread, least), kThreadMultiple);
    pool.share(length, grain, [&](std::int64_t begin, std::int64_t end) {
        const std::int64_t row = byRows ? begin : 0;
        const std::int64_t column = byRows ? 0 : begin;
        const std::int64_t bytes = bitsOf(p.c.dtype) / 8;
        packedProduct(viewOf(p.a, p.transposeA, p.m, p.k, row, 0), viewOf(p.b, p.transposeB, p.k, p.n, 0, column),
                      {p.c.as<char>() + (row * p.n + column) * bytes, p.c.dtype, p.n}, byRows ? end - begin : p.m,
                      byRows ? p.n : end - begin, p.k, p.add);
    });
}

} // namespace shardwright
