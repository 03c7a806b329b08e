#include "planner/search/structures.hpp"

#include <algorithm>

#include "planner/frameworks/megatron/megatron_rules.hpp"
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

/// Notes what the ranks of a part hold, and what they send beside their layers' own collectives.
void note(const PlanInput& part, std::vector<Held>& held, StepCollectives& collectives)
{
    Training training = part.training; // without checkpoints: they hold no states, and rules are made faster
    training.checkpointing = Checkpointing::None;
    training.checkpointSegment = 1;
    const PlanInput input{part.model, part.cluster, training, part.strategy, part.slice};
    const auto rules = makeRules(input);
    const ModelStates states = rules->modelStates();
    Bytes overhead;
    for (const Overhead& each : gpuOverheads(part.cluster, rules->communicators()))
        overhead += each.bytes;
    const Bytes all = states.total() + overhead;
    // Megatron-LM's gradients lie in buffers that it makes at the start (param_and_grad_buffer.py); elsewhere they may
    // come to be in backward.
    const auto* megatron = dynamic_cast<const MegatronRules*>(rules.get());
    held.push_back({all, megatron != nullptr ? all : all - states.gradients});
    if (megatron == nullptr) {
        collectives.strategy = -1;
        return;
    }
    const OpCosts costs(input, *rules->activations(), rules->sizes());
    double seconds = 0;
    for (const Op& op : megatron->collectivesOfStep())
        seconds += costs.seconds(op);
    collectives.seconds.push_back(seconds);
}

} // namespace

Structures::OfStrategy& Structures::strategyOf(const Assignment& so)
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
    if (m_lastStrategy == nullptr || m_lastStrategy->first != key) {
        const auto [known, isNew] = m_strategies.try_emplace(key);
        if (isNew)
            known->second.collectives.strategy = static_cast<std::int64_t>(m_strategies.size());
        m_lastStrategy = &*known;
    }
    return m_lastStrategy->second;
}

const std::vector<Held>& Structures::heldBy(const PlanInput& input, const Assignment& so, std::size_t slices)
{
    OfStrategy& strategy = strategyOf(so);
    std::vector<Held>& held = strategy.held;
    if (!needsSlices(input)) {
        if (held.empty())
            note(input, held, strategy.collectives);
        return held;
    }
    if (strategy.slices == nullptr)
        strategy.slices = &slicesOf(input);
    const std::vector<ModelSlice>& all = *strategy.slices;
    while (held.size() < std::min(slices, all.size()))
        note(inputOf(input, all[held.size()]), held, strategy.collectives);
    return held;
}

const StageFloors& Structures::floorsOf(const PlanInput& input, const Assignment& so)
{
    if (!needsSlices(input))
        return m_floors.of(input, nullptr);
    heldBy(input, so);
    const OfStrategy& strategy = strategyOf(so);
    return m_floors.of(input, strategy.slices, strategy.collectives);
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

const std::vector<Part>& Structures::partsOf(const PlanInput& input, const Assignment& so, const IsWorthIt& isWorthIt)
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
    addPart(part, key, isWorthIt);
    return m_parts;
}

/// With the compiled structure of a candidate, with its sizes; where there is none, with its schedule, which is
/// written. Rules take all their options from what they are resized to: one whose rules, given the candidate's numbers,
/// come to the key that it was compiled for has the candidate's structure.
void Structures::addPart(const PlanInput& part, const Key& key, const IsWorthIt& isWorthIt)
{
    const auto worthIt = [&](const CollectiveSums& collectives, const FrameworkRules& rules) {
        return isWorthIt(collectives.seconds(OpCosts(part, *rules.activations(), rules.sizes()),
                                             part.training.gradientAccumulation));
    };
    if (m_compiled >= kMostStructures || m_seen >= kMostSeen)
        dropOldest();
    Alike& alike = m_alike[key];
    ++m_turn;
    const auto known = std::find_if(alike.compiled.begin(), alike.compiled.end(),
                                    [&](const auto& structure) { return structure->closed.fits(part); });
    if (known != alike.compiled.end()) {
        std::rotate(alike.compiled.begin(), known, known + 1);
        Structure& structure = *alike.compiled.front();
        structure.used = m_turn;
        if (isWorthIt && !structure.collectives)
            structure.collectives.emplace(structure.closed.rules().emit());
        if (!isWorthIt || worthIt(*structure.collectives, structure.closed.rules()))
            m_parts.push_back({part, &structure, nullptr});
        return;
    }
    m_schedule.rules = makeRules(part);
    const auto [at, isNew] = alike.seen.try_emplace(m_schedule.rules->structureKey());
    Seen& seen = at->second;
    m_seen += isNew ? 1 : 0;
    const bool isSummed = seen.collectives.has_value();
    if (isWorthIt && isSummed && !worthIt(*seen.collectives, *m_schedule.rules))
        return;
    const bool compiles = ++seen.candidates >= m_worthCompiling;
    const bool sums = isWorthIt && !isSummed;
    if (sums || !compiles)
        m_schedule.schedule = m_schedule.rules->emit();
    if (sums) {
        seen.collectives.emplace(m_schedule.schedule);
        if (!worthIt(*seen.collectives, *m_schedule.rules))
            return;
    }
    if (!compiles) {
        m_parts.push_back({part, nullptr, &m_schedule});
        return;
    }
    alike.compiled.insert(alike.compiled.begin(),
                          std::make_unique<Structure>(std::move(m_schedule.rules), part, seen.collectives));
    ++m_compiled;
    alike.compiled.front()->used = m_turn;
    m_parts.push_back({part, alike.compiled.front().get(), nullptr});
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
