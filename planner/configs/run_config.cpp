#include "planner/configs/run_config.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "core/json_cursor.hpp"

namespace shardwright {

namespace {

std::string shardingWord(ShardingStrategy sharding)
{
    switch (sharding) {
    case ShardingStrategy::FullShard: return "full-shard";
    case ShardingStrategy::ShardGradOp: return "shard-grad-op";
    case ShardingStrategy::NoShard: return "no-shard";
    case ShardingStrategy::HybridShard: return "hybrid-shard";
    case ShardingStrategy::HybridShardZero2: return "hybrid-shard-zero2";
    }
    return {};
}

std::string describeDeepSpeed(const DeepSpeedOptions& options)
{
    std::string name = fmt::format("deepspeed-zero{}", options.stage);
    if (options.stage == 3 && options.quantizedWeights && options.quantizedGradients && options.hpzPartitionSize > 1)
        return "deepspeed-zeropp";
    if (options.stage == 3 && options.micsShardSize > 0)
        return "deepspeed-mics";
    if (options.quantizedWeights)
        name += "-qwz";
    if (options.hpzPartitionSize > 1)
        name += "-hpz";
    if (options.quantizedGradients)
        name += "-qgz";
    const auto device = [](OffloadDevice where) { return std::string(nameOf(where)); };
    if (options.offloadOptimizer != OffloadDevice::None && options.offloadOptimizer == options.offloadParam)
        name += "-offload-" + device(options.offloadParam);
    else if (options.offloadOptimizer != OffloadDevice::None)
        name += "-offload-optimizer-" + device(options.offloadOptimizer);
    if (options.offloadParam != OffloadDevice::None && options.offloadOptimizer != options.offloadParam)
        name += "-offload-param-" + device(options.offloadParam);
    return name;
}

std::string describeFsdp2(const Fsdp2Options& options)
{
    if (options.noShard)
        return "no-shard";
    const bool hybrid = options.replicate != 1;
    std::string name = hybrid ? "hybrid-shard" : "full-shard";
    if (!options.reshardAfterForward)
        name = hybrid ? "hybrid-shard-zero2" : "shard-grad-op";
    return name + (options.offloadParams ? "-offload" : "");
}

} // namespace

MixedPrecisionMode mixedPrecisionMode(const Precision& precision)
{
    if (precision.fp8)
        return MixedPrecisionMode::Fp8;
    if (!precision.mixed || *precision.mixed == DType::Fp32)
        return MixedPrecisionMode::No;
    return *precision.mixed == DType::Fp16 ? MixedPrecisionMode::Fp16 : MixedPrecisionMode::Bf16;
}

TrainingSettings settingsOf(const Training& training)
{
    TrainingSettings settings;
    settings.microBatch = training.microBatch;
    settings.gradientAccumulation = training.gradientAccumulation;
    settings.gradientClipping = training.gradientClipping.value_or(0.0);
    settings.mixedPrecision = mixedPrecisionMode(training.precision);
    settings.checkpointing = training.checkpointing;
    settings.optimizer = training.optimizer;
    return settings;
}

Training applied(const TrainingSettings& settings, Training base)
{
    base.microBatch = settings.microBatch.value_or(base.microBatch);
    base.gradientAccumulation = settings.gradientAccumulation.value_or(base.gradientAccumulation);
    if (settings.gradientClipping)
        base.gradientClipping =
            *settings.gradientClipping > 0 ? std::optional<double>(settings.gradientClipping) : std::nullopt;
    if (settings.mixedPrecision) {
        base.precision.fp8 = *settings.mixedPrecision == MixedPrecisionMode::Fp8;
        switch (*settings.mixedPrecision) {
        case MixedPrecisionMode::No: base.precision.mixed = std::nullopt; break;
        case MixedPrecisionMode::Fp16: base.precision.mixed = DType::Fp16; break;
        case MixedPrecisionMode::Bf16:
        case MixedPrecisionMode::Fp8: base.precision.mixed = DType::Bf16; break;
        }
    }
    base.checkpointing = settings.checkpointing.value_or(base.checkpointing);
    base.optimizer = settings.optimizer.value_or(base.optimizer);
    return base;
}

void addCarried(Json& base, const Json& carried)
{
    for (const auto& item : carried.items()) {
        if (!base.contains(item.key()))
            base[item.key()] = item.value();
        else if (base[item.key()].is_object() && item.value().is_object())
            addCarried(base[item.key()], item.value());
    }
}

std::string describeOptions(const StrategyOptions& options)
{
    struct Visitor {
        std::string operator()(const DdpOptions&) const { return "ddp"; }
        std::string operator()(const Fsdp1Options& fsdp) const
        {
            return "fsdp1-" + shardingWord(fsdp.sharding) + (fsdp.offloadParams ? "-offload" : "");
        }
        std::string operator()(const Fsdp2Options& fsdp) const { return "fsdp2-" + describeFsdp2(fsdp); }
        std::string operator()(const DeepSpeedOptions& zero) const { return describeDeepSpeed(zero); }
        std::string operator()(const NativeOptions& native) const
        {
            return fmt::format("native-stage{}", native.stage);
        }
        std::string operator()(const MegatronOptions&) const { return "megatron"; }
    };
    return std::visit(Visitor{}, options);
}

std::vector<std::string> wrapClassesOf(const Model& model)
{
    std::vector<std::string> classes;
    for (const LayerType& type : model.layerTypes) {
        const bool known = std::find(classes.begin(), classes.end(), type.className) != classes.end();
        if (type.kind == LayerKind::Block && !type.className.empty() && !known)
            classes.push_back(type.className);
    }
    return classes;
}

RunConfig runConfigOf(const Scenario& scenario, const Strategy& strategy)
{
    RunConfig run;
    run.strategy = strategy;
    run.training = settingsOf(scenario.training);
    run.launch.nodes = scenario.cluster.nodes;
    run.launch.processes = scenario.cluster.gpus();
    run.wrapClasses = wrapClassesOf(scenario.model);
    const std::int64_t segment = scenario.training.checkpointSegment;
    const bool deepSpeed = std::holds_alternative<DeepSpeedOptions>(strategy.options);
    if (segment > 1 && !deepSpeed)
        run.training.checkpointing = Checkpointing::None; // the script's own: files would checkpoint each block within
    if (segment > 1 && deepSpeed)
        run.carriedDeepSpeed["activation_checkpointing"]["number_checkpoints"] =
            ceilDivide(scenario.model.architecture.layers, segment);
    return run;
}

} // namespace shardwright
