// Combinations of DeepSpeed options that it refuses or silently drops. Sources: DeepSpeed 0.19.6, file named at each.

#include <fmt/format.h>

#include "core/deepspeed_options.hpp"

namespace shardwright {

namespace {

class Problems {
public:
    void add(const std::string& key, std::string what, std::string expected)
    {
        m_problems.push_back({fmt::format("/{}", key), std::move(what), std::move(expected)});
    }
    std::vector<SettingProblem> take() { return std::move(m_problems); }

private:
    std::vector<SettingProblem> m_problems;
};

void checkOffload(const DeepSpeedOptions& options, Problems& problems)
{
    const std::string optimizer = "zero_optimization/offload_optimizer/";
    const std::string param = "zero_optimization/offload_param/";
    // runtime/engine.py _configure_zero_optimizer: only the stage-3 optimizer is given offload_param
    if (options.offloadParam != OffloadDevice::None && options.stage != 3)
        problems.add(param + "device", fmt::format("parameters are offloaded at stage {}", options.stage),
                     "stage 3: below it DeepSpeed does not offload parameters");
    if (options.offloadOptimizer != OffloadDevice::None && options.stage == 0)
        problems.add(optimizer + "device", "the optimizer is offloaded at stage 0",
                     "stage 1, 2 or 3: at stage 0 DeepSpeed does not offload");
    // runtime/zero/stage_1_and_2.py knows the CPU only
    if (options.offloadOptimizer == OffloadDevice::Nvme && (options.stage == 1 || options.stage == 2))
        problems.add(optimizer + "device", fmt::format("the optimizer is offloaded to nvme at stage {}", options.stage),
                     "stage 3, or device cpu: below stage 3 DeepSpeed keeps it in host memory");
    // runtime/zero/config.py offload_ratio_check
    if (options.offloadRatio < 1.0 && options.stage != 3)
        problems.add(optimizer + "ratio", fmt::format("is {} at stage {}", options.offloadRatio, options.stage),
                     "1.0: partial offload is for stage 3 only");
}

void checkZeroPlusPlus(const DeepSpeedOptions& options, Problems& problems)
{
    const auto stage3Only = [&](bool on, const char* key) {
        if (on && options.stage != 3)
            problems.add(std::string("zero_optimization/") + key, fmt::format("is set at stage {}", options.stage),
                         "stage 3: below it DeepSpeed does not act on it");
    };
    stage3Only(options.quantizedWeights, "zero_quantized_weights");
    stage3Only(options.quantizedGradients, "zero_quantized_gradients");
    stage3Only(options.hpzPartitionSize > 1, "zero_hpz_partition_size");
    stage3Only(options.micsShardSize > 0, "mics_shard_size");
    // runtime/zero/stage3.py: all_to_all_reduce needs reduce_scatter
    if (options.quantizedGradients && !options.reduceScatter)
        problems.add("zero_optimization/reduce_scatter", "is false beside zero_quantized_gradients", "true");
    // runtime/zero/mics.py allreduce_mics_shard_grads raises "Local sharding has no support for CPU offloading"
    if (options.micsShardSize > 0 &&
        (options.offloadOptimizer != OffloadDevice::None || options.offloadParam != OffloadDevice::None))
        problems.add("zero_optimization/mics_shard_size",
                     "is set together with offload, which DeepSpeed's MiCS does not support", "MiCS without offload");
    // runtime/engine.py _return_mics_optimizer hands on no all-to-all groups: gradients would go unquantised
    if (options.micsShardSize > 0 && options.quantizedGradients)
        problems.add("zero_optimization/zero_quantized_gradients", "is set beside mics_shard_size", "one of the two");
    // runtime/zero/partition_parameters.py _partition_param_sec: torch.empty(device="nvme")
    if (options.hpzPartitionSize > 1 && options.offloadParam == OffloadDevice::Nvme)
        problems.add("zero_optimization/zero_hpz_partition_size",
                     "is set beside offload_param to nvme, where torch makes no tensors",
                     "offload_param to cpu, or zero_hpz_partition_size 1");
    if (options.micsShardSize > 0 && options.hpzPartitionSize > 1)
        problems.add("zero_optimization/zero_hpz_partition_size", "is set beside mics_shard_size", "one of the two");
}

} // namespace

std::vector<SettingProblem> findDeepSpeedProblems(const DeepSpeedOptions& options, std::optional<Optimizer> optimizer)
{
    Problems problems;
    checkOffload(options, problems);
    checkZeroPlusPlus(options, problems);
    // runtime/zero/stage_1_and_2.py: a multiple of nccl_start_alignment_factor (2)
    if ((options.stage == 1 || options.stage == 2) && options.allgatherBucketSize % 2 != 0)
        problems.add("zero_optimization/allgather_bucket_size", fmt::format("is {}", options.allgatherBucketSize),
                     "an even number");
    // runtime/config.py _do_error_check
    if (options.bf16MasterWeightsAndGrads && options.stage == 0)
        problems.add("bf16/bf16_master_weights_and_grads", "is true at stage 0", "stage 1, 2 or 3");
    if (options.bf16OptimizerStates && !options.bf16MasterWeightsAndGrads)
        problems.add("bf16/bf16_optimizer_states", "is true without bf16_master_weights_and_grads",
                     "both or only the latter");
    // runtime/engine.py _configure_basic_optimizer
    const bool compressed =
        optimizer == Optimizer::OneBitAdam || optimizer == Optimizer::ZeroOneAdam || optimizer == Optimizer::OneBitLamb;
    if (compressed && options.stage > 0)
        problems.add("optimizer/type",
                     fmt::format("{} is refused with ZeRO (stage {})", nameOf(*optimizer), options.stage),
                     "stage 0, or another optimizer");
    return problems.take();
}

} // namespace shardwright
