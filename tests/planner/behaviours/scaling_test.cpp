// How a job behaves as it grows: more GPUs, deeper models.

#include <cmath>

#include <gtest/gtest.h>

#include "tests/planner/behaviours/behaviour_support.hpp"

namespace shardwright::behaviours {
namespace {

/// GPT-175B on nodes of AWS with EFA, 512 sequences a step whatever the number of GPUs: what each GPU computes between
/// two gathers shrinks, and the gathers do not.
TEST(Scaling, Of175BBeyond128LosesEfficiencyAtAFixedBatch)
{
    const auto at = [](int nodes) {
        Question question("gpt-175b", "p4d-24xlarge", nodes);
        question.training.sequenceLength = 512;
        question.training.gradientAccumulation = 1;
        question.training.microBatch = 2048 / (8 * nodes);
        return question.step(Fsdp1Options{});
    };
    const StepTime at128 = at(16);
    const StepTime at256 = at(32);
    const StepTime at512 = at(64);
    EXPECT_GT(at128.tflopsPerGpu, 1.02 * at256.tflopsPerGpu);
    EXPECT_GT(at256.tflopsPerGpu, 1.1 * at512.tflopsPerGpu);
    // Yet more GPUs are still faster in all, as long as anything is hidden.
    EXPECT_LT(at256.seconds, at128.seconds);
    // The cause: communication that compute no longer covers.
    const auto exposed = [](const StepTime& step) { return step.breakdown.exposedCommunication / step.seconds; };
    EXPECT_LT(exposed(at128), exposed(at256));
    EXPECT_LT(exposed(at256), exposed(at512));
    EXPECT_GT(exposed(at512), 0.2);
}

/// At a fixed batch a GPU, FSDP holds its rate up to a thousand GPUs over InfiniBand (as FSDP, arXiv 2304.11277
/// sec. 5.4 found for 175B to 512 GPUs); ZeRO-3 at its defaults does not: it gathers tensor by tensor, and a ring's
/// latency grows with the ranks.
TEST(Scaling, Of175BAtAFixedBatchAGpuDependsOnTheSizeOfGathers)
{
    const auto rate = [](int nodes, const StrategyOptions& options) {
        return Question("gpt-175b", "dgx-a100-80gb", nodes).step(options).tflopsPerGpu;
    };
    EXPECT_NEAR(rate(128, Fsdp1Options{}), rate(16, Fsdp1Options{}), 0.02 * rate(16, Fsdp1Options{}));
    EXPECT_LT(rate(128, zero(3)), 0.9 * rate(16, zero(3)));
}

/// Shard groups stay within their nodes: what HYBRID_SHARD sends more at scale is the all-reduce of shards alone.
TEST(Scaling, OfHybridShardIsTheAllReduceAlone)
{
    Fsdp1Options hybrid;
    hybrid.sharding = ShardingStrategy::HybridShard;
    const auto communication = [&](int nodes) {
        const StepTime step = Question("llama-2-7b", "ethernet-a100-80gb", nodes).step(hybrid);
        return step.breakdown.exposedCommunication + step.hiddenCommunicationSeconds;
    };
    // A ring of n nodes sends 2 (n - 1) / n of the tensor: 1 at two, 1.875 at sixteen. Gathers do not change.
    const double grown = communication(16) / communication(2);
    EXPECT_GT(grown, 1.4);
    EXPECT_LT(grown, 1.95);
}

} // namespace
} // namespace shardwright::behaviours
