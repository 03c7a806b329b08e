#include "planner/frameworks/rules.hpp"

#include <cassert>

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

} // namespace

std::vector<std::string> refusals(const PlanInput& input)
{
    std::vector<std::string> reasons = combinationRefusals(input);
    for (const auto& more : {sliceRefusals(input), roomOf(input).refusals(input)})
        reasons.insert(reasons.end(), more.begin(), more.end());
    return reasons;
}

std::unique_ptr<FrameworkRules> makeRules(const PlanInput& input)
{
    assert(!needsSlices(input));
    return roomOf(input).make(input);
}

} // namespace shardwright
