#include "executor/engine/optimizer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

#include <fmt/format.h>

#include "executor/elements.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kChunk = 1024; // elements: four fp32 stretches of it stay in the first cache

struct Rule {
    Optimizer optimizer;
    float rate, beta1, beta2, epsilon, decay;
    float correction1 = 1, correction2Root = 1; // 1 - beta^step, of Adam

    void adam(float* p, float* g, float* m, float* v, std::int64_t count) const
    {
        const float stepSize = rate / correction1;
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) {
            if (optimizer == Optimizer::AdamW)
                p[i] -= rate * decay * p[i];
            else
                g[i] += decay * p[i];
            m[i] += (1 - beta1) * (g[i] - m[i]);
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
            p[i] -= stepSize * m[i] / (std::sqrt(v[i]) / correction2Root + epsilon);
        }
    }

    void sgd(float* p, const float* g, float* m, std::int64_t count, bool first) const
    {
        for (std::int64_t i = 0; i < count; ++i) {
            float change = g[i] + decay * p[i];
            if (m != nullptr)
                change = m[i] = first ? change : beta1 * m[i] + change;
            p[i] -= rate * change;
        }
    }

    void oneBit(float* p, const float* g, float* m, float* v, std::int64_t count) const
    {
        for (std::int64_t i = 0; i < count; ++i) {
            if (g != nullptr)
                m[i] = beta1 * m[i] + (1 - beta1) * g[i];
            if (g != nullptr && p != nullptr)
                v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
            if (p != nullptr)
                p[i] -= rate * (m[i] / (std::sqrt(v[i]) + epsilon) + decay * p[i]);
        }
    }

    void lion(float* p, const float* g, float* m, std::int64_t count) const
    {
        for (std::int64_t i = 0; i < count; ++i) {
            const float direction = beta1 * m[i] + (1 - beta1) * g[i];
            const auto sign = static_cast<float>((direction > 0) - (direction < 0));
            p[i] -= rate * (sign + decay * p[i]);
            m[i] = beta2 * m[i] + (1 - beta2) * g[i];
        }
    }
};

/// fp32 values of a chunk: in place where they are stored so, else cast in and out.
class Chunk {
public:
    Chunk(void* data, DType dtype) : m_data(static_cast<std::byte*>(data)), m_dtype(dtype) {}

    float* open(std::int64_t first, std::int64_t count)
    {
        if (m_data == nullptr)
            return nullptr;
        m_at = m_data + bytesOf(first, m_dtype).count();
        m_count = count;
        if (m_dtype == DType::Fp32)
            return static_cast<float*>(static_cast<void*>(m_at));
        convertElements(m_at, m_dtype, m_values.data(), DType::Fp32, count);
        return m_values.data();
    }
    void close() const
    {
        if (m_data != nullptr && m_dtype != DType::Fp32)
            convertElements(m_values.data(), DType::Fp32, m_at, m_dtype, m_count);
    }

private:
    std::byte* m_data;
    DType m_dtype;
    std::byte* m_at = nullptr;
    std::int64_t m_count = 0;
    std::array<float, kChunk> m_values;
};

} // namespace

bool isKnownOptimizer(Optimizer optimizer)
{
    switch (optimizer) {
    case Optimizer::AdamW:
    case Optimizer::Adam:
    case Optimizer::Sgd:
    case Optimizer::SgdMomentum:
    case Optimizer::Lion:
    case Optimizer::OneBitAdam: return true;
    default: return false;
    }
}

void stepElements(const OptimizerRun& run, Optimizer optimizer, const OptimizerSettings& settings, std::int64_t step)
{
    if (!isKnownOptimizer(optimizer))
        throw std::logic_error(fmt::format("no rule for the optimizer {}", nameOf(optimizer)));
    if ((run.parameter == nullptr || run.gradient == nullptr) && optimizer != Optimizer::OneBitAdam)
        throw std::logic_error(fmt::format("{} does not step in halves", nameOf(optimizer)));
    const auto exponent = static_cast<double>(step);
    const Rule rule{optimizer,
                    static_cast<float>(settings.learningRate),
                    static_cast<float>(settings.beta1),
                    static_cast<float>(settings.beta2),
                    static_cast<float>(settings.epsilon),
                    run.decays ? static_cast<float>(settings.weightDecay) : 0.0F,
                    static_cast<float>(1 - std::pow(settings.beta1, exponent)),
                    static_cast<float>(std::sqrt(1 - std::pow(settings.beta2, exponent)))};
    Chunk parameter(run.parameter, run.parameterType);
    Chunk first(run.moment[0], run.momentType[0]);
    Chunk second(run.moment[1], run.momentType[1]);
    std::array<float, kChunk> gradient;
    for (std::int64_t at = 0; at < run.count; at += kChunk) {
        const std::int64_t count = std::min(kChunk, run.count - at);
        if (run.gradient != nullptr)
            convertElements(static_cast<const std::byte*>(run.gradient) + bytesOf(at, run.gradientType).count(),
                            run.gradientType, gradient.data(), DType::Fp32, count);
        float* p = parameter.open(at, count);
        float* m = first.open(at, count);
        float* v = second.open(at, count);
        if (optimizer == Optimizer::AdamW || optimizer == Optimizer::Adam)
            rule.adam(p, gradient.data(), m, v, count);
        else if (optimizer == Optimizer::OneBitAdam)
            rule.oneBit(p, run.gradient == nullptr ? nullptr : gradient.data(), m, v, count);
        else if (optimizer == Optimizer::Lion)
            rule.lion(p, gradient.data(), m, count);
        else
            rule.sgd(p, gradient.data(), m, count, step == 1);
        parameter.close();
        first.close();
        second.close();
    }
}

} // namespace shardwright
