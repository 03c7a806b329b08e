#include "planner/search/model_scaling.hpp"

#include <algorithm>
#include <map>
#include <numeric>

#include <fmt/format.h>

namespace shardwright::search {

Model withBlocks(const Model& model, std::int64_t blocks)
{
    Model changed = model;
    changed.layers.clear();
    std::int64_t made = 0;
    int lastBlock = -1;
    const auto addMissing = [&] {
        for (; lastBlock >= 0 && made < blocks; ++made)
            changed.layers.push_back(lastBlock);
    };
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        if (model.layer(i).kind == LayerKind::Block) {
            lastBlock = model.layers[i];
            if (made < blocks) {
                changed.layers.push_back(lastBlock);
                ++made;
            }
            continue;
        }
        addMissing();
        changed.layers.push_back(model.layers[i]);
    }
    addMissing();
    changed.architecture.layers = blocks;
    if (blocks != model.architecture.layers)
        changed.id = fmt::format("{} with {} blocks", model.id, blocks);
    return changed;
}

namespace {

/// What every dimension of the model becomes; nothing where one cannot be told from another.
class Widths {
public:
    Widths(const Architecture& from, std::int64_t heads) : m_from(from), m_to(from)
    {
        m_to.heads = heads;
        m_to.hidden = inProportion(from.hidden);
        m_to.kvHeads = from.kvHeads <= 1 ? from.kvHeads : inProportion(from.kvHeads);
        m_to.ffn = rounded(from.ffn);
        m_to.expertFfn = rounded(from.expertFfn);
        m_to.sharedExpertFfn = rounded(from.sharedExpertFfn);
        m_even &= from.qLoraRank == 0 && from.kvLoraRank == 0;
        stays(1);
        stays(from.headDim);
        stays(from.valueHeadDim);
        becomes(from.hidden, m_to.hidden);
        becomes(from.heads * from.headDim, heads * from.headDim);
        becomes(from.kvHeads * from.headDim, m_to.kvHeads * from.headDim);
        becomes((from.heads + 2 * from.kvHeads) * from.headDim, (heads + 2 * m_to.kvHeads) * from.headDim);
        for (const auto& [old, fresh] : {std::pair(from.ffn, m_to.ffn), std::pair(from.expertFfn, m_to.expertFfn),
                                         std::pair(from.sharedExpertFfn, m_to.sharedExpertFfn)}) {
            becomes(old, fresh);
            becomes(2 * old, 2 * fresh); // gate and up in one matrix
        }
    }

    bool even() const { return m_even; }
    const Architecture& architecture() const { return m_to; }

    bool apply(ParameterSpec& parameter) const
    {
        parameter.numel = 1;
        for (std::size_t i = 0; i < parameter.shape.size(); ++i) {
            std::int64_t& size = parameter.shape[i];
            if (!isCount(parameter, i)) {
                const auto known = m_becomes.find(size);
                if (known == m_becomes.end() || known->second == kUnclear)
                    return false;
                size = known->second;
            }
            parameter.numel = checkedMultiply(parameter.numel, size);
        }
        return true;
    }

private:
    static constexpr std::int64_t kUnclear = -1;

    /// Whether a dimension counts tokens of a vocabulary, positions, experts or an adapter's rank.
    static bool isCount(const ParameterSpec& parameter, std::size_t dimension)
    {
        switch (parameter.role) {
        case ParameterRole::Embedding:
        case ParameterRole::Position:
        case ParameterRole::Head:
        case ParameterRole::Router: return dimension == 0;
        case ParameterRole::Lora: return dimension == (parameter.name.find("lora_A") != std::string::npos ? 0u : 1u);
        default: return false;
        }
    }

    std::int64_t inProportion(std::int64_t size)
    {
        m_even &= checkedMultiply(size, m_to.heads) % m_from.heads == 0;
        return size * m_to.heads / m_from.heads;
    }
    std::int64_t rounded(std::int64_t size) const
    {
        constexpr std::int64_t kLargestUnit = 256;
        if (size == 0)
            return 0;
        const std::int64_t unit = std::gcd(size, kLargestUnit);
        const std::int64_t units = checkedMultiply(size / unit, m_to.heads);
        return unit * std::max<std::int64_t>(1, (2 * units + m_from.heads) / (2 * m_from.heads));
    }
    void stays(std::int64_t size) { becomes(size, size); }
    void becomes(std::int64_t size, std::int64_t fresh)
    {
        const auto [known, isNew] = m_becomes.emplace(size, fresh);
        if (!isNew && known->second != fresh)
            known->second = kUnclear;
    }

    const Architecture& m_from;
    Architecture m_to;
    bool m_even = true;
    std::map<std::int64_t, std::int64_t> m_becomes;
};

} // namespace

std::optional<Model> withHeads(const Model& model, std::int64_t heads)
{
    if (heads == model.architecture.heads)
        return model;
    if (heads < 1 || model.architecture.heads < 1)
        return std::nullopt;
    const Widths widths(model.architecture, heads);
    if (!widths.even())
        return std::nullopt;
    Model changed = model;
    for (LayerType& type : changed.layerTypes)
        for (ParameterSpec& parameter : type.parameters)
            if (!widths.apply(parameter))
                return std::nullopt;
    changed.architecture = widths.architecture();
    changed.id = fmt::format("{} with {} heads", model.id, heads);
    return changed;
}

std::vector<std::int64_t> usualHeads(const Model& model)
{
    constexpr std::int64_t kQuarters[] = {2, 3, 4, 5, 6, 8, 12, 16, 24, 32};
    std::vector<std::int64_t> heads;
    for (const std::int64_t quarters : kQuarters)
        if (quarters == 4 ||
            (model.architecture.heads * quarters % 4 == 0 && withHeads(model, model.architecture.heads * quarters / 4)))
            heads.push_back(model.architecture.heads * quarters / 4);
    return heads;
}

} // namespace shardwright::search
