#pragma once

// One element each.

#include "executor/layers/functors/storage.hpp"

namespace shardwright {

template <typename T> struct AddFunctor {
    const T* left;
    const T* right;
    T* sum;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t i) const { store(sum, i, load(left, i) + load(right, i)); }
};

/// silu(gate) up, with silu(x) = x sigmoid(x).
template <typename T> struct SwiGluFunctor {
    const T* gate;
    const T* up;
    T* product;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t i) const
    {
        const float g = load(gate, i);
        store(product, i, g * sigmoidOf(g) * load(up, i));
    }
};

template <typename T> struct SwiGluGradientFunctor {
    const T* gradient;
    const T* gate;
    const T* up;
    T* gradGate;
    T* gradUp;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t i) const
    {
        const float out = load(gradient, i);
        const float g = load(gate, i);
        const float s = sigmoidOf(g);
        const float u = load(up, i);
        store(gradGate, i, out * u * s * (1.0f + g * (1.0f - s)));
        store(gradUp, i, out * g * s);
    }
};

// GELU in its tanh form (arXiv 1606.08415 sec. 2): x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
constexpr float kGeluScale = 0.7978845608f; // sqrt(2/pi)
constexpr float kGeluCube = 0.044715f;

template <typename T> struct GeluFunctor {
    const T* in;
    T* out;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t i) const
    {
        const float x = load(in, i);
        store(out, i, 0.5f * x * (1.0f + tanhOf(kGeluScale * (x + kGeluCube * x * x * x))));
    }
};

template <typename T> struct GeluGradientFunctor {
    const T* gradient;
    const T* in;
    T* gradIn;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t i) const
    {
        const float x = load(in, i);
        const float t = tanhOf(kGeluScale * (x + kGeluCube * x * x * x));
        const float slope = kGeluScale * (1.0f + 3.0f * kGeluCube * x * x);
        store(gradIn, i, load(gradient, i) * 0.5f * ((1.0f + t) + x * (1.0f - t * t) * slope));
    }
};

} // namespace shardwright
