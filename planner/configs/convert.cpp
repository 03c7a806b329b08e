// The mapping between FSDP and DeepSpeed follows Accelerate's concept guide "FSDP vs DeepSpeed"
// (docs/source/concept_guides/fsdp_and_deepspeed.md); where the two are not equal, the report says how.

#include <fmt/format.h>

#include "core/deepspeed_options.hpp"
#include "planner/configs/configs.hpp"

namespace shardwright {

namespace {

enum class Family : std::uint8_t { Ddp, Fsdp1, Fsdp2, DeepSpeed };

Family familyOf(ConfigFormat format)
{
    switch (format) {
    case ConfigFormat::AccelerateFsdp1: return Family::Fsdp1;
    case ConfigFormat::AccelerateFsdp2: return Family::Fsdp2;
    case ConfigFormat::AccelerateDdp: return Family::Ddp;
    case ConfigFormat::DeepSpeed:
    case ConfigFormat::AccelerateDeepSpeed:
    case ConfigFormat::AccelerateDeepSpeedPlugin: return Family::DeepSpeed;
    }
    return Family::Ddp;
}

bool isAccelerate(ConfigFormat format)
{
    return format != ConfigFormat::DeepSpeed;
}

class Converter {
public:
    Converter(const ImportedConfig& source, ConfigFormat target, const std::optional<Model>& model)
        : m_source(source), m_target(target), m_run(source.run)
    {
        if (model && m_run.wrapClasses.empty())
            m_run.wrapClasses = wrapClassesOf(*model);
    }

    Conversion convert(const ExportOptions& options);

private:
    void kept(std::string setting, std::string text) { m_report.kept.push_back({std::move(setting), std::move(text)}); }
    void translated(std::string setting, std::string text)
    {
        m_report.translated.push_back({std::move(setting), std::move(text)});
    }
    void lost(std::string setting, std::string text)
    {
        m_report.noEquivalent.push_back({std::move(setting), std::move(text)});
    }

    std::int64_t perNode() const { return m_run.launch.processes / std::max<std::int64_t>(1, m_run.launch.nodes); }

    void convertTraining();
    void convertCarried();
    StrategyOptions convertOptions();
    StrategyOptions from(const DdpOptions& ddp);
    StrategyOptions from(const Fsdp1Options& fsdp);
    StrategyOptions from(const Fsdp2Options& fsdp);
    StrategyOptions from(const DeepSpeedOptions& zero);
    StrategyOptions from(const NativeOptions&) { return m_run.strategy.options; }
    StrategyOptions from(const MegatronOptions&) { return m_run.strategy.options; }

    DeepSpeedOptions zeroFrom(ShardingStrategy sharding, std::int64_t shardGroup, bool offload);
    void tellFsdpToZero(bool prefetches, bool efficientLoading);
    Fsdp1Options fsdp1FromZero(const DeepSpeedOptions& zero);
    bool offloadFromZero(const DeepSpeedOptions& zero);
    void tellZeroToFsdp(const DeepSpeedOptions& zero);
    Fsdp2Options fsdp2From(const Fsdp1Options& fsdp);
    Fsdp1Options fsdp1From(const Fsdp2Options& fsdp);
    StrategyOptions ddpFrom(bool sharded);

    const ImportedConfig& m_source;
    ConfigFormat m_target;
    RunConfig m_run;
    Conversion m_report;
};

// FSDP -> DeepSpeed

DeepSpeedOptions Converter::zeroFrom(ShardingStrategy sharding, std::int64_t shardGroup, bool offload)
{
    DeepSpeedOptions zero;
    switch (sharding) {
    case ShardingStrategy::FullShard:
        zero.stage = 3;
        translated("FULL_SHARD", "ZeRO stage 3: gathers module by module, not block by block");
        break;
    case ShardingStrategy::ShardGradOp:
        zero.stage = 2;
        translated("SHARD_GRAD_OP", "ZeRO stage 2: keeps the whole 16-bit parameters through the optimizer step and "
                                    "gathers them after it; FSDP holds only shards then");
        break;
    case ShardingStrategy::NoShard:
        zero.stage = 0;
        translated("NO_SHARD", "ZeRO stage 0");
        break;
    case ShardingStrategy::HybridShard:
        zero.stage = 3;
        zero.hpzPartitionSize = std::max<std::int64_t>(1, shardGroup > 0 ? shardGroup : perNode());
        translated("HYBRID_SHARD",
                   fmt::format("ZeRO stage 3 with zero_hpz_partition_size {}: not equal in memory. HYBRID_SHARD shards "
                               "all states over the group; hpZ shards them over all ranks and adds a second 16-bit "
                               "copy of the parameters per group",
                               zero.hpzPartitionSize));
        break;
    case ShardingStrategy::HybridShardZero2:
        zero.stage = 2;
        translated("HYBRID_SHARD_ZERO2", "ZeRO stage 2: DeepSpeed has no replicated groups at stage 2, so gradients "
                                         "and states are sharded over all ranks");
        break;
    }
    if (offload && zero.stage == 0) {
        lost("fsdp_offload_params", "ZeRO stage 0 offloads nothing");
    } else if (offload) {
        zero.offloadOptimizer = OffloadDevice::Cpu;
        if (zero.stage == 3)
            zero.offloadParam = OffloadDevice::Cpu;
        translated("fsdp_offload_params",
                   zero.stage == 3 ? "offload_optimizer and offload_param to cpu: DeepSpeed has them apart, FSDP moves "
                                     "parameters, gradients and optimizer together"
                                   : "offload_optimizer to cpu; below stage 3 the parameters stay on the GPU");
    }
    return zero;
}

void Converter::tellFsdpToZero(bool prefetches, bool efficientLoading)
{
    translated("backward prefetch", prefetches ? "stage3_prefetch_bucket_size, in elements, in both directions"
                                               : "stage3_prefetch_bucket_size 0: nothing is gathered ahead");
    translated("fsdp_cpu_ram_efficient_loading", efficientLoading
                                                     ? "zero3_init_flag true: each rank builds its partition only"
                                                     : "zero3_init_flag false");
    lost("fsdp_auto_wrap_policy", "DeepSpeed has no units: it gathers what each module needs");
    lost("limit_all_gathers", "DeepSpeed bounds gathers by stage3_max_live_parameters");
    translated("mixed_precision",
               "bf16 or fp16 of the DeepSpeed file. FSDP holds fp32 parameters and computes in 16 bit; DeepSpeed holds "
               "16-bit parameters and an fp32 master copy. Without mixed precision FSDP trains in the load dtype, "
               "DeepSpeed in fp32");
    translated("gradient clipping", "gradient_clipping of the DeepSpeed file: DeepSpeed clips, not the script");
    translated(
        "gradient accumulation",
        "gradient_accumulation_steps of the DeepSpeed file: no no_sync, gradients are reduced in every micro-step "
        "from stage 2 on");
    translated("checkpoints", "DeepSpeed writes its own: zero_to_fp32.py or the universal format read them");
}

StrategyOptions Converter::from(const Fsdp1Options& fsdp)
{
    switch (familyOf(m_target)) {
    case Family::Fsdp1: return fsdp;
    case Family::Fsdp2: return fsdp2From(fsdp);
    case Family::Ddp: return ddpFrom(fsdp.sharding != ShardingStrategy::NoShard);
    case Family::DeepSpeed: break;
    }
    DeepSpeedOptions zero = zeroFrom(fsdp.sharding, fsdp.shardGroup, fsdp.offloadParams);
    if (fsdp.backwardPrefetch == BackwardPrefetch::None)
        zero.prefetchBucketSize = 0;
    zero.zero3Init = zero.stage != 3 || fsdp.cpuRamEfficientLoading;
    if (fsdp.reduceDtype) {
        zero.communicationDtype = fsdp.reduceDtype;
        translated("reduce_dtype", "communication_data_type");
    }
    if (fsdp.forwardPrefetch)
        lost("fsdp_forward_prefetch", "DeepSpeed prefetches in both directions or in neither");
    lost("fsdp_use_orig_params", "DeepSpeed always keeps the original parameters");
    tellFsdpToZero(fsdp.backwardPrefetch != BackwardPrefetch::None, fsdp.cpuRamEfficientLoading);
    return zero;
}

StrategyOptions Converter::from(const Fsdp2Options& fsdp)
{
    switch (familyOf(m_target)) {
    case Family::Fsdp2: return fsdp;
    case Family::Fsdp1: return fsdp1From(fsdp);
    case Family::Ddp: return ddpFrom(!fsdp.noShard);
    case Family::DeepSpeed: break;
    }
    const bool hybrid = fsdp.replicate != 1;
    ShardingStrategy sharding = hybrid ? ShardingStrategy::HybridShard : ShardingStrategy::FullShard;
    if (!fsdp.reshardAfterForward)
        sharding = hybrid ? ShardingStrategy::HybridShardZero2 : ShardingStrategy::ShardGradOp;
    if (fsdp.noShard)
        sharding = ShardingStrategy::NoShard;
    const std::int64_t group = fsdp.replicate > 1 ? m_run.launch.processes / fsdp.replicate : 0;
    DeepSpeedOptions zero = zeroFrom(sharding, group, fsdp.offloadParams);
    zero.pinMemory = zero.paramPinMemory = fsdp.pinMemory;
    zero.zero3Init = zero.stage != 3 || fsdp.cpuRamEfficientLoading;
    tellFsdpToZero(true, fsdp.cpuRamEfficientLoading);
    return zero;
}

// DeepSpeed -> FSDP

bool Converter::offloadFromZero(const DeepSpeedOptions& zero)
{
    const bool optimizer = zero.offloadOptimizer != OffloadDevice::None;
    const bool param = zero.offloadParam != OffloadDevice::None;
    if (!optimizer && !param)
        return false;
    const bool nvme = zero.offloadOptimizer == OffloadDevice::Nvme || zero.offloadParam == OffloadDevice::Nvme;
    translated(
        "offload_optimizer, offload_param",
        "fsdp_offload_params true: all or nothing. Parameters, gradients and optimizer live on the host and every "
        "gather starts with a copy" +
            std::string(optimizer && param ? "" : "; DeepSpeed moved only one of them"));
    if (nvme)
        lost("nvme", "FSDP offloads to host memory only: it must hold what lay on NVMe");
    if (zero.offloadRatio < 1.0)
        lost("offload_optimizer.ratio", "FSDP steps everything on the host");
    return true;
}

void Converter::tellZeroToFsdp(const DeepSpeedOptions& zero)
{
    DeepSpeedOptions mapped = deepSpeedFileDefaults();
    mapped.stage = zero.stage;
    const Json said = deepSpeedOptionsJson(zero)["zero_optimization"];
    const Json defaults = deepSpeedOptionsJson(mapped)["zero_optimization"];
    for (const auto& item : said.items()) {
        const std::string& key = item.key();
        const bool elsewhere = key == "stage" || key.starts_with("offload_") || key.starts_with("mics_") ||
                               key == "zero_hpz_partition_size" || key == "stage3_prefetch_bucket_size" ||
                               key == "reduce_bucket_size" || key == "stage3_gather_16bit_weights_on_model_save";
        if (!elsewhere && (!defaults.contains(key) || defaults[key] != item.value()))
            lost(key, fmt::format("{}: FSDP has nothing like it", item.value().dump()));
    }
    lost("reduce_bucket_size", "FSDP reduces unit by unit: the wrap policy sets the sizes");
    if (zero.bf16MasterWeightsAndGrads || zero.bf16OptimizerStates)
        lost("bf16_master_weights_and_grads",
             "under mixed precision Accelerate trains from fp32 parameters; without it and with weights loaded in bf16 "
             "everything is bf16");
    translated("zero3_init_flag", fmt::format("fsdp_cpu_ram_efficient_loading {}", zero.zero3Init));
    translated(
        "bf16, fp16",
        "mixed_precision. DeepSpeed holds 16-bit parameters and an fp32 master copy; Accelerate upcasts trainable "
        "parameters to fp32 and casts them for each gather");
    if (m_run.training.gradientClipping)
        translated("gradient_clipping", "the script clips: max_grad_norm, or accelerator.clip_grad_norm_");
    if (m_run.training.gradientAccumulation)
        translated("gradient_accumulation_steps",
                   "the script's; Accelerate accumulates under no_sync, which keeps whole gradients on each GPU unless "
                   "sync_each_batch=True");
    translated("stage3_gather_16bit_weights_on_model_save", zero.gather16bitWeightsOnModelSave
                                                                ? "fsdp_state_dict_type FULL_STATE_DICT"
                                                                : "fsdp_state_dict_type SHARDED_STATE_DICT");
    m_run.carriedAccelerate["fsdp_config"]["fsdp_state_dict_type"] =
        zero.gather16bitWeightsOnModelSave ? "FULL_STATE_DICT" : "SHARDED_STATE_DICT";
}

Fsdp1Options Converter::fsdp1FromZero(const DeepSpeedOptions& zero)
{
    Fsdp1Options fsdp;
    fsdp.offloadParams = offloadFromZero(zero);
    fsdp.cpuRamEfficientLoading = fsdp.syncModuleStates = zero.zero3Init;
    fsdp.reduceDtype = zero.communicationDtype;
    switch (zero.stage) {
    case 0:
        fsdp.sharding = ShardingStrategy::NoShard;
        translated("stage 0", "NO_SHARD");
        return fsdp;
    case 1:
        fsdp.sharding = ShardingStrategy::ShardGradOp;
        translated("stage 1", "SHARD_GRAD_OP: the nearest there is; it shards gradients too");
        return fsdp;
    case 2:
        fsdp.sharding = ShardingStrategy::ShardGradOp;
        translated("stage 2", "SHARD_GRAD_OP: whole parameters live from forward to backward only");
        return fsdp;
    default: break;
    }
    if (zero.micsShardSize > 0) {
        fsdp.sharding = ShardingStrategy::HybridShard;
        fsdp.shardGroup = zero.micsShardSize;
        translated("mics_shard_size", "HYBRID_SHARD: states are sharded over the group in both");
    } else if (zero.hpzPartitionSize > 1) {
        fsdp.sharding = ShardingStrategy::HybridShard;
        fsdp.shardGroup = zero.hpzPartitionSize;
        translated("zero_hpz_partition_size",
                   "HYBRID_SHARD: not equal in memory. It shards states over the group only, hpZ over all ranks: each "
                   "GPU holds more");
    } else {
        translated("stage 3", "FULL_SHARD");
    }
    if (zero.prefetchBucketSize == 0)
        fsdp.backwardPrefetch = BackwardPrefetch::None;
    translated(
        "stage3_prefetch_bucket_size",
        familyOf(m_target) == Family::Fsdp1
            ? fmt::format("fsdp_backward_prefetch {}: one unit ahead, whatever its size", nameOf(fsdp.backwardPrefetch))
            : std::string("version 2 always gathers one unit ahead in backward, whatever its size"));
    return fsdp;
}

StrategyOptions Converter::from(const DeepSpeedOptions& zero)
{
    const Family family = familyOf(m_target);
    if (family == Family::DeepSpeed)
        return zero;
    if (family == Family::Ddp)
        return ddpFrom(zero.stage > 0);
    const Fsdp1Options fsdp = fsdp1FromZero(zero);
    tellZeroToFsdp(zero);
    if (family == Family::Fsdp1)
        return fsdp;
    Fsdp2Options second = fsdp2From(fsdp);
    second.pinMemory = zero.pinMemory;
    second.checkpointChildren = false;
    return second;
}

// FSDP1 <-> FSDP2

Fsdp2Options Converter::fsdp2From(const Fsdp1Options& fsdp)
{
    Fsdp2Options second;
    const bool hybrid =
        fsdp.sharding == ShardingStrategy::HybridShard || fsdp.sharding == ShardingStrategy::HybridShardZero2;
    second.reshardAfterForward =
        fsdp.sharding == ShardingStrategy::FullShard || fsdp.sharding == ShardingStrategy::HybridShard;
    second.noShard = fsdp.sharding == ShardingStrategy::NoShard;
    if (hybrid)
        second.replicate = fsdp.shardGroup > 0 ? m_run.launch.processes / fsdp.shardGroup : 0;
    second.offloadParams = fsdp.offloadParams;
    second.wrap = fsdp.wrap;
    second.minNumParams = fsdp.minNumParams;
    second.cpuRamEfficientLoading = fsdp.cpuRamEfficientLoading;
    second.paramDtype = fsdp.paramDtype;
    second.reduceDtype = fsdp.reduceDtype;
    second.noSync = fsdp.noSync;
    second.upcastTrainable = fsdp.upcastTrainable;
    second.checkpointChildren = m_run.training.checkpointing == Checkpointing::Full;
    if (familyOf(m_source.format) != Family::Fsdp1)
        return second;
    translated("fsdp_sharding_strategy",
               fmt::format("{}: fsdp_reshard_after_forward {}{}", nameOf(fsdp.sharding), second.reshardAfterForward,
                           hybrid ? " with parallelism_config for the replicas" : ""));
    if (fsdp.backwardPrefetch != BackwardPrefetch::Pre)
        lost("fsdp_backward_prefetch", "version 2 always gathers the next unit ahead in backward");
    if (fsdp.forwardPrefetch)
        lost("fsdp_forward_prefetch", "Accelerate has it for version 1 only");
    if (!fsdp.useOrigParams)
        lost("fsdp_use_orig_params", "version 2 always keeps the original parameters");
    if (second.checkpointChildren)
        translated(
            "fsdp_activation_checkpointing",
            "true: version 2 wraps the children of each block, so each block keeps one input per child, not one");
    return second;
}

Fsdp1Options Converter::fsdp1From(const Fsdp2Options& fsdp)
{
    Fsdp1Options first;
    const bool hybrid = fsdp.replicate != 1;
    first.sharding = hybrid ? ShardingStrategy::HybridShard : ShardingStrategy::FullShard;
    if (!fsdp.reshardAfterForward)
        first.sharding = hybrid ? ShardingStrategy::HybridShardZero2 : ShardingStrategy::ShardGradOp;
    if (fsdp.noShard)
        first.sharding = ShardingStrategy::NoShard;
    if (fsdp.replicate > 1)
        first.shardGroup = m_run.launch.processes / fsdp.replicate;
    first.offloadParams = fsdp.offloadParams;
    first.wrap = fsdp.wrap;
    first.minNumParams = fsdp.minNumParams;
    first.cpuRamEfficientLoading = fsdp.cpuRamEfficientLoading;
    first.paramDtype = fsdp.paramDtype;
    first.reduceDtype = fsdp.reduceDtype;
    first.noSync = fsdp.noSync;
    first.upcastTrainable = fsdp.upcastTrainable;
    translated("fsdp_reshard_after_forward", fmt::format("fsdp_sharding_strategy {}", nameOf(first.sharding)));
    translated("backward prefetch", "fsdp_backward_prefetch BACKWARD_PRE, as version 2 does by itself");
    if (fsdp.reshardGroup > 0)
        lost("reshard_after_forward", "resharding to fewer ranks: version 1 has nothing like it");
    return first;
}

// DDP

StrategyOptions Converter::ddpFrom(bool sharded)
{
    if (sharded)
        lost("sharding", "DDP shards nothing: every GPU holds all parameters, gradients and optimizer states");
    DdpOptions ddp;
    ddp.gradientAsBucketView = false;
    return ddp;
}

StrategyOptions Converter::from(const DdpOptions& ddp)
{
    const Family family = familyOf(m_target);
    if (family == Family::Ddp)
        return ddp;
    if (family == Family::DeepSpeed) {
        DeepSpeedOptions zero = deepSpeedFileDefaults();
        translated("MULTI_GPU", "ZeRO stage 0");
        return zero;
    }
    translated("MULTI_GPU", "NO_SHARD");
    Fsdp1Options fsdp;
    fsdp.sharding = ShardingStrategy::NoShard;
    if (family == Family::Fsdp1)
        return fsdp;
    Fsdp2Options second;
    second.noShard = true; // refused when written, with what to take instead
    return second;
}

// Everything else

void Converter::convertTraining()
{
    const TrainingSettings& training = m_run.training;
    if (training.mixedPrecision)
        kept("mixed precision", std::string(nameOf(*training.mixedPrecision)));
    if (training.microBatch)
        kept("micro batch", fmt::format("{} per GPU", *training.microBatch));
    if (training.gradientAccumulation)
        kept("gradient accumulation", fmt::format("{} micro-steps", *training.gradientAccumulation));
    if (training.gradientClipping)
        kept("gradient clipping", fmt::format("{}", *training.gradientClipping));
    if (training.optimizer)
        kept("optimizer", std::string(nameOf(*training.optimizer)));
    if (training.checkpointing)
        kept("activation checkpointing", std::string(nameOf(*training.checkpointing)));
    if (m_run.launch.processes > 0)
        kept("processes", fmt::format("{} on {} node(s)", m_run.launch.processes, m_run.launch.nodes));
}

void Converter::convertCarried()
{
    const bool sameFamily = familyOf(m_source.format) == familyOf(m_target);
    const auto tell = [&](const Json& carried, bool stays, const char* where) {
        for (const auto& item : carried.items()) {
            // Of an Accelerate section only what no option holds is carried: its keys tell, not its name.
            const bool section = item.key().ends_with("_config") && item.value().is_object();
            const bool named = item.key() == "optimizer" && m_run.training.optimizer; // its type is an option
            const Json settings = section ? item.value() : Json{{named ? "optimizer.params" : item.key(), nullptr}};
            for (const auto& setting : settings.items())
                stays ? kept(setting.key(), "as it was")
                      : lost(setting.key(), fmt::format("{} has no such setting", where));
        }
    };
    tell(m_run.carriedDeepSpeed, familyOf(m_target) == Family::DeepSpeed, "FSDP");
    if (!isAccelerate(m_target)) {
        tell(m_run.carriedAccelerate, false, "a DeepSpeed file");
        m_run.carriedAccelerate = Json::object();
        return;
    }
    if (!sameFamily) {
        Json& carried = m_run.carriedAccelerate;
        for (const char* section : {"fsdp_config", "deepspeed_config", "parallelism_config"})
            if (carried.contains(section)) {
                tell(carried[section], false, nameOf(m_target).data());
                carried.erase(section);
            }
    }
    tell(m_run.carriedAccelerate, true, "");
}

StrategyOptions Converter::convertOptions()
{
    const StrategyOptions source = m_run.strategy.options;
    return std::visit([this](const auto& options) { return from(options); }, source);
}

Conversion Converter::convert(const ExportOptions& options)
{
    convertTraining();
    convertCarried();
    const StrategyOptions converted = convertOptions();
    const bool saysUlysses = m_target == ConfigFormat::DeepSpeed || m_target == ConfigFormat::AccelerateDeepSpeed;
    if (const std::int64_t ranks = m_run.strategy.parallelism.context; ranks > 1 && !saysUlysses)
        lost("sequence_parallel_size", fmt::format("{}: all-to-all over heads is DeepSpeed's own", ranks));
    else if (ranks > 1)
        kept("sequence_parallel_size", std::to_string(ranks));
    m_run.strategy = {describeOptions(converted), converted, saysUlysses ? m_run.strategy.parallelism : Parallelism{}};
    if (familyOf(m_source.format) == familyOf(m_target))
        kept("strategy", m_run.strategy.name);
    else
        translated("strategy", fmt::format("{} became {}", m_source.run.strategy.name, m_run.strategy.name));
    if (familyOf(m_target) != Family::DeepSpeed)
        m_run.carriedDeepSpeed = Json::object();
    m_report.result = writeConfig(m_run, m_target, options);
    for (const ConfigNote& note : m_report.result.notes)
        if (note.kind == NoteKind::NotSayable)
            lost(note.setting, note.text);
    return std::move(m_report);
}

} // namespace

Conversion convertConfig(const ImportedConfig& config, ConfigFormat target, const std::optional<Model>& model,
                         const ExportOptions& options)
{
    return Converter(config, target, model).convert(options);
}

} // namespace shardwright
