#include "planner/frameworks/rules.hpp"

#include <cassert>

#include <fmt/format.h>

#include "core/layer_refusals.hpp"
#include "planner/parallelism/combinations.hpp"
#include "planner/parallelism/model_slice.hpp"

namespace shardwright {

namespace {

struct Room {
    std::vector<std::string> (*refusals)(const PlanInput&);
    std::unique_ptr<FrameworkRules> (*make)(const PlanInput&);
};

Room roomOf(const PlanInput& input)
{
    struct Visitor {
        Room operator()(const DdpOptions&) const { return {ddpRefusals, makeDdpRules}; }
        Room operator()(const Fsdp1Options&) const { return {fsdp1Refusals, makeFsdp1Rules}; }
        Room operator()(const Fsdp2Options&) const { return {fsdp2Refusals, makeFsdp2Rules}; }
        Room operator()(const DeepSpeedOptions&) const { return {deepspeedRefusals, makeDeepSpeedRules}; }
        Room operator()(const NativeOptions&) const { return {nativeRefusals, makeNativeRules}; }
        Room operator()(const MegatronOptions&) const { return {megatronRefusals, makeMegatronRules}; }
    };
    return std::visit(Visitor{}, input.strategy.options);
}

/// What the modelling code cannot train, whatever shards it.
std::vector<std::string> implementationRefusals(const PlanInput& input)
{
    if (input.training.implementation != Implementation::Shardrun)
        return {};
    std::vector<std::string> reasons = layerRefusals(input.model, input.training);
    if (!input.strategy.parallelism.none())
        reasons.push_back("shardrun's layers are not split: it is data parallel only");
    if (std::holds_alternative<MegatronOptions>(input.strategy.options))
        reasons.push_back("Megatron trains its own layers, not shardrun's (implementation megatron)");
    return reasons;
}

/// A table of learned positions cannot be read past its end; rotary positions and ALiBi can.
std::vector<std::string> positionRefusals(const PlanInput& input)
{
    const std::int64_t positions = input.model.architecture.maxPositions;
    const std::int64_t sequence = input.training.sequenceLength;
    bool learned = false;
    for (const LayerType& type : input.model.layerTypes)
        for (const ParameterSpec& parameter : type.parameters)
            learned |= parameter.role == ParameterRole::Position;
    if (!learned || positions == 0 || sequence <= positions)
        return {};
    return {
        fmt::format("the model has {} learned positions and sequences of {} tokens read past them: a sequence length "
                    "of at most {}",
                    positions, sequence, positions)};
}

/// Segments of several blocks where blocks are not a rank's own in one piece.
std::vector<std::string> segmentRefusals(const PlanInput& input)
{
    const Training& training = input.training;
    if (training.checkpointSegment == 1)
        return {};
    std::vector<std::string> reasons;
    const Parallelism& parallelism = input.strategy.parallelism;
    if (parallelism.virtualStages > 1)
        for (const std::int64_t blocks : blocksOfChunks(input))
            if (blocks % training.checkpointSegment != 0) {
                reasons.push_back(fmt::format("checkpoint_segment {} does not divide the {} blocks of a chunk of the "
                                              "pipeline",
                                              training.checkpointSegment, blocks));
                break;
            }
    return reasons;
}

} // namespace

std::vector<std::string> refusals(const PlanInput& input)
{
    std::vector<std::string> reasons = combinationRefusals(input);
    for (const auto& more : {implementationRefusals(input), positionRefusals(input), segmentRefusals(input),
                             sliceRefusals(input), roomOf(input).refusals(input)})
        reasons.insert(reasons.end(), more.begin(), more.end());
    return reasons;
}

std::unique_ptr<FrameworkRules> makeRules(const PlanInput& input)
{
    assert(!needsSlices(input));
    return roomOf(input).make(input);
}

} // namespace shardwright
