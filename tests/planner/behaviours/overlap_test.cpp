// What runs beside what: prefetch, rate limiter, overlap_comm, and what resharding costs.

#include <gtest/gtest.h>

#include "tests/planner/behaviours/behaviour_support.hpp"

namespace shardwright::behaviours {
namespace {

using S = ShardingStrategy;

/// Of 7B on 8 A100. The claim is 20 to 25 percent; here the gain is that part of a backward's all-gathers which the
/// backward before it hides, and so depends on how long backward is: recomputation makes it longer.
TEST(Prefetch, GainsTheBackwardGathersThatItHidesAndNothingElse)
{
    const Question question("llama-2-7b", "dgx-a100-80gb");
    const StepTime with = question.step(Fsdp1Options{});
    const StepTime without = question.step(fsdp1([](Fsdp1Options& o) { o.backwardPrefetch = BackwardPrefetch::None; }));
    EXPECT_GT(without.seconds / with.seconds, 1.10);
    EXPECT_LT(without.seconds / with.seconds, 1.25);
    EXPECT_NEAR(without.breakdown.compute, with.breakdown.compute, 1e-9);
    EXPECT_NEAR(without.breakdown.optimizer, with.breakdown.optimizer, 1e-9);
    // The cause: what is exposed without was hidden with it. All communication is the same.
    const double gained = without.seconds - with.seconds;
    const double exposedMore = without.breakdown.exposedCommunication - with.breakdown.exposedCommunication;
    const double hiddenMore = with.hiddenCommunicationSeconds - without.hiddenCommunicationSeconds;
    EXPECT_GT(exposedMore, 0.8 * gained);
    EXPECT_NEAR(exposedMore, hiddenMore, 0.02 * exposedMore);
}

/// Where layers compute longer than their gathers take, there is less to gain: prefetch hides at most one gather a
/// layer, a fixed time, in a step that grows with the tokens.
TEST(Prefetch, GainsLessTheLongerTheSequences)
{
    Question question("llama-2-7b", "dgx-a100-80gb");
    const auto gain = [&](std::int64_t tokens) {
        question.training.sequenceLength = tokens;
        return question.seconds(fsdp1([](Fsdp1Options& o) { o.backwardPrefetch = BackwardPrefetch::None; })) /
               question.seconds(Fsdp1Options{});
    };
    const double at1024 = gain(1024);
    const double at2048 = gain(2048);
    const double at4096 = gain(4096);
    EXPECT_GT(at1024, at2048);
    EXPECT_GT(at2048, at4096);
    EXPECT_GT(at4096, 1.01);
}

/// BACKWARD_PRE issues the next gather before the reduce-scatter, POST after the gradients: with one communicator the
/// gather then stands behind the reduce-scatter of the unit before.
TEST(Prefetch, EarlierIsNeverSlower)
{
    for (const char* cluster : {"dgx-a100-80gb", "8xl40s-pcie"}) {
        const Question question("llama-2-7b", cluster);
        const auto seconds = [&](BackwardPrefetch prefetch) {
            return question.seconds(fsdp1([&](Fsdp1Options& o) { o.backwardPrefetch = prefetch; }));
        };
        EXPECT_LE(seconds(BackwardPrefetch::Pre), seconds(BackwardPrefetch::Post) * 1.001) << cluster;
        EXPECT_LT(seconds(BackwardPrefetch::Post), seconds(BackwardPrefetch::None)) << cluster;
    }
}

/// The rate limiter makes the host wait, not the GPU: memory falls, the step stays. (PyTorch's own claim of it.)
TEST(RateLimiter, SavesMemoryAndCostsNoTime)
{
    const Question question("llama-2-7b", "dgx-a100-80gb");
    const Plan limited = question.plan(Fsdp1Options{});
    const Plan unlimited = question.plan(fsdp1([](Fsdp1Options& o) { o.limitAllGathers = false; }));
    EXPECT_LT(limited.gpu.peakReserved.asDouble(), 0.6 * unlimited.gpu.peakReserved.asDouble());
    EXPECT_NEAR(limited.step->seconds, unlimited.step->seconds, 0.01 * unlimited.step->seconds);
}

TEST(ShardGradOp, IsLargerThanFullShardAndNoSlower)
{
    for (const char* cluster : {"dgx-a100-80gb", "8xl40s-pcie"}) {
        const Question question("llama-2-7b", cluster);
        const Plan full = question.plan(fsdp1(S::FullShard));
        const Plan gradients = question.plan(fsdp1(S::ShardGradOp));
        // Parameters of all blocks stay gathered between forward and backward, in the compute dtype.
        EXPECT_GT(gradients.gpu.peakAllocated.asDouble(), full.gpu.peakAllocated.asDouble() + 1.5 * 6.4e9) << cluster;
        EXPECT_LE(gradients.step->seconds, full.step->seconds * 1.001) << cluster;
    }
}

/// It is faster by the backward's all-gathers that nothing hides: none over NVLink, nearly all of them over PCIe.
TEST(ShardGradOp, IsFasterByTheExposedBackwardGathers)
{
    const auto gain = [](const char* cluster) {
        const Question question("llama-2-7b", cluster);
        const StepTime full = question.step(fsdp1(S::FullShard));
        const StepTime gradients = question.step(fsdp1(S::ShardGradOp));
        const double exposed = full.breakdown.exposedCommunication - gradients.breakdown.exposedCommunication;
        EXPECT_NEAR(full.seconds - gradients.seconds, exposed, 0.02 * full.seconds) << cluster;
        return full.seconds / gradients.seconds;
    };
    EXPECT_LT(gain("dgx-a100-80gb"), 1.02);
    EXPECT_GT(gain("8xl40s-pcie"), 1.2);
}

/// Without overlap_comm DeepSpeed fetches and reduces in the default stream: compute waits for every reduction.
TEST(OverlapComm, HidesReductionsOfZero3BehindBackward)
{
    const Question question("llama-2-7b", "dgx-a100-80gb");
    const StepTime with = question.step(zero(3));
    const StepTime without = question.step(zero(3, [](DeepSpeedOptions& o) { o.overlapComm = false; }));
    EXPECT_GT(without.seconds, 1.08 * with.seconds);
    EXPECT_GT(without.breakdown.exposedCommunication, 5 * with.breakdown.exposedCommunication);
    EXPECT_LT(without.hiddenCommunicationSeconds, with.hiddenCommunicationSeconds);
    EXPECT_NEAR(without.breakdown.compute, with.breakdown.compute, 1e-9);
}

/// Below stage 3 it is off by default: every reduction is exposed, nothing is hidden.
TEST(OverlapComm, IsOffBelowStage3)
{
    const Question question("llama-2-7b", "dgx-a100-80gb");
    const StepTime off = question.step(zero(2));
    const StepTime on = question.step(zero(2, [](DeepSpeedOptions& o) { o.overlapComm = true; }));
    EXPECT_LT(off.hiddenCommunicationSeconds, 0.01 * off.seconds);
    EXPECT_GT(on.hiddenCommunicationSeconds, 0.05 * on.seconds);
    EXPECT_LT(on.seconds, 0.95 * off.seconds);
    // The all-gather of updated parameters after the step stays exposed either way.
    EXPECT_GT(on.breakdown.exposedCommunication, 0.04);
}

/// no_sync accumulates without reducing: fewer reductions a step, whole gradients kept.
TEST(NoSync, TradesMemoryForReductions)
{
    Question question("llama-2-7b", "8xl40s-pcie");
    question.training.gradientAccumulation = 4;
    const auto plan = [&](bool noSync) { return question.plan(fsdp1([&](Fsdp1Options& o) { o.noSync = noSync; })); };
    const Plan accumulating = plan(true);
    const Plan reducing = plan(false);
    EXPECT_LT(accumulating.traffic.psi, reducing.traffic.psi);
    EXPECT_LT(accumulating.step->seconds, reducing.step->seconds);
    EXPECT_GT(accumulating.gpu.peakAllocated, reducing.gpu.peakAllocated);
}

} // namespace
} // namespace shardwright::behaviours
