#include "planner/parallelism/combinations.hpp"

namespace shardwright {

namespace {

struct Reasons {
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
    std::vector<std::string> operator()(const Fsdp2Options&) const
    {
        return {"tensor, pipeline, context and expert parallelism under fsdp2 are not planned"};
    }
    std::vector<std::string> operator()(const DeepSpeedOptions&) const
    {
        return {"tensor, pipeline, context and expert parallelism under DeepSpeed are not planned"};
    }
    std::vector<std::string> operator()(const NativeOptions&) const { return {"shardrun is data parallel only"}; }
    std::vector<std::string> operator()(const MegatronOptions&) const { return {}; }
};

} // namespace

std::vector<std::string> combinationRefusals(const PlanInput& input)
{
    if (input.strategy.parallelism.none())
        return {};
    return std::visit(Reasons{}, input.strategy.options);
}

} // namespace shardwright
