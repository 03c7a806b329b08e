// The mapping between FSDP and DeepSpeed follows Accelerate's concept guide "FSDP vs DeepSpeed"
// (docs/source/concept_guides/fsdp_and_deepspeed.md); where the two are not equal, the report says how.

#include "planner/configs/convert_strategy.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "core/deepspeed_options.hpp"
#include "core/json_cursor.hpp"

namespace shardwright {

namespace {

class StrategyConverter {
public:
    StrategyConverter(RunConfig& run, ConfigFormat source, ConfigFormat target, ConversionReport& report)
        : m_run(run), m_source(source), m_target(target), m_report(report)
    {
    }

    StrategyOptions from(const DdpOptions& ddp);
    StrategyOptions from(const Fsdp1Options& fsdp);
    StrategyOptions from(const Fsdp2Options& fsdp);
    StrategyOptions from(const DeepSpeedOptions& zero);
    StrategyOptions from(const NativeOptions& native) { return native; }
    StrategyOptions from(const MegatronOptions& megatron) { return megatron; }

private:
    std::int64_t perNode() const { return m_run.launch.processes / std::max<std::int64_t>(1, m_run.launch.nodes); }

    DeepSpeedOptions zeroFrom(ShardingStrategy sharding, std::int64_t shardGroup, bool offload);
    void tellFsdpToZero(bool prefetches, bool efficientLoading);
    Fsdp1Options fsdp1FromZero(const DeepSpeedOptions& zero);
    bool offloadFromZero(const DeepSpeedOptions& zero);
    void tellZeroToFsdp(const DeepSpeedOptions& zero);
    Fsdp2Options fsdp2From(const Fsdp1Options& fsdp);
    Fsdp1Options fsdp1From(const Fsdp2Options& fsdp);
    StrategyOptions ddpFrom(bool sharded);

    RunConfig& m_run;
    ConfigFormat m_source;
    ConfigFormat m_target;
    ConversionReport& m_report;
};

// FSDP -> DeepSpeed

DeepSpeedOptions StrategyConverter::zeroFrom(ShardingStrategy sharding, std::int64_t shardGroup, bool offload)
{
    DeepSpeedOptions zero;
    const auto become = [&](int stage, const std::string& how) {
        zero.stage = stage;
        m_report.translated(std::string(nameOf(sharding)), fmt::format("ZeRO stage {}{}", stage, how));
    };
    switch (sharding) {
    case ShardingStrategy::FullShard: become(3, ": gathers module by module, not block by block"); break;
    case ShardingStrategy::ShardGradOp:
        become(2, ": keeps the whole 16-bit parameters through the optimizer step and gathers them after it; FSDP "
                  "holds only shards then");
        break;
    case ShardingStrategy::NoShard: become(0, ""); break;
    case ShardingStrategy::HybridShard:
        zero.hpzPartitionSize = std::max<std::int64_t>(1, shardGroup > 0 ? shardGroup : perNode());
        become(3, fmt::format(" with zero_hpz_partition_size {}: not equal in memory. HYBRID_SHARD shards all states "
                              "over the group; hpZ shards them over all ranks and adds a second 16-bit copy of the "
                              "parameters per group",
                              zero.hpzPartitionSize));
        break;
    case ShardingStrategy::HybridShardZero2:
        become(2, ": DeepSpeed has no replicated groups at stage 2, so gradients and states are sharded over all "
                  "ranks");
        break;
    }
    if (offload && zero.stage == 0) {
        m_report.lost("fsdp_offload_params", "ZeRO stage 0 offloads nothing");
    } else if (offload) {
        zero.offloadOptimizer = OffloadDevice::Cpu;
        if (zero.stage == 3)
            zero.offloadParam = OffloadDevice::Cpu;
        m_report.translated("fsdp_offload_params",
                            zero.stage == 3
                                ? "offload_optimizer and offload_param to cpu: DeepSpeed has them apart, FSDP moves "
                                  "parameters, gradients and optimizer together"
                                : "offload_optimizer to cpu; below stage 3 the parameters stay on the GPU");
    }
    return zero;
}

void StrategyConverter::tellFsdpToZero(bool prefetches, bool efficientLoading)
{
    m_report.translated("backward prefetch", prefetches ? "stage3_prefetch_bucket_size, in elements, in both directions"
                                                        : "stage3_prefetch_bucket_size 0: nothing is gathered ahead");
    m_report.translated("fsdp_cpu_ram_efficient_loading",
                        efficientLoading ? "zero3_init_flag true: each rank builds its partition only"
                                         : "zero3_init_flag false");
    m_report.lost("fsdp_auto_wrap_policy", "DeepSpeed has no units: it gathers what each module needs");
    m_report.lost("limit_all_gathers", "DeepSpeed bounds gathers by stage3_max_live_parameters");
    m_report.translated(
        "mixed_precision",
        "bf16 or fp16 of the DeepSpeed file. FSDP holds fp32 parameters and computes in 16 bit; DeepSpeed holds "
        "16-bit parameters and an fp32 master copy. Without mixed precision FSDP trains in the load dtype, "
        "DeepSpeed in fp32");
    m_report.translated("gradient clipping",
                        "gradient_clipping of the DeepSpeed file: DeepSpeed clips, not the script");
    m_report.translated(
        "gradient accumulation",
        "gradient_accumulation_steps of the DeepSpeed file: no no_sync, gradients are reduced in every micro-step "
        "from stage 2 on");
    m_report.translated("checkpoints", "DeepSpeed writes its own: zero_to_fp32.py or the universal format read them");
}

StrategyOptions StrategyConverter::from(const Fsdp1Options& fsdp)
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
        m_report.translated("reduce_dtype", "communication_data_type");
    }
    if (fsdp.forwardPrefetch)
        m_report.lost("fsdp_forward_prefetch", "DeepSpeed prefetches in both directions or in neither");
    m_report.lost("fsdp_use_orig_params", "DeepSpeed always keeps the original parameters");
    tellFsdpToZero(fsdp.backwardPrefetch != BackwardPrefetch::None, fsdp.cpuRamEfficientLoading);
    return zero;
}

StrategyOptions StrategyConverter::from(const Fsdp2Options& fsdp)
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

bool StrategyConverter::offloadFromZero(const DeepSpeedOptions& zero)
{
    const bool optimizer = zero.offloadOptimizer != OffloadDevice::None;
    const bool param = zero.offloadParam != OffloadDevice::None;
    if (!optimizer && !param)
        return false;
    const bool nvme = zero.offloadOptimizer == OffloadDevice::Nvme || zero.offloadParam == OffloadDevice::Nvme;
    m_report.translated(
        "offload_optimizer, offload_param",
        "fsdp_offload_params true: all or nothing. Parameters, gradients and optimizer live on the host and every "
        "gather starts with a copy" +
            std::string(optimizer && param ? "" : "; DeepSpeed moved only one of them"));
    if (nvme)
        m_report.lost("nvme", "FSDP offloads to host memory only: it must hold what lay on NVMe");
    if (zero.offloadRatio < 1.0)
        m_report.lost("offload_optimizer.ratio", "FSDP steps everything on the host");
    return true;
}

void StrategyConverter::tellZeroToFsdp(const DeepSpeedOptions& zero)
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
            m_report.lost(key, fmt::format("{}: FSDP has nothing like it", item.value().dump()));
    }
    m_report.lost("reduce_bucket_size", "FSDP reduces unit by unit: the wrap policy sets the sizes");
    if (zero.bf16MasterWeightsAndGrads || zero.bf16OptimizerStates)
        m_report.lost(
            "bf16_master_weights_and_grads",
            "under mixed precision Accelerate trains from fp32 parameters; without it and with weights loaded in bf16 "
            "everything is bf16");
    m_report.translated("zero3_init_flag", fmt::format("fsdp_cpu_ram_efficient_loading {}", zero.zero3Init));
    m_report.translated(
        "bf16, fp16",
        "mixed_precision. DeepSpeed holds 16-bit parameters and an fp32 master copy; Accelerate upcasts trainable "
        "parameters to fp32 and casts them for each gather");
    if (m_run.training.gradientClipping)
        m_report.translated("gradient_clipping", "the script clips: max_grad_norm, or accelerator.clip_grad_norm_");
    if (m_run.training.gradientAccumulation)
        m_report.translated(
            "gradient_accumulation_steps",
            "the script's; Accelerate accumulates under no_sync, which keeps whole gradients on each GPU unless "
            "sync_each_batch=True");
    m_report.translated("stage3_gather_16bit_weights_on_model_save", zero.gather16bitWeightsOnModelSave
                                                                         ? "fsdp_state_dict_type FULL_STATE_DICT"
                                                                         : "fsdp_state_dict_type SHARDED_STATE_DICT");
    m_run.carriedAccelerate["fsdp_config"]["fsdp_state_dict_type"] =
        zero.gather16bitWeightsOnModelSave ? "FULL_STATE_DICT" : "SHARDED_STATE_DICT";
}

Fsdp1Options StrategyConverter::fsdp1FromZero(const DeepSpeedOptions& zero)
{
    Fsdp1Options fsdp;
    fsdp.offloadParams = offloadFromZero(zero);
    fsdp.cpuRamEfficientLoading = fsdp.syncModuleStates = zero.zero3Init;
    fsdp.reduceDtype = zero.communicationDtype;
    switch (zero.stage) {
    case 0:
        fsdp.sharding = ShardingStrategy::NoShard;
        m_report.translated("stage 0", "NO_SHARD");
        return fsdp;
    case 1:
        fsdp.sharding = ShardingStrategy::ShardGradOp;
        m_report.translated("stage 1", "SHARD_GRAD_OP: the nearest there is; it shards gradients too");
        return fsdp;
    case 2:
        fsdp.sharding = ShardingStrategy::ShardGradOp;
        m_report.translated("stage 2", "SHARD_GRAD_OP: whole parameters live from forward to backward only");
        return fsdp;
    default: break;
    }
    if (zero.micsShardSize > 0) {
        fsdp.sharding = ShardingStrategy::HybridShard;
        fsdp.shardGroup = zero.micsShardSize;
        m_report.translated("mics_shard_size", "HYBRID_SHARD: states are sharded over the group in both");
    } else if (zero.hpzPartitionSize > 1) {
        fsdp.sharding = ShardingStrategy::HybridShard;
        fsdp.shardGroup = zero.hpzPartitionSize;
        m_report.translated(
            "zero_hpz_partition_size",
            "HYBRID_SHARD: not equal in memory. It shards states over the group only, hpZ over all ranks: each "
            "GPU holds more");
    } else {
        m_report.translated("stage 3", "FULL_SHARD");
    }
    if (zero.prefetchBucketSize == 0)
        fsdp.backwardPrefetch = BackwardPrefetch::None;
    m_report.translated(
        "stage3_prefetch_bucket_size",
        familyOf(m_target) == Family::Fsdp1
            ? fmt::format("fsdp_backward_prefetch {}: one unit ahead, whatever its size", nameOf(fsdp.backwardPrefetch))
            : std::string("version 2 always gathers one unit ahead in backward, whatever its size"));
    return fsdp;
}

StrategyOptions StrategyConverter::from(const DeepSpeedOptions& zero)
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

Fsdp2Options StrategyConverter::fsdp2From(const Fsdp1Options& fsdp)
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
    if (familyOf(m_source) != Family::Fsdp1)
        return second;
    m_report.translated("fsdp_sharding_strategy",
                        fmt::format("{}: fsdp_reshard_after_forward {}{}", nameOf(fsdp.sharding),
                                    second.reshardAfterForward,
                                    hybrid ? " with parallelism_config for the replicas" : ""));
    if (fsdp.backwardPrefetch != BackwardPrefetch::Pre)
        m_report.lost("fsdp_backward_prefetch", "version 2 always gathers the next unit ahead in backward");
    if (fsdp.forwardPrefetch)
        m_report.lost("fsdp_forward_prefetch", "Accelerate has it for version 1 only");
    if (!fsdp.useOrigParams)
        m_report.lost("fsdp_use_orig_params", "version 2 always keeps the original parameters");
    if (second.checkpointChildren)
        m_report.translated(
            "fsdp_activation_checkpointing",
            "true: version 2 wraps the children of each block, so each block keeps one input per child, not one");
    return second;
}

Fsdp1Options StrategyConverter::fsdp1From(const Fsdp2Options& fsdp)
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
    m_report.translated("fsdp_reshard_after_forward", fmt::format("fsdp_sharding_strategy {}", nameOf(first.sharding)));
    m_report.translated("backward prefetch", "fsdp_backward_prefetch BACKWARD_PRE, as version 2 does by itself");
    if (fsdp.reshardGroup > 0)
        m_report.lost("reshard_after_forward", "resharding to fewer ranks: version 1 has nothing like it");
    return first;
}

// DDP

StrategyOptions StrategyConverter::ddpFrom(bool sharded)
{
    if (sharded)
        m_report.lost("sharding", "DDP shards nothing: every GPU holds all parameters, gradients and optimizer states");
    DdpOptions ddp;
    ddp.gradientAsBucketView = false;
    return ddp;
}

StrategyOptions StrategyConverter::from(const DdpOptions& ddp)
{
    const Family family = familyOf(m_target);
    if (family == Family::Ddp)
        return ddp;
    if (family == Family::DeepSpeed) {
        DeepSpeedOptions zero = deepSpeedFileDefaults();
        m_report.translated("MULTI_GPU", "ZeRO stage 0");
        return zero;
    }
    m_report.translated("MULTI_GPU", "NO_SHARD");
    Fsdp1Options fsdp;
    fsdp.sharding = ShardingStrategy::NoShard;
    if (family == Family::Fsdp1)
        return fsdp;
    Fsdp2Options second;
    second.noShard = true; // refused when written, with what to take instead
    return second;
}

} // namespace

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

StrategyOptions convertStrategy(RunConfig& run, ConfigFormat source, ConfigFormat target, ConversionReport& report)
{
    StrategyConverter converter(run, source, target, report);
    return std::visit([&](const auto& options) { return converter.from(options); }, run.strategy.options);
}

} // namespace shardwright
