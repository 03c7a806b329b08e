// DeepSpeed's room: what it refuses, and which rules apply.

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "planner/frameworks/deepspeed/deepspeed_rules.hpp"

#include "core/deepspeed_options.hpp"
#include "planner/frameworks/optimizer_rules.hpp"

namespace shardwright {

namespace {

/// ops/adam, ops/lion, ops/adagrad: the optimizers that have a CPU version (zero_force_ds_cpu_optimizer).
bool hasCpuOptimizer(Optimizer optimizer)
{
    return optimizer == Optimizer::AdamW || optimizer == Optimizer::Adam || optimizer == Optimizer::Lion;
}

void refuseGroups(const PlanInput& input, const DeepSpeedOptions& options, std::vector<std::string>& reasons)
{
    const std::int64_t ranks = input.ranks();
    if (options.hpzPartitionSize > 1 && ranks % options.hpzPartitionSize != 0)
        reasons.push_back(
            fmt::format("zero_hpz_partition_size {} does not divide the {} ranks", options.hpzPartitionSize, ranks));
    if (options.micsShardSize > 0 && ranks % options.micsShardSize != 0)
        reasons.push_back(fmt::format("mics_shard_size {} does not divide the {} ranks", options.micsShardSize, ranks));
    // runtime/comm/coalesced_collectives.py all_to_all_quant_reduce: its second hop goes over groups across nodes
    if (options.quantizedGradients && input.cluster.nodes == 1)
        reasons.push_back(
            "zero_quantized_gradients needs more than one node: its second all-to-all goes between nodes");
}

void refusePrecision(const PlanInput& input, const DeepSpeedOptions& options, std::vector<std::string>& reasons)
{
    const DType model = deepspeedModelDtype(input.training);
    const bool offload = options.offloadOptimizer != OffloadDevice::None;
    if (options.stage == 0 && model == DType::Bf16 && options.gradAccumDtype && *options.gradAccumDtype != DType::Fp32)
        reasons.push_back("at stage 0 bf16 needs fp32 gradient accumulation (engine _do_optimizer_sanity_check)");
    if (options.bf16MasterWeightsAndGrads && !options.bf16OptimizerStates && !offload)
        reasons.push_back("bf16_master_weights_and_grads without bf16_optimizer_states needs offload_optimizer with "
                          "DeepSpeedCPUAdam");
    if (options.bf16MasterWeightsAndGrads && model != DType::Bf16)
        reasons.push_back("bf16_master_weights_and_grads needs bf16 training");
    if (isOneBit(input.training.optimizer) && model == DType::Bf16)
        reasons.push_back("1-bit optimizers compress the momentum of whole parameters; with bf16 the optimizer holds "
                          "partitions of them (BF16_Optimizer): train in fp16 or fp32");
    if (offload && !hasCpuOptimizer(input.training.optimizer))
        reasons.push_back(fmt::format("{} has no CPU version in DeepSpeed: offload_optimizer needs adam, adamw or lion",
                                      nameOf(input.training.optimizer)));
}

/// What schedules for shardrun do not say.
void refuseExecution(const PlanInput& input, const DeepSpeedOptions& options, std::vector<std::string>& reasons)
{
    const Training& training = input.training;
    const OptimizerWrapper wrapper = optimizerWrapper(training, options);
    const DeepSpeedDtypes dtypes = deepspeedDtypes(training, options);
    switch (training.optimizer) {
    case Optimizer::AdamW:
    case Optimizer::Adam:
    case Optimizer::Lion:
    case Optimizer::SgdMomentum:
    case Optimizer::Sgd:
    case Optimizer::OneBitAdam: break;
    default: reasons.push_back(fmt::format("shardrun does not step {} under DeepSpeed", nameOf(training.optimizer)));
    }
    if (wrapper == OptimizerWrapper::Fp16)
        reasons.push_back("shardrun does not train in fp16");
    if (options.micsShardSize > 0 && dtypes.wire != dtypes.accumulate)
        reasons.push_back("shardrun carries out MiCS with gradients sent as they are kept only");
    if (options.offloadOptimizer == OffloadDevice::Nvme && options.offloadRatio < 1)
        reasons.push_back("shardrun offloads part of the optimizer to host memory only: offload_optimizer.ratio 1");
    if (reducesToOwners(training, options) && input.ranks() > std::numeric_limits<std::int16_t>::max()) // Op::endPart
        reasons.push_back(fmt::format("shardrun reduces gradients to at most {} owners: "
                                      "use_multi_rank_bucket_allreduce true",
                                      std::numeric_limits<std::int16_t>::max()));
    const std::int64_t buffers = (2 + optimizerMoments(training.optimizer)) * (options.pipelineRead ? 2 : 1);
    if (options.offloadOptimizer == OffloadDevice::Nvme && options.optimizerBufferCount < buffers)
        reasons.push_back(fmt::format("shardrun needs offload_optimizer.buffer_count {} here: master weights, "
                                      "gradient and optimizer states of {}",
                                      buffers, options.pipelineRead ? "two sub-groups" : "a sub-group"));
}

} // namespace

std::vector<std::string> deepspeedRefusals(const PlanInput& input)
{
    const auto& options = std::get<DeepSpeedOptions>(input.strategy.options);
    std::vector<std::string> reasons;
    for (const SettingProblem& problem : findDeepSpeedProblems(options, input.training.optimizer))
        reasons.push_back(fmt::format("{} {}; it needs {}", problem.place, problem.what, problem.expected));
    refuseGroups(input, options, reasons);
    refusePrecision(input, options, reasons);
    if (input.training.implementation == Implementation::Shardrun)
        refuseExecution(input, options, reasons);
    if (input.model.trainableParameters() == 0)
        reasons.push_back("the model has no trainable parameters");
    return reasons;
}

std::unique_ptr<FrameworkRules> makeDeepSpeedRules(const PlanInput& input)
{
    const auto& options = std::get<DeepSpeedOptions>(input.strategy.options);
    switch (optimizerWrapper(input.training, options)) {
    case OptimizerWrapper::Plain:
    case OptimizerWrapper::Fp16: return makeUnshardedRules(input);
    case OptimizerWrapper::Bf16: return makeBf16OptimizerRules(input);
    case OptimizerWrapper::Zero12: return makeZero12Rules(input);
    case OptimizerWrapper::Zero3: break;
    }
    return makeZero3Rules(input);
}

} // namespace shardwright
