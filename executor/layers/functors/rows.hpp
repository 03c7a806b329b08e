#pragma once

// One row of a (rows, width) tensor each, or one block of columns for what is summed over the rows.

#include <algorithm>

#include "executor/layers/functors/storage.hpp"

namespace shardwright {

/// Columns that one call of a column functor sums up.
constexpr std::int64_t kColumnBlock = 64;

template <typename T> struct EmbedFunctor {
    const std::int64_t* tokens;
    const T* table;
    T* out;
    std::int64_t width;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t row) const
    {
        const T* from = table + tokens[row] * width;
        T* to = out + row * width;
        for (std::int64_t j = 0; j < width; ++j)
            to[j] = from[j];
    }
};

/// Row `row` of `out` is that of `in` plus row `row % period` of `table`.
template <typename T> struct AddRowsFunctor {
    const T* in;
    const T* table;
    T* out;
    std::int64_t width;
    std::int64_t period;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t row) const
    {
        const T* x = in + row * width;
        const T* added = table + row % period * width;
        T* to = out + row * width;
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j)
            store(to, j, load(x, j) + load(added, j));
    }
};

template <typename T> struct FillRowsFunctor {
    const T* value;
    T* out;
    std::int64_t width;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t row) const
    {
        for (std::int64_t j = 0; j < width; ++j)
            out[row * width + j] = value[j];
    }
};

/// Sums rows of `in` by group into rows of `out`, which it overwrites: call i is column block i % blocks of group
/// i / blocks, whose rows are order[begin[group]] up to order[begin[group + 1] - 1].
template <typename T, typename W> struct SumGroupsFunctor {
    const T* in;
    const std::int64_t* begin;
    const std::int64_t* order;
    W* out;
    std::int64_t width;
    std::int64_t blocks;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t i) const
    {
        const std::int64_t group = i / blocks;
        const std::int64_t first = i % blocks * kColumnBlock;
        const std::int64_t count = width - first < kColumnBlock ? width - first : kColumnBlock;
        float sum[kColumnBlock] = {};
        for (std::int64_t place = begin[group]; place < begin[group + 1]; ++place) {
            const T* row = in + order[place] * width + first;
#pragma omp simd
            for (std::int64_t j = 0; j < count; ++j)
                sum[j] += load(row, j);
        }
        for (std::int64_t j = 0; j < count; ++j)
            store(out, group * width + first + j, sum[j]);
    }
};

/// Sums rows p, p + period, p + 2 period ... into row p of `out`; zeros for rows from `period` on. Call i as above.
template <typename T, typename W> struct SumPeriodicRowsFunctor {
    const T* in;
    W* out;
    std::int64_t rows;
    std::int64_t width;
    std::int64_t period;
    std::int64_t blocks;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t i) const
    {
        const std::int64_t p = i / blocks;
        const std::int64_t first = i % blocks * kColumnBlock;
        const std::int64_t count = width - first < kColumnBlock ? width - first : kColumnBlock;
        float sum[kColumnBlock] = {};
        for (std::int64_t row = p < period ? p : rows; row < rows; row += period) {
            const T* from = in + row * width + first;
#pragma omp simd
            for (std::int64_t j = 0; j < count; ++j)
                sum[j] += load(from, j);
        }
        for (std::int64_t j = 0; j < count; ++j)
            store(out, p * width + first + j, sum[j]);
    }
};

/// Log-sum-exp of a row; gives back the loss of its label.
template <typename T> struct CrossEntropyFunctor {
    const T* logits;
    const std::int64_t* labels;
    float* logSumExp;
    std::int64_t width;
    SHARDWRIGHT_FUNCTOR double operator()(std::int64_t row) const
    {
        const T* x = logits + row * width;
        float most = load(x, 0);
#pragma omp simd reduction(max : most)
        for (std::int64_t j = 0; j < width; ++j) {
            const float value = load(x, j);
            most = value > most ? value : most;
        }
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t j = 0; j < width; ++j)
            sum += expOf(load(x, j) - most);
        logSumExp[row] = most + std::log(sum);
        return static_cast<double>(logSumExp[row]) - static_cast<double>(load(x, labels[row]));
    }
};

/// In place of the logits: factor (softmax - 1 at the label).
template <typename T> struct CrossEntropyGradientFunctor {
    T* logits;
    const std::int64_t* labels;
    const float* logSumExp;
    std::int64_t width;
    float factor;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t row) const
    {
        T* x = logits + row * width;
        const float shift = logSumExp[row];
        const float atLabel = (expOf(load(x, labels[row]) - shift) - 1.0f) * factor;
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j)
            store(x, j, expOf(load(x, j) - shift) * factor);
        store(x, labels[row], atLabel);
    }
};

/// Rotary embedding of one token (arXiv 2104.09864), pairing element j of a head with j + d/2 as transformers does.
/// `table`: cosines, then sines, (positions, d/2) each.
template <typename T> struct RotateFunctor {
    T* x;
    const float* table;
    std::int64_t positions;
    std::int64_t heads;
    std::int64_t headDim;
    float direction; // 1, or -1 for the gradient
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t token) const
    {
        const std::int64_t half = headDim / 2;
        const float* cosine = table + token % positions * half;
        const float* sine = cosine + positions * half;
        for (std::int64_t head = 0; head < heads; ++head) {
            T* first = x + (token * heads + head) * headDim;
            T* second = first + half;
#pragma omp simd
            for (std::int64_t j = 0; j < half; ++j) {
                const float a = load(first, j);
                const float b = load(second, j);
                const float s = direction * sine[j];
                store(first, j, a * cosine[j] - b * s);
                store(second, j, b * cosine[j] + a * s);
            }
        }
    }
};

} // namespace shardwright
