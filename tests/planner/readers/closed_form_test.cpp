// The closed form against what it stands for: the replay of the candidate's own schedule and the sum of its traffic.

#include "planner/readers/closed_form.hpp"

#include <map>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/scenario_file.hpp"
#include "planner/readers/traffic_sum.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {
namespace {

const std::vector<Model>& models()
{
    static const std::vector<Model> all{llamaOf({16, 1, 2, 8, 24, 20, false}), llamaOf({16, 5, 2, 8, 24, 20, false}),
                                        llamaOf({24, 3, 3, 8, 20, 50, true}),
                                        mixtralOf({16, 3, 2, 8, 24, 20, false}, 4)};
    return all;
}

/// Those of everyStrategy() and everyDeepSpeed(), and DeepSpeed's predefined ones.
const std::vector<std::pair<std::string, StrategyOptions>>& strategies()
{
    static const auto all = [] {
        auto list = everyStrategy();
        list.insert(list.end(), everyDeepSpeed().begin(), everyDeepSpeed().end());
        for (const std::string& name : strategyNames())
            if (name.rfind("deepspeed", 0) == 0)
                list.emplace_back(name, strategyByName(name, 4)->options);
        return list;
    }();
    return all;
}

/// What a search varies: training and the size of the cluster.
void vary(SmallInput& small)
{
    small.cluster.gpusPerNode = *rc::gen::element(1, 2, 3, 4, 8);
    small.cluster.nodes = *rc::gen::inRange(1, 4);
    small.training.microBatch = *rc::gen::inRange(1, 6);
    small.training.sequenceLength = 8 * *rc::gen::inRange(1, 9);
    small.training.gradientAccumulation = *rc::gen::inRange(1, 6);
}

/// What fixes the structure besides.
void varyStructure(SmallInput& small)
{
    small.training.checkpointing = *rc::gen::element(Checkpointing::None, Checkpointing::Full);
    if (small.training.checkpointing == Checkpointing::Full)
        small.training.checkpointSegment = *rc::gen::inRange(1, 5);
    small.training.holdsLogits = *rc::gen::arbitrary<bool>();
    small.training.attention = *rc::gen::element(Attention::Flash, Attention::Eager);
    small.training.fusedOptimizer = *rc::gen::arbitrary<bool>();
    if (*rc::gen::arbitrary<bool>())
        small.training.precision.mixed.reset();
}

void expectEqualToReplay(ClosedForm& form, const PlanInput& input)
{
    const ClosedFormResult result = form.evaluate(input);
    const Schedule schedule = makeRules(input)->emit();
    const MemoryReplay memory = replayMemory(schedule, false);
    const Traffic traffic = sumTraffic(schedule, input.model.parameters(), input.cluster.gpusPerNode);
    RC_ASSERT(result.peakAllocated == memory.gpu.bytes);
    RC_ASSERT(result.initPeak == memory.gpuInitPeak);
    RC_ASSERT(result.hostPinned == memory.hostPinned.bytes);
    RC_ASSERT(result.hostPageable == memory.hostPageable.bytes);
    RC_ASSERT(result.nvme == memory.nvme.bytes);
    RC_ASSERT(result.sentBytesPerGpu == traffic.sentBytesPerGpu);
    RC_ASSERT(result.intraNodeBytesPerGpu == traffic.intraNodeBytesPerGpu);
    RC_ASSERT(result.interNodeBytesPerGpu == traffic.interNodeBytesPerGpu);
    RC_ASSERT(result.interNodeBytesPerNode == traffic.interNodeBytesPerNode);
    RC_ASSERT(std::abs(result.psi - traffic.psi) <= 1e-9 * (1 + traffic.psi));
}

RC_GTEST_PROP(ClosedForm, EqualsTheReplayOfEveryCandidateOfItsStructure, ())
{
    const auto& [name, options] = *rc::gen::elementOf(strategies());
    RC_TAG(name);
    SmallInput small(options);
    small.model = *rc::gen::elementOf(models());
    varyStructure(small);
    vary(small);
    RC_PRE(refusals(small.input()).empty());
    ClosedForm form(small.input());
    expectEqualToReplay(form, small.input());
    for (int candidate = 0; candidate < 4; ++candidate) {
        vary(small);
        if (!refusals(small.input()).empty() || small.rules()->structureKey() != form.structureKey())
            continue;
        expectEqualToReplay(form, small.input());
    }
}

/// A schedule without its numbers: operations, and what their events do to which class.
std::string structureOf(const Schedule& schedule)
{
    std::string text;
    for (const Segment& segment : schedule.segments) {
        text += std::string(segment.name) + ':';
        for (std::uint32_t i = segment.firstOp; i < segment.endOp; ++i) {
            const Op& op = schedule.ops[i];
            text += std::to_string(static_cast<int>(op.kind)) + '/' + std::to_string(static_cast<int>(op.stream)) +
                    '/' + std::to_string(op.layer) + '/' + std::to_string(op.payload) + '/' + std::to_string(op.group) +
                    '(';
            for (std::uint32_t e = 0; e < op.eventCount; ++e) {
                const BufferEvent& event = schedule.events[op.firstEvent + e];
                text += std::to_string(static_cast<int>(event.change)) + '.' + std::to_string(event.buffer) + '.' +
                        std::to_string(schedule.buffers[static_cast<std::size_t>(event.buffer)]) + ' ';
            }
            text += ')';
        }
    }
    return text;
}

RC_GTEST_PROP(StructureKey, EqualKeysMeanEqualStructures, ())
{
    const auto& [name, options] = *rc::gen::elementOf(strategies());
    RC_TAG(name);
    SmallInput small(options);
    small.model = *rc::gen::elementOf(models());
    std::map<std::string, std::string> structures;
    for (int candidate = 0; candidate < 6; ++candidate) {
        varyStructure(small);
        vary(small);
        if (!refusals(small.input()).empty())
            continue;
        const auto rules = small.rules();
        const std::string structure = structureOf(rules->emit());
        const auto [known, fresh] = structures.emplace(rules->structureKey(), structure);
        RC_ASSERT(fresh || known->second == structure);
    }
}

} // namespace
} // namespace shardwright
