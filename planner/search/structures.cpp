#include "planner/search/structures.hpp"

#include <algorithm>

#include "planner/frameworks/rules.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/overheads.hpp"

namespace shardwright::search {

namespace {

// Kept at a time, by each thread: structures, half a MiB each for deep models, and names of them, some hundred bytes.
constexpr std::size_t kMostStructures = 320;
constexpr std::size_t kMostSeen = 50000;

template <typename E> std::int64_t number(E value)
{
    return static_cast<std::int64_t>(value);
}

Held heldBy(const PlanInput& part)
{
    Training training = part.training; // without checkpoints: they hold no states, and rules are made faster
    training.checkpointing = Checkpointing::None;
    training.checkpointSegment = 1;
    const auto rules = makeRules({part.model, part.cluster, training, part.strategy, part.slice});
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

const std::vector<Held>& Structures::heldBy(const PlanInput& input, const Assignment& so, std::size_t slices)
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
    std::vector<Held>& held = m_held[key];
    if (!needsSlices(input)) {
        if (held.empty())
            held.push_back(search::heldBy(input));
        return held;
    }
    if (held.size() >= slices)
        return held;
    const std::vector<ModelSlice>& all = slicesOf(input);
    while (held.size() < std::min(slices, all.size()))
        held.push_back(search::heldBy(inputOf(input, all[held.size()])));
    return held;
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
        for (std::size_t i = 0; i < m_pipeline.schedules.size(); ++i)
            m_parts.push_back({inputOf(input, (*m_pipeline.slices)[i]), nullptr, &m_pipeline.schedules[i]});
        return m_parts;
    }
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
    if (Structure* structure = structureOf(part, key)) {
        m_parts.push_back({part, structure, nullptr});
        return m_parts;
    }
    m_parts.push_back({part, nullptr, &m_schedule});
    return m_parts;
}

/// The compiled structure of a candidate, with its sizes; where there is none, nothing, and its schedule is written
/// instead. Rules take all their options from what they are resized to: one whose rules, given the candidate's numbers,
/// come to the key that it was compiled for has the candidate's structure.
Structure* Structures::structureOf(const PlanInput& part, const Key& key)
{
    if (m_compiled >= kMostStructures || m_seen >= kMostSeen)
        dropOldest();
    Alike& alike = m_alike[key];
    ++m_turn;
    const auto known = std::find_if(alike.compiled.begin(), alike.compiled.end(),
                                    [&](const auto& structure) { return structure->closed.fits(part); });
    if (known != alike.compiled.end()) {
        std::rotate(alike.compiled.begin(), known, known + 1);
    } else {
        m_schedule.rules = makeRules(part);
        const auto [seen, isNew] = alike.seen.try_emplace(m_schedule.rules->structureKey(), 0);
        m_seen += isNew ? 1 : 0;
        if (++seen->second < m_worthCompiling) {
            m_schedule.schedule = m_schedule.rules->emit();
            return nullptr;
        }
        alike.compiled.insert(alike.compiled.begin(), std::make_unique<Structure>(std::move(m_schedule.rules), part));
        ++m_compiled;
    }
    alike.compiled.front()->used = m_turn;
    return alike.compiled.front().get();
}

/// The half of the compiled that was not asked for the longest, and what is known of others.
void Structures::dropOldest()
{
    std::vector<std::int64_t> turns;
    for (const auto& [key, alike] : m_alike)
        for (const auto& structure : alike.compiled)
            turns.push_back(structure->used);
    std::sort(turns.begin(), turns.end());
    const std::int64_t oldest = turns.empty() ? 0 : turns[turns.size() / 2];
    m_compiled = 0;
    m_seen = 0;
    for (auto each = m_alike.begin(); each != m_alike.end();) {
        auto& compiled = each->second.compiled;
        compiled.erase(std::remove_if(compiled.begin(), compiled.end(),
                                      [&](const auto& structure) { return structure->used < oldest; }),
                       compiled.end());
        each->second.seen.clear();
        m_compiled += compiled.size();
        each = compiled.empty() ? m_alike.erase(each) : std::next(each);
    }
}

} // namespace shardwright::search
