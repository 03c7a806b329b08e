#include "planner/search/structures.hpp"

#include <algorithm>

#include "planner/frameworks/rules.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/overheads.hpp"

namespace shardwright::search {

namespace {

// Structures kept at a time, by each thread: half a MiB each for deep models.
constexpr std::size_t kMostStructures = 250;

template <typename E> std::int64_t number(E value)
{
    return static_cast<std::int64_t>(value);
}

Held heldBy(const PlanInput& part)
{
    const auto rules = makeRules(part);
    const ModelStates states = rules->modelStates();
    Bytes overhead;
    for (const Overhead& each : gpuOverheads(part.cluster, rules->communicators()))
        overhead += each.bytes;
    const Bytes all = states.total() + overhead;
    // Megatron-LM's gradients lie in buffers that it makes at the start (param_and_grad_buffer.py); elsewhere they may
    // come to be in backward.
    const bool gradientsStay = std::holds_alternative<MegatronOptions>(part.strategy.options);
    return {all, gradientsStay ? all : all - states.gradients};
}

} // namespace

const std::vector<Held>& Structures::heldBy(const PlanInput& input, const Assignment& so)
{
    const StrategyKey key{number(so.framework),
                          number(so.sharding),
                          number(so.offload),
                          number(so.zeroPlusPlus),
                          so.gpus,
                          so.shardGroup,
                          so.tensor,
                          so.sequenceParallel,
                          so.pipeline,
                          so.virtualStages,
                          so.context,
                          so.expert,
                          so.expertTensor};
    const auto [known, isNew] = m_held.try_emplace(key);
    if (!isNew)
        return known->second;
    if (!needsSlices(input))
        known->second.push_back(search::heldBy(input));
    else
        for (const ModelSlice& slice : slicesOf(input))
            known->second.push_back(search::heldBy(inputOf(input, slice)));
    return known->second;
}

const std::vector<ModelSlice>& Structures::slicesOf(const PlanInput& input)
{
    const Parallelism& p = input.strategy.parallelism;
    const Key key{number(input.strategy.options.index()),
                  p.tensor,
                  p.sequenceParallel,
                  p.pipeline,
                  p.virtualStages,
                  p.context,
                  p.expert,
                  p.expertTensor};
    const auto known = m_slices.find(key);
    return known != m_slices.end() ? known->second : m_slices.emplace(key, sliceModel(input)).first->second;
}

const std::vector<Part>& Structures::partsOf(const PlanInput& input, const Assignment& so)
{
    m_parts.clear();
    if (so.pipeline > 1) {
        m_pipeline.slices = &slicesOf(input);
        m_pipeline.schedules = emitStages(input, *m_pipeline.slices);
        m_pipeline.step.reset();
        for (std::size_t i = 0; i < m_pipeline.schedules.size(); ++i)
            m_parts.push_back({inputOf(input, (*m_pipeline.slices)[i]), nullptr, &m_pipeline.schedules[i]});
        return m_parts;
    }
    if (m_count > kMostStructures)
        dropOldest();
    const Key key{number(so.framework),
                  number(so.sharding),
                  so.shardGroup != kWholeGroup,
                  number(so.offload),
                  number(so.zeroPlusPlus),
                  so.tensor,
                  so.sequenceParallel,
                  so.pipeline,
                  so.virtualStages,
                  so.context,
                  number(so.exchange),
                  so.expert,
                  so.expertTensor,
                  number(so.checkpointing),
                  so.checkpointEvery,
                  so.checkpointSegment,
                  accumulationShape(input.training.gradientAccumulation)};
    const PlanInput part = needsSlices(input) ? inputOf(input, slicesOf(input).front()) : input;
    m_parts.push_back({part, &structureOf(part, key), nullptr});
    return m_parts;
}

const std::optional<StepTime>& Structures::pipelineStepOf(const PlanInput& input)
{
    if (!m_pipeline.step)
        m_pipeline.step = pipelineStep(input, *m_pipeline.slices, m_pipeline.schedules);
    return *m_pipeline.step;
}

/// One whose rules, given the candidate's numbers, come to the key that it was compiled for has the candidate's
/// structure: rules take all their options from what they are resized to.
Structure& Structures::structureOf(const PlanInput& part, const Key& key)
{
    std::vector<std::unique_ptr<Structure>>& alike = m_structures[key];
    ++m_turn;
    for (const auto& structure : alike)
        if (structure->closed.fits(part)) {
            structure->used = m_turn;
            return *structure;
        }
    ++m_count;
    alike.push_back(std::make_unique<Structure>(makeRules(part), part.model));
    alike.back()->used = m_turn;
    return *alike.back();
}

/// The half that was not asked for the longest.
void Structures::dropOldest()
{
    std::vector<std::int64_t> turns;
    for (const auto& [key, alike] : m_structures)
        for (const auto& structure : alike)
            turns.push_back(structure->used);
    const auto middle = turns.begin() + static_cast<std::ptrdiff_t>(turns.size() / 2);
    std::nth_element(turns.begin(), middle, turns.end());
    for (auto each = m_structures.begin(); each != m_structures.end();) {
        auto& alike = each->second;
        alike.erase(std::remove_if(alike.begin(), alike.end(),
                                   [&](const auto& structure) { return structure->used < *middle; }),
                    alike.end());
        each = alike.empty() ? m_structures.erase(each) : std::next(each);
    }
    m_count = turns.size() - turns.size() / 2;
}

} // namespace shardwright::search
