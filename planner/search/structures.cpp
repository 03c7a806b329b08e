#include "planner/search/structures.hpp"

#include "planner/frameworks/rules.hpp"
#include "planner/frameworks/sharding.hpp"

namespace shardwright::search {

namespace {

// Structures kept at a time: some hundred KiB each for the deepest models.
constexpr std::size_t kMostStructures = 1000;

template <typename E> std::int64_t number(E value)
{
    return static_cast<std::int64_t>(value);
}

} // namespace

const std::vector<ModelSlice>& Structures::slicesOf(const PlanInput& input)
{
    const Parallelism& p = input.strategy.parallelism;
    const Key key{number(input.strategy.options.index()),
                  p.tensor,
                  p.sequenceParallel,
                  p.pipeline,
                  p.virtualStages,
                  p.context,
                  p.expert};
    const auto known = m_slices.find(key);
    return known != m_slices.end() ? known->second : m_slices.emplace(key, sliceModel(input)).first->second;
}

const std::vector<Part>& Structures::partsOf(const PlanInput& input, const Assignment& so)
{
    if (m_count > kMostStructures) {
        m_structures.clear();
        m_count = 0;
    }
    Key key{number(so.framework),
            number(so.sharding),
            so.shardGroup != kWholeGroup,
            number(so.offload),
            number(so.zeroPlusPlus),
            so.tensor,
            so.sequenceParallel,
            so.pipeline,
            so.virtualStages,
            so.context,
            so.expert,
            number(so.checkpointing),
            so.checkpointEvery,
            accumulationShape(input.training.gradientAccumulation),
            0};
    m_parts.clear();
    if (!needsSlices(input)) {
        m_parts.push_back({input, &structureOf(input, key)});
        return m_parts;
    }
    for (const ModelSlice& slice : slicesOf(input)) {
        ++key.back();
        const PlanInput part = inputOf(input, slice);
        m_parts.push_back({part, &structureOf(part, key)});
    }
    return m_parts;
}

/// One whose rules, given the candidate's numbers, come to the key that it was compiled for has the candidate's
/// structure: rules take all their options from what they are resized to.
Structure& Structures::structureOf(const PlanInput& part, const Key& key)
{
    std::vector<std::unique_ptr<Structure>>& alike = m_structures[key];
    for (const auto& structure : alike)
        if (structure->closed.fits(part))
            return *structure;
    ++m_count;
    alike.push_back(std::make_unique<Structure>(makeRules(part), part.model));
    return *alike.back();
}

} // namespace shardwright::search
