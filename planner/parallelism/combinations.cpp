#include "planner/parallelism/combinations.hpp"

namespace shardwright {

namespace {

struct Reasons {
    const PlanInput& input;

    std::vector<std::string> operator()(const DdpOptions&) const
    {
        return {"DistributedDataParallel is not combined with tensor, pipeline, context or expert parallelism: "
                "torchtitan refuses it (\"DDP has not supported > 1D parallelism\"); fsdp2 and megatron are"};
    }
    std::vector<std::string> operator()(const Fsdp1Options&) const
    {
        return {"FullyShardedDataParallel is not combined with model parallelism: PyTorch composes it with fully_shard "
                "(fsdp2)"};
    }
    /// A block's experts as a unit of their own, over the ranks that hold the same ones.
    void refuseExperts(const Fsdp2Options& options, std::vector<std::string>& reasons) const
    {
        const auto refuse = [&](std::string reason) { reasons.push_back(std::move(reason)); };
        if (input.training.implementation != Implementation::Torchtitan)
            refuse("expert parallelism under fsdp2 is torchtitan's: set implementation torchtitan");
        if (input.strategy.parallelism.tensor > 1)
            refuse("expert beside tensor parallelism is not planned under fsdp2");
        if (options.wrap != WrapPolicy::Transformer)
            refuse("expert parallelism under fsdp2 wraps blocks and their experts: TRANSFORMER_BASED_WRAP");
        if (options.noShard)
            refuse("expert parallelism takes its ranks out of the shard group: no_shard leaves none");
        if (options.reshardGroup > 0)
            refuse("torchtitan reshards to all ranks or not at all: reshard_after_forward takes no number of ranks "
                   "beside expert parallelism");
    }
    /// torch.distributed.pipelining around fully_shard, as torchtitan puts them together.
    void refusePipeline(const Fsdp2Options& options, std::vector<std::string>& reasons) const
    {
        const Parallelism& parallelism = input.strategy.parallelism;
        const auto refuse = [&](std::string reason) { reasons.push_back(std::move(reason)); };
        if (input.training.implementation != Implementation::Torchtitan)
            refuse(
                "a pipeline of stages under fsdp2 is torchtitan's (torch.distributed.pipelining): set implementation "
                "torchtitan");
        if (input.model.architecture.tiedEmbedding)
            refuse("torchtitan does not tie embedding and head across pipeline stages");
        if (!options.noSync)
            refuse("torch.distributed.pipelining reduces gradients once, after the last micro-batch: leave no_sync on");
        if (options.reshardGroup > 0)
            refuse("torchtitan reshards to all ranks or not at all: reshard_after_forward takes no number of ranks in "
                   "a pipeline");
        if (input.training.holdsLogits)
            refuse("torch.distributed.pipelining keeps logits until a micro-batch's backward by itself: leave "
                   "holds_logits off");
        const bool ownUnits = options.wrap == WrapPolicy::Transformer && options.separateHeadUnit;
        if (parallelism.virtualStages > 1 && !ownUnits)
            refuse("virtual_stages under fsdp2 are planned with separate_head_unit and TRANSFORMER_BASED_WRAP, as "
                   "torchtitan shards each chunk");
    }
    std::vector<std::string> operator()(const Fsdp2Options& options) const
    {
        std::vector<std::string> reasons;
        const Parallelism& parallelism = input.strategy.parallelism;
        if (parallelism.pipeline > 1)
            refusePipeline(options, reasons);
        if (parallelism.expert > 1)
            refuseExperts(options, reasons);
        if (parallelism.context > 1 && parallelism.exchange == ContextExchange::Ulysses)
            reasons.push_back("torchtitan has no Ulysses: context_exchange \"all-gather\" or \"ring\"");
        if (parallelism.expertTensorRanks() != parallelism.tensor)
            reasons.push_back("torchtitan splits every expert as its other matrices where it has no expert "
                              "parallelism, and the two are not planned together: leave expert_tensor out");
        if (parallelism.tensor > 1 && input.training.implementation == Implementation::Torchtitan &&
            !parallelism.sequenceParallel)
            reasons.push_back("torchtitan's tensor parallelism always splits the sequence between its matrices "
                              "(SequenceParallel): set sequence_parallel");
        if (parallelism.sequenceParallel && input.training.implementation == Implementation::HuggingFace)
            reasons.push_back("transformers' tensor-parallel plans do not split the sequence: leave sequence_parallel "
                              "off");
        return reasons;
    }
    std::vector<std::string> operator()(const DeepSpeedOptions& options) const
    {
        std::vector<std::string> reasons;
        const Parallelism& parallelism = input.strategy.parallelism;
        const auto refuse = [&](std::string reason) { reasons.push_back(std::move(reason)); };
        const bool ulysses = parallelism.exchange == ContextExchange::Ulysses;
        if (parallelism.context > 1 && !ulysses)
            refuse("DeepSpeed splits sequences by all-to-all over heads: set context_exchange \"ulysses\"");
        if (parallelism.context > 1 && (parallelism.tensor > 1 || parallelism.pipeline > 1))
            refuse(
                "DeepSpeed's sequence parallelism (Ulysses) is planned beside ZeRO alone, without tensor parallelism "
                "and pipeline");
        if (parallelism.expertTensorRanks() != parallelism.tensor)
            refuse("expert_tensor is Megatron-LM's (expert_tensor_parallel_size): leave it out");
        if (parallelism.expert > 1)
            refuse("DeepSpeed-MoE is not planned: expert parallelism under megatron is");
        if (parallelism.pipeline > 1) {
            if (options.stage >= 2)
                refuse("DeepSpeed's pipeline engine runs ZeRO-1 at most: ZeRO-2 and ZeRO-3 are incompatible with "
                       "pipeline parallelism (runtime/pipe/engine.py)");
            if (options.overlapComm.value_or(false))
                refuse("overlap_comm reduces gradients in backward, which DeepSpeed's pipeline engine runs itself: "
                       "leave it off (stage_1_and_2.py reduce_gradients)");
            if (parallelism.schedule != PipelineSchedule::OneForwardOneBackward)
                refuse("DeepSpeed's pipeline engine has one schedule, 1f1b (runtime/pipe/schedule.py TrainSchedule)");
            if (options.offloadParam != OffloadDevice::None || options.offloadOptimizer != OffloadDevice::None)
                refuse("offload under DeepSpeed's pipeline engine is not planned");
        }
        if (parallelism.tensor > 1 && options.stage == 3)
            refuse("DeepSpeed's tensor parallelism runs with ZeRO stages 0 to 2 (AutoTP training)");
        if (parallelism.sequenceParallel && input.training.implementation != Implementation::Megatron)
            refuse(
                "sequence_parallel under DeepSpeed needs Megatron's layers (implementation megatron): AutoTP has none");
        return reasons;
    }
    std::vector<std::string> operator()(const NativeOptions&) const { return {"shardrun is data parallel only"}; }
    std::vector<std::string> operator()(const MegatronOptions&) const { return {}; }
};

} // namespace

std::vector<std::string> combinationRefusals(const PlanInput& input)
{
    if (input.strategy.parallelism.none())
        return {};
    return std::visit(Reasons{input}, input.strategy.options);
}

} // namespace shardwright
