#include <cmath>
#include <stdexcept>
#include <vector>

#include "executor/state/random.hpp"
#include "executor/state/sources.hpp"

namespace shardwright {

namespace {

bool endsWith(const std::string& text, const char* end)
{
    const std::string wanted(end);
    return text.size() >= wanted.size() && text.compare(text.size() - wanted.size(), wanted.size(), wanted) == 0;
}

class SeededWeights final : public WeightSource {
public:
    SeededWeights(const Model& model, std::uint64_t seed) : m_seed(seed)
    {
        const Architecture& architecture = model.architecture;
        const bool gpt2 = architecture.modelType == "gpt2";
        const double deviation = architecture.numerics.initializerRange;
        // GPT-2 (Radford et al. 2019, sec. 2.3): residual projections are scaled by the depth of the residual path.
        const double residual = deviation / std::sqrt(2.0 * static_cast<double>(architecture.layers));
        for (std::size_t layer = 0; layer < model.layers.size(); ++layer)
            for (const ParameterSpec& parameter : model.layer(layer).parameters)
                for (std::int64_t i = 0; i < parameter.repeat; ++i) {
                    Rule rule;
                    if (endsWith(parameter.name, "bias"))
                        rule.constant = 0;
                    else if (parameter.role == ParameterRole::Norm)
                        rule.constant = 1;
                    else
                        rule.deviation = gpt2 && endsWith(parameter.name, "c_proj.weight") ? residual : deviation;
                    m_rules.push_back(rule);
                }
    }

    void read(std::int32_t tensor, std::int64_t first, std::int64_t count, float* to) const override
    {
        const Rule& rule = m_rules.at(static_cast<std::size_t>(tensor));
        const std::uint64_t key = randomBits(m_seed, static_cast<std::uint64_t>(tensor));
        for (std::int64_t i = 0; i < count; ++i)
            to[i] = rule.deviation == 0
                        ? static_cast<float>(rule.constant)
                        : static_cast<float>(rule.deviation * normal(key, static_cast<std::uint64_t>(first + i)));
    }

private:
    struct Rule {
        double constant = 0;
        double deviation = 0; // 0: all elements are the constant
    };

    std::uint64_t m_seed;
    std::vector<Rule> m_rules; // by tensor
};

} // namespace

std::unique_ptr<WeightSource> seededWeights(const Model& model, std::uint64_t seed)
{
    return std::make_unique<SeededWeights>(model, seed);
}

} // namespace shardwright
