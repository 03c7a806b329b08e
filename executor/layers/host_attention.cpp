#include "executor/layers/host_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "executor/layers/functors/dropout.hpp"
#include "executor/layers/packed_product.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kQueryBlock = 64;
constexpr std::int64_t kKeyBlock = 128;

/// Rows [first, first + count) of one head of one sequence.
struct Rows {
    std::int64_t sequence, head, first, count;
};

std::int64_t elementOf(const AttentionShape& shape, const HeadsView& view, const Rows& rows)
{
    return view.offset + (rows.sequence * shape.length + rows.first) * view.stride + rows.head * shape.headDim;
}

/// (rows, d), and (d, rows).
MatrixView matrixOf(const AttentionShape& shape, const HeadsView& view, const Rows& rows)
{
    const std::int64_t bytes = bitsOf(view.tensor.dtype) / 8;
    return {view.tensor.as<const char>() + elementOf(shape, view, rows) * bytes, view.tensor.dtype, view.stride, 1};
}
MatrixView transposed(MatrixView view)
{
    std::swap(view.rowStride, view.columnStride);
    return view;
}
MatrixView matrixOf(const float* data, std::int64_t columns)
{
    return {data, DType::Fp32, columns, 1};
}

template <typename T>
void write(const AttentionShape& shape, const HeadsView& view, const Rows& rows, const float* from)
{
    for (std::int64_t row = 0; row < rows.count; ++row) {
        T* to = view.tensor.as<T>() + elementOf(shape, view, rows) + row * view.stride;
        const float* values = from + row * shape.headDim;
#pragma omp simd
        for (std::int64_t j = 0; j < shape.headDim; ++j)
            store(to, j, values[j]);
    }
}

/// Hands out pieces of the calling thread's memory, one after the other.
class Scratch {
public:
    explicit Scratch(std::int64_t floats)
    {
        thread_local std::vector<float> memory;
        if (memory.size() < static_cast<std::size_t>(floats))
            memory.resize(static_cast<std::size_t>(floats));
        m_next = memory.data();
    }
    float* take(std::int64_t count) { return std::exchange(m_next, m_next + count); }

private:
    float* m_next;
};

float scaleOf(const AttentionShape& shape)
{
    return 1.0f / std::sqrt(static_cast<float>(shape.headDim));
}

/// Keys [begin, end) of a block of keys.
struct Span {
    std::int64_t begin, end;
};

/// Those that query `query` sees of the block from `firstKey`.
Span seen(const AttentionShape& shape, std::int64_t query, std::int64_t firstKey, std::int64_t keys)
{
    const std::int64_t end = std::clamp<std::int64_t>(query - firstKey + 1, 0, keys);
    const std::int64_t begin = shape.window == 0 ? 0 : query - shape.window + 1 - firstKey;
    return {std::clamp<std::int64_t>(begin, 0, end), end};
}

void multiplyRow(float* row, float factor, std::int64_t count)
{
#pragma omp simd
    for (std::int64_t j = 0; j < count; ++j)
        row[j] *= factor;
}

void clearUnseen(float* row, const Span& span, std::int64_t keys)
{
    std::fill(row, row + span.begin, 0.0f);
    std::fill(row + span.end, row + keys, 0.0f);
}

/// First key of the first block that a query from `query` on sees.
std::int64_t firstKeyBlock(const AttentionShape& shape, std::int64_t query)
{
    return shape.window == 0 ? 0 : std::max<std::int64_t>(0, query - shape.window + 1) / kKeyBlock * kKeyBlock;
}

/// Factors of a row of probabilities, as many as a block has keys.
void factorsOf(const AttentionShape& shape, const Rows& rows, std::int64_t row, std::int64_t firstKey,
               std::int64_t keys, float* factors)
{
    static_assert(kKeyBlock % kDropoutColumns == 0);
    for (std::int64_t column = 0; column < keys; column += kDropoutColumns)
        dropoutFactors(shape.dropout, rows.sequence, rows.first + row, rows.head, firstKey + column, factors + column);
}

/// One query block: the softmax is corrected as greater scores turn up.
template <typename T>
void attend(const AttentionShape& shape, const HeadsView& q, const HeadsView& k, const HeadsView& v,
            const HeadsView& context, float* logSumExp, const Rows& rows)
{
    const std::int64_t d = shape.headDim;
    const std::int64_t n = rows.count;
    const float scale = scaleOf(shape);
    Scratch scratch(kQueryBlock * d + (kQueryBlock + 1) * kKeyBlock + 2 * kQueryBlock);
    float* out = scratch.take(n * d);
    float* scores = scratch.take(n * kKeyBlock);
    float* factors = scratch.take(kKeyBlock);
    float* most = scratch.take(n);
    float* sum = scratch.take(n);
    std::fill(most, most + n, -std::numeric_limits<float>::infinity());
    std::fill(sum, sum + n, 0.0f);
    const std::int64_t begin = firstKeyBlock(shape, rows.first);
    for (std::int64_t firstKey = begin; firstKey < rows.first + n; firstKey += kKeyBlock) {
        const std::int64_t keys = std::min(kKeyBlock, rows.first + n - firstKey);
        const Rows keyRows{rows.sequence, rows.head / (shape.heads / shape.keyHeads), firstKey, keys};
        packedProduct(matrixOf(shape, q, rows), transposed(matrixOf(shape, k, keyRows)), {scores, DType::Fp32, keys}, n,
                      keys, d, false);
        for (std::int64_t row = 0; row < n; ++row) {
            const Span visible = seen(shape, rows.first + row, firstKey, keys);
            float* score = scores + row * keys;
            float greatest = most[row];
#pragma omp simd reduction(max : greatest)
            for (std::int64_t j = visible.begin; j < visible.end; ++j)
                greatest = score[j] > greatest ? score[j] : greatest;
            float added = 0;
#pragma omp simd reduction(+ : added)
            for (std::int64_t j = visible.begin; j < visible.end; ++j) {
                score[j] = expOf((score[j] - greatest) * scale);
                added += score[j];
            }
            clearUnseen(score, visible, keys);
            if (!shape.dropout.none()) { // the sum is of all of them
                factorsOf(shape, rows, row, firstKey, keys, factors);
#pragma omp simd
                for (std::int64_t j = 0; j < keys; ++j)
                    score[j] *= factors[j];
            }
            const float correction = visible.begin == visible.end ? 1.0f : expOf((most[row] - greatest) * scale);
            most[row] = greatest;
            sum[row] = sum[row] * correction + added;
            if (firstKey > begin)
                multiplyRow(out + row * d, correction, d);
        }
        packedProduct(matrixOf(scores, keys), matrixOf(shape, v, keyRows), {out, DType::Fp32, d}, n, d, keys,
                      firstKey > begin);
    }
    for (std::int64_t row = 0; row < n; ++row) {
        multiplyRow(out + row * d, 1 / sum[row], d);
        logSumExp[(rows.sequence * shape.length + rows.first + row) * shape.heads + rows.head] =
            most[row] * scale + std::log(sum[row]);
    }
    write<T>(shape, context, rows, out);
}

/// The gradients of one key head of one sequence and of the query heads that share it, block by block: the
/// probabilities are made once for all three.
template <typename T> class HeadGradient {
public:
    HeadGradient(const AttentionShape& shape, const Device::AttentionGradient& operands, std::int64_t sequence,
                 std::int64_t keyHead)
        : m_shape(shape), m_operands(operands), m_sequence(sequence), m_keyHead(keyHead),
          m_size(shape.length * shape.headDim),
          m_scratch(3 * m_size + 2 * shape.length + (2 * kQueryBlock + 1) * kKeyBlock),
          m_gradQueries(m_scratch.take(m_size)), m_gradKeys(m_scratch.take(m_size)),
          m_gradValues(m_scratch.take(m_size)), m_along(m_scratch.take(shape.length)),
          m_shift(m_scratch.take(shape.length)), m_scores(m_scratch.take(kQueryBlock * kKeyBlock)),
          m_gradScores(m_scratch.take(kQueryBlock * kKeyBlock)), m_factors(m_scratch.take(kKeyBlock))
    {
    }

    void run()
    {
        const std::int64_t group = m_shape.heads / m_shape.keyHeads;
        std::fill(m_gradKeys, m_gradKeys + m_size, 0.0f);
        std::fill(m_gradValues, m_gradValues + m_size, 0.0f);
        for (std::int64_t head = m_keyHead * group; head < (m_keyHead + 1) * group; ++head)
            queryHead(head);
        const Rows all{m_sequence, m_keyHead, 0, m_shape.length};
        write<T>(m_shape, m_operands.gradK, all, m_gradKeys);
        write<T>(m_shape, m_operands.gradV, all, m_gradValues);
    }

private:
    void queryHead(std::int64_t head)
    {
        std::fill(m_gradQueries, m_gradQueries + m_size, 0.0f);
        readStatistics(head);
        for (std::int64_t firstKey = 0; firstKey < m_shape.length; firstKey += kKeyBlock) {
            const Rows keys{m_sequence, m_keyHead, firstKey, std::min(kKeyBlock, m_shape.length - firstKey)};
            const std::int64_t end = m_shape.window == 0
                                         ? m_shape.length
                                         : std::min(m_shape.length, firstKey + keys.count - 1 + m_shape.window);
            for (std::int64_t first = firstKey / kQueryBlock * kQueryBlock; first < end; first += kQueryBlock)
                meet({m_sequence, head, first, std::min(kQueryBlock, m_shape.length - first)}, keys);
        }
        write<T>(m_shape, m_operands.gradQ, {m_sequence, head, 0, m_shape.length}, m_gradQueries);
    }

    /// Of each query: its log-sum-exp, and gradient . context, which the softmax takes off.
    void readStatistics(std::int64_t head)
    {
        const auto* sums = m_operands.logSumExp.as<const float>();
        const auto rowOf = [&](const HeadsView& view, std::int64_t token) {
            return view.tensor.as<const T>() + elementOf(m_shape, view, {m_sequence, head, token, 1});
        };
        for (std::int64_t token = 0; token < m_shape.length; ++token) {
            const T* gradient = rowOf(m_operands.gradient, token);
            const T* context = rowOf(m_operands.context, token);
            float along = 0;
#pragma omp simd reduction(+ : along)
            for (std::int64_t j = 0; j < m_shape.headDim; ++j)
                along += load(gradient, j) * load(context, j);
            m_along[token] = along;
            m_shift[token] = sums[(m_sequence * m_shape.length + token) * m_shape.heads + head];
        }
    }

    void meet(const Rows& rows, const Rows& keyRows)
    {
        const std::int64_t d = m_shape.headDim;
        const std::int64_t n = rows.count;
        const std::int64_t keys = keyRows.count;
        const MatrixView query = matrixOf(m_shape, m_operands.q, rows);
        const MatrixView gradient = matrixOf(m_shape, m_operands.gradient, rows);
        const MatrixView key = matrixOf(m_shape, m_operands.k, keyRows);
        const MatrixView value = matrixOf(m_shape, m_operands.v, keyRows);
        packedProduct(query, transposed(key), {m_scores, DType::Fp32, keys}, n, keys, d, false);
        packedProduct(gradient, transposed(value), {m_gradScores, DType::Fp32, keys}, n, keys, d, false);
        for (std::int64_t row = 0; row < n; ++row)
            softmaxGradient(rows, row, keyRows);
        const MatrixView probabilities = matrixOf(m_scores, keys);
        const MatrixView gradScores = matrixOf(m_gradScores, keys);
        packedProduct(transposed(probabilities), gradient, {m_gradValues + keyRows.first * d, DType::Fp32, d}, keys, d,
                      n, true);
        packedProduct(transposed(gradScores), query, {m_gradKeys + keyRows.first * d, DType::Fp32, d}, keys, d, n,
                      true);
        packedProduct(gradScores, key, {m_gradQueries + rows.first * d, DType::Fp32, d}, n, d, keys, true);
    }

    /// A row of scores becomes probabilities as they met the values, that of their gradients the scores' gradients.
    void softmaxGradient(const Rows& rows, std::int64_t row, const Rows& keyRows)
    {
        const std::int64_t keys = keyRows.count;
        const Span visible = seen(m_shape, rows.first + row, keyRows.first, keys);
        float* p = m_scores + row * keys;
        float* g = m_gradScores + row * keys;
        const float shift = m_shift[rows.first + row];
        const float along = m_along[rows.first + row];
        const float scale = scaleOf(m_shape);
        if (m_shape.dropout.none()) {
#pragma omp simd
            for (std::int64_t j = visible.begin; j < visible.end; ++j) {
                p[j] = expOf(p[j] * scale - shift);
                g[j] = p[j] * (g[j] - along) * scale;
            }
        } else {
            factorsOf(m_shape, rows, row, keyRows.first, keys, m_factors);
            const float* factors = m_factors;
#pragma omp simd
            for (std::int64_t j = visible.begin; j < visible.end; ++j) {
                const float probability = expOf(p[j] * scale - shift);
                g[j] = probability * (g[j] * factors[j] - along) * scale;
                p[j] = probability * factors[j];
            }
        }
        clearUnseen(p, visible, keys);
        clearUnseen(g, visible, keys);
    }

    const AttentionShape& m_shape;
    const Device::AttentionGradient& m_operands;
    const std::int64_t m_sequence;
    const std::int64_t m_keyHead;
    const std::int64_t m_size; // of a head's rows
    Scratch m_scratch;
    float* m_gradQueries; // (length, d) of the query head at hand
    float* m_gradKeys;    // of the key head
    float* m_gradValues;
    float* m_along;
    float* m_shift;
    float* m_scores; // (queries, keys) of two blocks
    float* m_gradScores;
    float* m_factors;
};

} // namespace

void hostAttention(WorkerPool& pool, const AttentionShape& shape, const HeadsView& q, const HeadsView& k,
                   const HeadsView& v, const HeadsView& context, TensorView logSumExp)
{
    withStorage(q.tensor.dtype, [&](auto storage) {
        using T = decltype(storage);
        const std::int64_t blocks = ceilDivide(shape.length, kQueryBlock);
        pool.share(shape.sequences * shape.heads * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t first = i % blocks * kQueryBlock;
                const std::int64_t head = i / blocks;
                attend<T>(shape, q, k, v, context, logSumExp.as<float>(),
                          {head / shape.heads, head % shape.heads, first, std::min(kQueryBlock, shape.length - first)});
            }
        });
    });
}

void hostAttentionGradient(WorkerPool& pool, const AttentionShape& shape, const Device::AttentionGradient& operands)
{
    withStorage(operands.q.tensor.dtype, [&](auto storage) {
        using T = decltype(storage);
        pool.share(shape.sequences * shape.keyHeads, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i)
                HeadGradient<T>(shape, operands, i / shape.keyHeads, i % shape.keyHeads).run();
        });
    });
}

} // namespace shardwright
