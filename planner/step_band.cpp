#include "planner/step_band.hpp"

namespace shardwright {

namespace {

struct Offloads {
    bool operator()(const DdpOptions&) const { return false; }
    bool operator()(const Fsdp1Options& options) const { return options.offloadParams; }
    bool operator()(const Fsdp2Options& options) const { return options.offloadParams; }
    bool operator()(const DeepSpeedOptions& options) const
    {
        return options.offloadOptimizer != OffloadDevice::None || options.offloadParam != OffloadDevice::None;
    }
    bool operator()(const NativeOptions& options) const { return options.offloadOptimizer; }
    bool operator()(const MegatronOptions&) const { return false; }
};

StepFamily familyOf(const Strategy& strategy)
{
    if (std::holds_alternative<DeepSpeedOptions>(strategy.options))
        return StepFamily::DeepSpeed;
    if (std::holds_alternative<MegatronOptions>(strategy.options))
        return StepFamily::Megatron;
    return StepFamily::PyTorch;
}

} // namespace

StepSetting stepSettingOf(const Strategy& strategy, const Cluster& cluster)
{
    return {familyOf(strategy), cluster.nodes > 1, std::visit(Offloads{}, strategy.options),
            !strategy.parallelism.none()};
}

std::size_t indexOf(const StepSetting& setting)
{
    return static_cast<std::size_t>(setting.family) * 8 + (setting.manyNodes ? 4U : 0U) + (setting.offload ? 2U : 0U) +
           (setting.modelParallel ? 1U : 0U);
}

StepSetting stepSettingAt(std::size_t index)
{
    return {static_cast<StepFamily>(index / 8), (index & 4U) != 0, (index & 2U) != 0, (index & 1U) != 0};
}

std::string nameOf(const StepSetting& setting)
{
    std::string name(nameOf(setting.family));
    name += setting.manyNodes ? ", many nodes" : ", one node";
    if (setting.offload)
        name += ", offload";
    if (setting.modelParallel)
        name += ", model parallel";
    return name;
}

const StepBand& stepBand(const StepSetting& setting)
{
    return kStepBandTable[indexOf(setting)];
}

} // namespace shardwright
