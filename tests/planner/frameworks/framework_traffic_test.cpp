// What strategies send, in units of the model (Ψ, ZeRO arXiv 1910.02054 sec. 7) and in bytes per link.

#include <gtest/gtest.h>

#include "core/model_file.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {
namespace {

/// A Llama whose tensors divide by 16: no padding. The outer layers are small against four blocks.
SmallInput evenInput(StrategyOptions options, int gpusPerNode, int nodes)
{
    SmallInput small(std::move(options), gpusPerNode, nodes);
    small.model = llamaOf({64, 4, 4, 16, 192, 32, false});
    return small;
}

std::int64_t elementsOf(const Model& model, LayerKind kind)
{
    std::int64_t total = 0;
    for (std::size_t i = 0; i < model.layers.size(); ++i)
        if (model.layer(i).kind == kind)
            total += model.layer(i).numel();
    return total;
}

TEST(Psi, IsTwoForReplication)
{
    for (const StrategyOptions& options :
         {StrategyOptions(DdpOptions{}), StrategyOptions(fsdp1(ShardingStrategy::NoShard)),
          StrategyOptions(NativeOptions{0, true, false}), StrategyOptions(NativeOptions{1, true, false})}) {
        const SmallInput small = evenInput(options, 8, 1);
        EXPECT_DOUBLE_EQ(small.traffic().psi, 2);
        EXPECT_DOUBLE_EQ(small.rules()->textbookPsi(), 2);
    }
}

// Three passes, less the second gather of what is not resharded after forward: FSDP1's root, FSDP2's final norm and
// head.
TEST(Psi, OfFullShardingIsThreeLessWhatStaysGathered)
{
    SmallInput small = evenInput(Fsdp1Options{}, 8, 1);
    const auto parameters = static_cast<double>(small.model.parameters());
    const auto blocks = static_cast<double>(elementsOf(small.model, LayerKind::Block));
    const auto embedding = static_cast<double>(elementsOf(small.model, LayerKind::Embedding));
    EXPECT_DOUBLE_EQ(small.traffic().psi, 2 + blocks / parameters);
    EXPECT_NE(small.rules()->psiDifference().find("root unit"), std::string::npos);
    small.strategy.options = Fsdp2Options{};
    EXPECT_DOUBLE_EQ(small.traffic().psi, 2 + (blocks + embedding) / parameters);
    EXPECT_NE(small.rules()->psiDifference().find("final norm and head"), std::string::npos);
    EXPECT_DOUBLE_EQ(small.rules()->textbookPsi(), 3);
}

TEST(Psi, OfShardGradOpIsTwo)
{
    SmallInput small = evenInput(fsdp1(ShardingStrategy::ShardGradOp), 8, 1);
    EXPECT_DOUBLE_EQ(small.traffic().psi, 2);
    Fsdp2Options keeps;
    keeps.reshardAfterForward = false;
    small.strategy.options = keeps;
    EXPECT_DOUBLE_EQ(small.traffic().psi, 2);
}

// Under no_sync FSDP1 keeps SHARD_GRAD_OP's parameters until the last micro-step (one gather a step), FSDP2 reshards
// after every backward (one gather a micro-step); both reduce once.
TEST(Psi, OfAccumulationFollowsWhatIsKept)
{
    SmallInput small = evenInput(fsdp1(ShardingStrategy::ShardGradOp), 8, 1);
    small.training.gradientAccumulation = 5;
    EXPECT_DOUBLE_EQ(small.traffic().psi, 2);
    EXPECT_NE(small.rules()->psiDifference().find("no_sync"), std::string::npos);
    Fsdp2Options keeps;
    keeps.reshardAfterForward = false;
    small.strategy.options = keeps;
    EXPECT_DOUBLE_EQ(small.traffic().psi, 5 + 1);
    keeps.noSync = false;
    small.strategy.options = keeps;
    EXPECT_DOUBLE_EQ(small.traffic().psi, 5 + 5);
}

// HYBRID_SHARD over 2 nodes of 8: gathers and scatters stay within a node; between nodes goes the all-reduce of the
// gradient shards alone. Each of the 8 shard positions all-reduces P/8 elements of 2 bytes between two nodes: a node
// must send 2 x (1/2) x 2 P/8 for each, 2 P in all.
TEST(InterNode, HybridShardingSendsGradientShardsOnly)
{
    SmallInput small = evenInput(fsdp1(ShardingStrategy::HybridShard), 8, 2);
    for (int round = 0; round < 2; ++round) {
        const Traffic traffic = small.traffic();
        EXPECT_EQ(traffic.interNodeBytesPerNode, Bytes(2 * small.model.parameters()));
        for (const CollectiveTraffic& collective : traffic.collectives) {
            EXPECT_EQ(collective.nodes, collective.op == OpKind::AllReduce ? 2 : 1);
            EXPECT_EQ(collective.ranks, collective.op == OpKind::AllReduce ? 2 : 8);
        }
        Fsdp2Options replicas;
        replicas.replicate = 0; // one a node
        small.strategy.options = replicas;
    }
}

// Three passes over M parameters of 2 bytes between k nodes: of every gathered tensor a node already holds 1/k, so
// (k-1)/k must come in, and what a scatter sends out likewise. 40e9 parameters on 2 nodes: 3 x 2 x 40e9 / 2 = 120 GB a
// node and step; between N nodes with GPUs enough, 48 M/N per GPU is this figure for 16 GPUs a node pair.
TEST(InterNode, FortyBillionOnTwoNodesSend120GigabytesANode)
{
    SmallInput small(Fsdp2Options{}, 8, 2);
    small.model = readModel("zero-40b");
    const Traffic traffic = small.traffic();
    const auto expected = 3.0 * 2 * static_cast<double>(small.model.parameters()) / 2;
    // Less the second gather of final norm and head, which GPT-2 ties to the embedding; plus padding to 16 ranks.
    ASSERT_TRUE(small.model.architecture.tiedEmbedding);
    const auto skipped = 2.0 / 2 * static_cast<double>(elementsOf(small.model, LayerKind::Embedding));
    EXPECT_NEAR(traffic.interNodeBytesPerNode.asDouble(), expected - skipped, 1e-3 * expected);
    EXPECT_NEAR(expected, 120e9, 0.05 * 120e9);
}

// Frozen weights are gathered as ever but have no gradients: of the scatters only the adapters' remain.
TEST(Adapters, ReduceOnlyWhatTrainsUnderFsdp2)
{
    SmallInput small = evenInput(Fsdp2Options{}, 4, 1);
    small.training.lora.emplace();
    small.training.lora->rank = 4;
    small.model = applyLora(small.model, *small.training.lora, "test", "");
    Bytes scattered;
    for (const CollectiveTraffic& collective : small.traffic().collectives)
        if (collective.op == OpKind::ReduceScatter)
            scattered += collective.payloadBytes;
    EXPECT_EQ(scattered, Bytes(2 * small.model.trainableParameters()));
}

} // namespace
} // namespace shardwright
