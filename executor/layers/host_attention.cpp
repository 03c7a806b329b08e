#include "executor/layers/host_attention.hpp"

#include <cmath>

#include <Eigen/Core>

#include "executor/layers/functors/storage.hpp"
#include "executor/layers/host_multiply.hpp"

namespace shardwright {

namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Block = Eigen::Map<Matrix>;

constexpr std::int64_t kQueryBlock = 64;
constexpr std::int64_t kKeyBlock = 128;

/// Rows [first, first + count) of one head of one sequence.
struct Rows {
    std::int64_t sequence, head, first, count;
};

std::int64_t elementOf(const AttentionShape& shape, const HeadsView& view, const Rows& rows, std::int64_t row)
{
    return view.offset + (rows.sequence * shape.length + rows.first + row) * view.stride + rows.head * shape.headDim;
}

template <typename T> void read(const AttentionShape& shape, const HeadsView& view, const Rows& rows, Block to)
{
    for (std::int64_t row = 0; row < rows.count; ++row) {
        const T* from = view.tensor.as<const T>() + elementOf(shape, view, rows, row);
        float* into = to.data() + row * shape.headDim;
#pragma omp simd
        for (std::int64_t j = 0; j < shape.headDim; ++j)
            into[j] = load(from, j);
    }
}

template <typename T>
void write(const AttentionShape& shape, const HeadsView& view, const Rows& rows, const Block& from)
{
    for (std::int64_t row = 0; row < rows.count; ++row) {
        T* to = view.tensor.as<T>() + elementOf(shape, view, rows, row);
        const float* values = from.data() + row * shape.headDim;
#pragma omp simd
        for (std::int64_t j = 0; j < shape.headDim; ++j)
            store(to, j, values[j]);
    }
}

/// Hands out blocks of the thread's scratch, one after the other.
class Scratch {
public:
    explicit Scratch(std::int64_t floats) : m_next(threadScratch(static_cast<std::size_t>(floats))) {}
    Block block(std::int64_t rows, std::int64_t columns)
    {
        float* at = m_next;
        m_next += rows * columns;
        return {at, rows, columns};
    }
    float* row(std::int64_t count)
    {
        float* at = m_next;
        m_next += count;
        return at;
    }

private:
    float* m_next;
};

float scaleOf(const AttentionShape& shape)
{
    return 1.0f / std::sqrt(static_cast<float>(shape.headDim));
}

/// Keys of the block from `firstKey` that query `query` sees.
std::int64_t seen(std::int64_t query, std::int64_t firstKey, std::int64_t keys)
{
    return std::max<std::int64_t>(0, std::min(keys, query - firstKey + 1));
}

/// One query block: the softmax is corrected as greater scores turn up.
template <typename T>
void attend(const AttentionShape& shape, const HeadsView& q, const HeadsView& k, const HeadsView& v,
            const HeadsView& context, float* logSumExp, const Rows& rows)
{
    const std::int64_t d = shape.headDim;
    const std::int64_t n = rows.count;
    Scratch scratch(2 * kQueryBlock * d + 2 * kKeyBlock * d + kQueryBlock * kKeyBlock + 2 * kQueryBlock);
    Block query = scratch.block(n, d);
    Block out = scratch.block(n, d);
    float* most = scratch.row(n);
    float* sum = scratch.row(n);
    read<T>(shape, q, rows, query);
    query *= scaleOf(shape);
    out.setZero();
    std::fill(most, most + n, -std::numeric_limits<float>::infinity());
    std::fill(sum, sum + n, 0.0f);
    float* keyPlace = scratch.row(kKeyBlock * d);
    float* valuePlace = scratch.row(kKeyBlock * d);
    float* scorePlace = scratch.row(kQueryBlock * kKeyBlock);
    const std::int64_t keyHead = rows.head / (shape.heads / shape.keyHeads);
    for (std::int64_t firstKey = 0; firstKey < rows.first + n; firstKey += kKeyBlock) {
        const std::int64_t keys = std::min(kKeyBlock, rows.first + n - firstKey);
        Block key(keyPlace, keys, d);
        Block value(valuePlace, keys, d);
        Block scores(scorePlace, n, keys);
        const Rows keyRows{rows.sequence, keyHead, firstKey, keys};
        read<T>(shape, k, keyRows, key);
        read<T>(shape, v, keyRows, value);
        scores.noalias() = query * key.transpose();
        for (std::int64_t row = 0; row < n; ++row) {
            const std::int64_t visible = seen(rows.first + row, firstKey, keys);
            float* score = scorePlace + row * keys;
            float greatest = most[row];
#pragma omp simd reduction(max : greatest)
            for (std::int64_t j = 0; j < visible; ++j)
                greatest = score[j] > greatest ? score[j] : greatest;
            float added = 0;
#pragma omp simd reduction(+ : added)
            for (std::int64_t j = 0; j < visible; ++j) {
                score[j] = expOf(score[j] - greatest);
                added += score[j];
            }
            std::fill(score + visible, score + keys, 0.0f);
            const float correction = visible == 0 ? 1.0f : expOf(most[row] - greatest);
            most[row] = greatest;
            sum[row] = sum[row] * correction + added;
            out.row(row) *= correction;
        }
        out.noalias() += scores * value;
    }
    for (std::int64_t row = 0; row < n; ++row) {
        out.row(row) /= sum[row];
        logSumExp[(rows.sequence * shape.length + rows.first + row) * shape.heads + rows.head] =
            most[row] + std::log(sum[row]);
    }
    write<T>(shape, context, rows, out);
}

/// What the gradient needs of one query block, and what it makes of it with one key block.
template <typename T> class QueryBlock {
public:
    static std::int64_t floats(const AttentionShape& shape)
    {
        return 3 * kQueryBlock * shape.headDim + 2 * kQueryBlock * kKeyBlock + 2 * kQueryBlock;
    }

    QueryBlock(const AttentionShape& shape, const Device::AttentionGradient& operands, Scratch& scratch)
        : m_shape(shape), m_operands(operands), m_query(scratch.row(kQueryBlock * shape.headDim)),
          m_gradient(scratch.row(kQueryBlock * shape.headDim)), m_context(scratch.row(kQueryBlock * shape.headDim)),
          m_scores(scratch.row(kQueryBlock * kKeyBlock)), m_gradScores(scratch.row(kQueryBlock * kKeyBlock)),
          m_logSumExp(scratch.row(kQueryBlock)), m_along(scratch.row(kQueryBlock))
    {
    }

    void readRows(const Rows& rows)
    {
        m_rows = rows;
        const std::int64_t d = m_shape.headDim;
        read<T>(m_shape, m_operands.q, rows, query());
        read<T>(m_shape, m_operands.gradient, rows, gradient());
        Block context(m_context, rows.count, d);
        read<T>(m_shape, m_operands.context, rows, context);
        for (std::int64_t row = 0; row < rows.count; ++row) {
            m_along[row] = gradient().row(row).dot(context.row(row));
            m_logSumExp[row] =
                m_operands.logSumExp
                    .as<const float>()[(rows.sequence * m_shape.length + rows.first + row) * m_shape.heads + rows.head];
        }
    }

    /// Probabilities, and gradients of the products of queries and keys, both (queries, keys).
    void meet(const Block& key, const Block& value, std::int64_t firstKey)
    {
        const std::int64_t keys = key.rows();
        Block scores = probabilities(keys);
        Block grad = gradScores(keys);
        scores.noalias() = query() * key.transpose();
        grad.noalias() = gradient() * value.transpose();
        const float scale = scaleOf(m_shape);
        for (std::int64_t row = 0; row < m_rows.count; ++row) {
            const std::int64_t visible = seen(m_rows.first + row, firstKey, keys);
            float* p = m_scores + row * keys;
            float* g = m_gradScores + row * keys;
            const float shift = m_logSumExp[row];
            const float along = m_along[row];
#pragma omp simd
            for (std::int64_t j = 0; j < visible; ++j) {
                p[j] = expOf(p[j] * scale - shift);
                g[j] = p[j] * (g[j] - along) * scale;
            }
            std::fill(p + visible, p + keys, 0.0f);
            std::fill(g + visible, g + keys, 0.0f);
        }
    }

    Block query()
    {
        return {m_query, m_rows.count, m_shape.headDim};
    }
    Block gradient()
    {
        return {m_gradient, m_rows.count, m_shape.headDim};
    }
    Block probabilities(std::int64_t keys)
    {
        return {m_scores, m_rows.count, keys};
    }
    Block gradScores(std::int64_t keys)
    {
        return {m_gradScores, m_rows.count, keys};
    }

private:
    const AttentionShape& m_shape;
    const Device::AttentionGradient& m_operands;
    Rows m_rows{};
    float* m_query;
    float* m_gradient;
    float* m_context;
    float* m_scores;
    float* m_gradScores;
    float* m_logSumExp;
    float* m_along; // gradient . context of each row: what the softmax takes off
};

template <typename T>
void gradientOfQueries(const AttentionShape& shape, const Device::AttentionGradient& operands, const Rows& rows)
{
    const std::int64_t d = shape.headDim;
    Scratch scratch(QueryBlock<T>::floats(shape) + (kQueryBlock + 2 * kKeyBlock) * d);
    QueryBlock<T> queries(shape, operands, scratch);
    queries.readRows(rows);
    Block result = scratch.block(rows.count, d);
    float* keyPlace = scratch.row(kKeyBlock * d);
    float* valuePlace = scratch.row(kKeyBlock * d);
    result.setZero();
    const std::int64_t keyHead = rows.head / (shape.heads / shape.keyHeads);
    for (std::int64_t firstKey = 0; firstKey < rows.first + rows.count; firstKey += kKeyBlock) {
        const std::int64_t keys = std::min(kKeyBlock, rows.first + rows.count - firstKey);
        Block key(keyPlace, keys, d);
        Block value(valuePlace, keys, d);
        const Rows keyRows{rows.sequence, keyHead, firstKey, keys};
        read<T>(shape, operands.k, keyRows, key);
        read<T>(shape, operands.v, keyRows, value);
        queries.meet(key, value, firstKey);
        result.noalias() += queries.gradScores(keys) * key;
    }
    write<T>(shape, operands.gradQ, rows, result);
}

/// `keyRows.head` is the key head; all query heads that share it take part.
template <typename T>
void gradientOfKeys(const AttentionShape& shape, const Device::AttentionGradient& operands, const Rows& keyRows)
{
    const std::int64_t d = shape.headDim;
    Scratch scratch(QueryBlock<T>::floats(shape) + 4 * kKeyBlock * d);
    QueryBlock<T> queries(shape, operands, scratch);
    Block key = scratch.block(keyRows.count, d);
    Block value = scratch.block(keyRows.count, d);
    Block gradKey = scratch.block(keyRows.count, d);
    Block gradValue = scratch.block(keyRows.count, d);
    read<T>(shape, operands.k, keyRows, key);
    read<T>(shape, operands.v, keyRows, value);
    gradKey.setZero();
    gradValue.setZero();
    const std::int64_t group = shape.heads / shape.keyHeads;
    const std::int64_t firstBlock = keyRows.first / kQueryBlock * kQueryBlock;
    for (std::int64_t head = keyRows.head * group; head < (keyRows.head + 1) * group; ++head)
        for (std::int64_t first = firstBlock; first < shape.length; first += kQueryBlock) {
            queries.readRows({keyRows.sequence, head, first, std::min(kQueryBlock, shape.length - first)});
            queries.meet(key, value, keyRows.first);
            gradValue.noalias() += queries.probabilities(keyRows.count).transpose() * queries.gradient();
            gradKey.noalias() += queries.gradScores(keyRows.count).transpose() * queries.query();
        }
    write<T>(shape, operands.gradK, keyRows, gradKey);
    write<T>(shape, operands.gradV, keyRows, gradValue);
}

/// Calls `body` for every block of `blockRows` rows of every head of every sequence, shared among the threads.
template <typename Body>
void eachBlock(WorkerPool& pool, const AttentionShape& shape, std::int64_t heads, std::int64_t blockRows,
               const Body& body)
{
    const std::int64_t blocks = ceilDivide(shape.length, blockRows);
    pool.share(shape.sequences * heads * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t first = i % blocks * blockRows;
            body(Rows{i / blocks / heads, i / blocks % heads, first, std::min(blockRows, shape.length - first)});
        }
    });
}

} // namespace

void hostAttention(WorkerPool& pool, const AttentionShape& shape, const HeadsView& q, const HeadsView& k,
                   const HeadsView& v, const HeadsView& context, TensorView logSumExp)
{
    withStorage(q.tensor.dtype, [&](auto storage) {
        using T = decltype(storage);
        eachBlock(pool, shape, shape.heads, kQueryBlock,
                  [&](const Rows& rows) { attend<T>(shape, q, k, v, context, logSumExp.as<float>(), rows); });
    });
}

void hostAttentionGradient(WorkerPool& pool, const AttentionShape& shape, const Device::AttentionGradient& operands)
{
    withStorage(operands.q.tensor.dtype, [&](auto storage) {
        using T = decltype(storage);
        eachBlock(pool, shape, shape.heads, kQueryBlock,
                  [&](const Rows& rows) { gradientOfQueries<T>(shape, operands, rows); });
        eachBlock(pool, shape, shape.keyHeads, kKeyBlock,
                  [&](const Rows& rows) { gradientOfKeys<T>(shape, operands, rows); });
    });
}

} // namespace shardwright
