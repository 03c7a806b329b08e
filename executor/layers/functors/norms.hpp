#pragma once

// RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), a row each; their weights' gradients, a block of columns
// each. Statistics: means (LayerNorm only), then reciprocal deviations, `rows` of each.

#include "executor/layers/functors/rows.hpp"

namespace shardwright {

template <typename T, bool kMean> struct NormFunctor {
    const T* in;
    const T* weight;
    const T* bias; // null without one
    T* out;
    float* statistics;
    std::int64_t rows;
    std::int64_t width;
    float epsilon;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t row) const
    {
        const T* x = in + row * width;
        T* y = out + row * width;
        float mean = 0;
        if constexpr (kMean) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (std::int64_t j = 0; j < width; ++j)
                sum += load(x, j);
            mean = sum / static_cast<float>(width);
            statistics[row] = mean;
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (std::int64_t j = 0; j < width; ++j) {
            const float centred = load(x, j) - mean;
            squares += centred * centred;
        }
        const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + epsilon);
        statistics[(kMean ? rows : 0) + row] = scale;
        if (bias == nullptr) {
#pragma omp simd
            for (std::int64_t j = 0; j < width; ++j)
                store(y, j, (load(x, j) - mean) * scale * load(weight, j));
        } else {
#pragma omp simd
            for (std::int64_t j = 0; j < width; ++j)
                store(y, j, (load(x, j) - mean) * scale * load(weight, j) + load(bias, j));
        }
    }
};

template <typename T, bool kMean> struct NormGradientFunctor {
    const T* gradient;
    const T* in;
    const float* statistics;
    const T* weight;
    T* gradIn;
    std::int64_t rows;
    std::int64_t width;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t row) const
    {
        const T* g = gradient + row * width;
        const T* x = in + row * width;
        T* to = gradIn + row * width;
        const float mean = kMean ? statistics[row] : 0.0f;
        const float scale = statistics[(kMean ? rows : 0) + row];
        float sum = 0;     // of the gradients of the normalised input
        float product = 0; // of them with it
#pragma omp simd reduction(+ : sum, product)
        for (std::int64_t j = 0; j < width; ++j) {
            const float inner = load(g, j) * load(weight, j);
            sum += inner;
            product += inner * (load(x, j) - mean) * scale;
        }
        const float centre = kMean ? sum / static_cast<float>(width) : 0.0f;
        const float along = product / static_cast<float>(width);
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j) {
            const float normalised = (load(x, j) - mean) * scale;
            store(to, j, scale * (load(g, j) * load(weight, j) - centre - normalised * along));
        }
    }
};

template <typename T, typename W, bool kMean> struct NormWeightsGradientFunctor {
    const T* gradient;
    const T* in;
    const float* statistics;
    W* gradWeight;
    W* gradBias; // null without one
    std::int64_t rows;
    std::int64_t width;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t block) const
    {
        const std::int64_t first = block * kColumnBlock;
        const std::int64_t count = width - first < kColumnBlock ? width - first : kColumnBlock;
        float weights[kColumnBlock] = {};
        float biases[kColumnBlock] = {};
        for (std::int64_t row = 0; row < rows; ++row) {
            const T* g = gradient + row * width + first;
            const T* x = in + row * width + first;
            const float mean = kMean ? statistics[row] : 0.0f;
            const float scale = statistics[(kMean ? rows : 0) + row];
#pragma omp simd
            for (std::int64_t j = 0; j < count; ++j) {
                weights[j] += load(g, j) * (load(x, j) - mean) * scale;
                biases[j] += load(g, j);
            }
        }
        for (std::int64_t j = 0; j < count; ++j) {
            store(gradWeight, first + j, weights[j]);
            if (gradBias != nullptr)
                store(gradBias, first + j, biases[j]);
        }
    }
};

} // namespace shardwright
