// What depends on the network between nodes.

#include <gtest/gtest.h>

#include "tests/planner/behaviours/behaviour_support.hpp"

namespace shardwright::behaviours {
namespace {

using S = ShardingStrategy;

constexpr const char* kInfiniBand = "dgx-a100-80gb";    // 8 cards of 200 Gbit/s a node
constexpr const char* kEthernet = "ethernet-a100-80gb"; // one card of 100 Gbit/s a node

DeepSpeedOptions hpz()
{
    return zero(3, [](DeepSpeedOptions& o) { o.hpzPartitionSize = 8; });
}

/// Gathers inside the node instead of across: they win where the network is slow.
TEST(HybridSharding, WinsOnASlowNetwork)
{
    const Question question("llama-2-13b", kEthernet, 4);
    const Plan full = question.plan(fsdp1(S::FullShard));
    const Plan hybrid = question.plan(fsdp1(S::HybridShard));
    EXPECT_LT(hybrid.step->seconds, 0.7 * full.step->seconds);
    // Three passes of the model between nodes (two gathers, one reduction) become an all-reduce, which counts two.
    EXPECT_NEAR(hybrid.traffic.interNodeBytesPerNode.asDouble(), full.traffic.interNodeBytesPerNode.asDouble() * 2 / 3,
                0.02 * full.traffic.interNodeBytesPerNode.asDouble());
    // The whole difference is communication that is exposed no more; it is paid for in memory.
    const double exposed = full.step->breakdown.exposedCommunication - hybrid.step->breakdown.exposedCommunication;
    EXPECT_NEAR(full.step->seconds - hybrid.step->seconds, exposed, 0.05 * full.step->seconds);
    EXPECT_GT(hybrid.gpu.modelStates, full.gpu.modelStates);

    EXPECT_LT(question.seconds(hpz()), 0.8 * question.seconds(zero(3)));
    EXPECT_LT(question.exposed(hpz()), question.exposed(zero(3)));
}

/// Over InfiniBand two nodes hide all gathers behind compute either way.
TEST(HybridSharding, DoesNotMatterOnInfiniBandAtSmallScale)
{
    const Question question("llama-2-7b", kInfiniBand, 2);
    const double full = question.seconds(fsdp1(S::FullShard));
    EXPECT_NEAR(question.seconds(fsdp1(S::HybridShard)), full, 0.03 * full);
    const double zero3 = question.seconds(zero(3));
    EXPECT_NEAR(question.seconds(hpz()), zero3, 0.02 * zero3);
    EXPECT_LT(question.exposed(fsdp1(S::FullShard)), 0.03 * full);
}

/// ZeRO++ (arXiv 2306.10209): 3M of 16-bit model between nodes become 0.75M: 0.5M for the one gather of int8 weights,
/// none in backward, 0.25M for int4 gradients.
TEST(ZeroPlusPlus, CutsTheVolumeBetweenNodesFourTimesAndTheTimeWithIt)
{
    const Question question("llama-2-13b", kEthernet, 4);
    const Plan plain = question.plan(zero(3));
    const Plan reduced = question.plan(zeroPlusPlus(8));
    const double volume =
        plain.traffic.interNodeBytesPerNode.asDouble() / reduced.traffic.interNodeBytesPerNode.asDouble();
    EXPECT_GT(volume, 3.5);
    EXPECT_LT(volume, 4.2);
    // Time accordingly: bound by the network, communication shrinks as the volume does, and the step by as much.
    const auto communication = [](const Plan& plan) {
        return plan.step->breakdown.exposedCommunication + plan.step->hiddenCommunicationSeconds;
    };
    const double time = communication(plain) / communication(reduced);
    EXPECT_GT(time, 3.0);
    EXPECT_LT(time, 4.5);
    EXPECT_GT(plain.step->seconds / reduced.step->seconds, 2.5);
    // Quantising costs something: more copies than without.
    EXPECT_GT(reduced.step->breakdown.other, plain.step->breakdown.other);
}

/// Where the network is fast there is little to win: traffic is hidden with it and without. What is left is that fewer
/// collectives hold fewer multiprocessors for less time.
TEST(ZeroPlusPlus, DoesNotMatterOnInfiniBandAtSmallScale)
{
    const Question question("llama-2-13b", kInfiniBand, 4);
    const StepTime plain = question.step(zero(3));
    const StepTime reduced = question.step(zeroPlusPlus(8));
    const double heldLess = plain.breakdown.other - reduced.breakdown.other;
    EXPECT_NEAR(plain.seconds - reduced.seconds, heldLess, 0.03 * plain.seconds);
}

/// Each part alone takes its own share away.
TEST(ZeroPlusPlus, EachPartHelpsAlone)
{
    const Question question("llama-2-13b", kEthernet, 4);
    const double plain = question.seconds(zero(3));
    const double all = question.seconds(zeroPlusPlus(8));
    for (const auto change : {+[](DeepSpeedOptions& o) { o.quantizedWeights = true; },
                              +[](DeepSpeedOptions& o) { o.quantizedGradients = true; },
                              +[](DeepSpeedOptions& o) { o.hpzPartitionSize = 8; }}) {
        const double alone = question.seconds(zero(3, change));
        EXPECT_LT(alone, 0.8 * plain);
        EXPECT_GT(alone, all);
    }
}

/// 65B on four nodes of eight. 1-bit Adam needs whole parameters and moments on every GPU, which do not fit; ZeRO++'s
/// int4 gradients do. Both help as long as the network is what the step waits for.
TEST(GradientCompression, HelpsOnASlowNetwork)
{
    const auto with = [](const char* cluster, Optimizer optimizer) {
        Question question("llama-65b", cluster, 4);
        question.training.optimizer = optimizer;
        question.training.precision.mixed = DType::Fp16; // 1-bit optimizers run in fp16
        return question.plan(zero(0));
    };
    const Plan adam = with(kEthernet, Optimizer::Adam);
    const Plan oneBit = with(kEthernet, Optimizer::OneBitAdam);
    EXPECT_FALSE(oneBit.fits());
    EXPECT_LT(oneBit.step->seconds, 0.75 * adam.step->seconds);
    // Communication shrinks less than the volume: an all-to-all sends every rank's own part out of the node, where a
    // ring leaves it once for all.
    EXPECT_LT(oneBit.step->breakdown.exposedCommunication, 0.3 * adam.step->breakdown.exposedCommunication);
    // A bit and a scale in place of 16: the volume falls 16 times.
    EXPECT_NEAR(adam.traffic.sentBytesPerGpu.asDouble() / oneBit.traffic.sentBytesPerGpu.asDouble(), 16, 0.5);

    const Question question("llama-65b", kEthernet, 4);
    const DeepSpeedOptions qgz = zero(3, [](DeepSpeedOptions& o) { o.quantizedGradients = true; });
    EXPECT_LT(question.seconds(qgz), 0.8 * question.seconds(zero(3)));
    EXPECT_TRUE(question.plan(qgz).fits());
}

/// Compressing costs passes over the momentum, which a fast network does not pay back.
TEST(GradientCompression, GainsLessTheFasterTheNetwork)
{
    const auto gain = [](const char* cluster) {
        Question question("llama-65b", cluster, 4);
        question.training.precision.mixed = DType::Fp16;
        question.training.optimizer = Optimizer::Adam;
        const double plain = question.seconds(zero(0));
        question.training.optimizer = Optimizer::OneBitAdam;
        return plain / question.seconds(zero(0));
    };
    EXPECT_GT(gain(kEthernet), 1.5 * gain(kInfiniBand));
}

} // namespace
} // namespace shardwright::behaviours
