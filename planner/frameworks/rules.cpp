#include "planner/frameworks/rules.hpp"

namespace shardwright {

namespace {

struct Room {
    std::vector<std::string> (*refusals)(const PlanInput&);
    std::unique_ptr<FrameworkRules> (*make)(const PlanInput&);
};

std::vector<std::string> notPlanned(const PlanInput&)
{
    return {"Megatron-LM's rules are not written yet"};
}

Room roomOf(const PlanInput& input)
{
    struct Visitor {
        Room operator()(const DdpOptions&) const { return {ddpRefusals, makeDdpRules}; }
        Room operator()(const Fsdp1Options&) const { return {fsdp1Refusals, makeFsdp1Rules}; }
        Room operator()(const Fsdp2Options&) const { return {fsdp2Refusals, makeFsdp2Rules}; }
        Room operator()(const DeepSpeedOptions&) const { return {deepspeedRefusals, makeDeepSpeedRules}; }
        Room operator()(const NativeOptions&) const { return {nativeRefusals, makeNativeRules}; }
        Room operator()(const MegatronOptions&) const { return {notPlanned, nullptr}; }
    };
    return std::visit(Visitor{}, input.strategy.options);
}

} // namespace

std::vector<std::string> refusals(const PlanInput& input)
{
    if (!input.strategy.parallelism.none())
        return {"tensor, pipeline, context and expert parallelism are not planned yet"};
    return roomOf(input).refusals(input);
}

std::unique_ptr<FrameworkRules> makeRules(const PlanInput& input)
{
    return roomOf(input).make(input);
}

} // namespace shardwright
