// What facts of a training do to the cost of single operations.

#include "planner/costs/op_costs.hpp"

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"

namespace shardwright {
namespace {

/// Seconds of the first block's forward pass, and of the host that issues it.
struct Took {
    double device = 0;
    double host = 0;
};

Took firstBlock(const Training& training, OpKind kind = OpKind::Forward)
{
    const Model model = readModel("llama-2-7b");
    const Cluster cluster = readCluster("dgx-a100-80gb");
    Strategy strategy;
    strategy.options = DdpOptions{};
    const PlanInput input{model, cluster, training, strategy};
    const ActivationModel activations(model, training, DType::Bf16);
    const SizeTable sizes;
    const OpCosts costs(input, activations, sizes);
    Op op;
    op.kind = kind;
    op.layer = 1;
    return {costs.seconds(op), costs.hostSeconds(op)};
}

TEST(OpCosts, LaunchBlockingAddsTheHostsTimeToEveryKernel)
{
    Training training;
    training.sequenceLength = 2048;
    const Took beside = firstBlock(training);
    training.launchBlocking = true;
    const Took blocking = firstBlock(training);
    EXPECT_GT(beside.host, 0);
    EXPECT_DOUBLE_EQ(blocking.host, beside.host);
    EXPECT_DOUBLE_EQ(blocking.device, beside.device + beside.host);
}

TEST(OpCosts, AMaskThatIsATensorCostsTheHiddenHalfAndTheFasterKernel)
{
    Training training;
    training.sequenceLength = 4096;
    training.attention = Attention::Sdpa;
    const Took causal = firstBlock(training);
    training.attention = Attention::MaskedSdpa;
    const Took masked = firstBlock(training);
    // 32 heads of size 128: 4 x 4096^2 x 128 x 32 FLOPs at 107 TFLOP/s and more than a quarter of that without the
    // mask's tensor: the whole square, and half of it at twice the rate.
    const double square = 4 * 4096.0 * 4096 * 128 * 32 / 107e12;
    EXPECT_GT(masked.device - causal.device, 0.6 * square);
    EXPECT_LT(masked.device - causal.device, square);
}

TEST(OpCosts, DeterministicKernelsSlowOnlyTheBackwardOfFusedAttention)
{
    Training training;
    training.sequenceLength = 8192;
    training.attention = Attention::Flash;
    const double forward = firstBlock(training).device;
    const double backward = firstBlock(training, OpKind::Backward).device;
    training.deterministic = true;
    EXPECT_DOUBLE_EQ(firstBlock(training).device, forward);
    EXPECT_GT(firstBlock(training, OpKind::Backward).device, backward);
    training.attention = Attention::Eager;
    const double eager = firstBlock(training, OpKind::Backward).device;
    training.deterministic = false;
    EXPECT_DOUBLE_EQ(firstBlock(training, OpKind::Backward).device, eager);
}

} // namespace
} // namespace shardwright
