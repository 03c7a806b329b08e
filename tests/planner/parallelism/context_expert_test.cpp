// Context and expert parallelism: tokens and experts of a rank, and what ranks exchange.

#include <gtest/gtest.h>

#include "core/model_file.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/plan_builder.hpp"
#include "planner/readers/memory_replay.hpp"
#include "planner/readers/traffic_sum.hpp"
#include "tests/planner/frameworks/small_input.hpp"

using namespace shardwright;

namespace {

struct Job {
    Model model;
    Cluster cluster;
    Training training;
    Strategy strategy{"job", Fsdp2Options{}, {}};

    explicit Job(Model of) : model(std::move(of))
    {
        cluster.gpusPerNode = 8;
        cluster.gpu.memory.value = 1e12;
        cluster.hostMemory.value = 1e13;
        training.sequenceLength = 64;
        training.implementation = Implementation::Torchtitan;
    }
    PlanInput input() const { return {model, cluster, training, strategy}; }
    Schedule schedule() const
    {
        const std::vector<ModelSlice> slices = sliceModel(input());
        return makeRules(inputOf(input(), slices.front()))->emit();
    }
};

const CollectiveTraffic* find(const Traffic& traffic, OpKind kind, const std::string& payload)
{
    for (const CollectiveTraffic& one : traffic.collectives)
        if (one.op == kind && one.payload == payload)
            return &one;
    return nullptr;
}

Bytes activationsOf(const Job& job)
{
    return replayMemory(job.schedule(), false).gpuByCategory[static_cast<std::size_t>(Category::Activations)];
}

} // namespace

TEST(ContextParallel, ranksHoldTheirPartOfEachSequenceAndShareTheShards)
{
    Job whole(llamaOf({}));
    Job job(llamaOf({}));
    whole.strategy.parallelism.context = 1;
    job.strategy.parallelism.context = 4;
    ASSERT_TRUE(refusals(job.input()).empty());
    EXPECT_EQ(job.input().ranks(), 8);    // shards go over all of them
    EXPECT_EQ(job.input().replicas(), 2); // sequences only over these
    const PlanInput alone = whole.input();
    const Bytes all =
        replayMemory(makeRules(alone)->emit(), false).gpuByCategory[static_cast<std::size_t>(Category::Activations)];
    EXPECT_LT(activationsOf(job).count(), all.count() / 3);
}

TEST(ContextParallel, keysAndValuesTravel)
{
    // Two blocks, one key-value head of width 4 repeated over two query heads by torchtitan before attention: 2 x 8
    // elements of bf16 a token.
    Job job(llamaOf({}));
    job.strategy.parallelism.context = 4;
    job.strategy.parallelism.exchange = ContextExchange::AllGather;
    Traffic traffic = sumTraffic(job.schedule(), job.model.parameters(), 8);
    const CollectiveTraffic* gather = find(traffic, OpKind::AllGather, "keys and values");
    ASSERT_NE(gather, nullptr);
    EXPECT_EQ(gather->count, 2 * 2);                            // forward and backward
    EXPECT_EQ(gather->payloadBytes, Bytes(4 * 64 * 2 * 8 * 2)); // of whole sequences
    ASSERT_NE(find(traffic, OpKind::ReduceScatter, "gradients of keys and values"), nullptr);

    job.strategy.parallelism.exchange = ContextExchange::Ring;
    traffic = sumTraffic(job.schedule(), job.model.parameters(), 8);
    const CollectiveTraffic* ring = find(traffic, OpKind::Send, "keys and values");
    ASSERT_NE(ring, nullptr);
    EXPECT_EQ(ring->count, 2 * 3); // three passes on
    EXPECT_EQ(ring->payloadBytes, Bytes(2 * 3 * 16 * 2 * 8 * 2));
    EXPECT_EQ(find(traffic, OpKind::Send, "keys, values and their gradients")->count, 2 * 4);
}

TEST(ExpertParallel, tokensGoToTheirExpertsAndBack)
{
    Job job(mixtralOf({}, 8));
    job.strategy.options = MegatronOptions{};
    job.strategy.parallelism.expert = 4;
    job.training.implementation = Implementation::Megatron;
    job.training.optimizer = Optimizer::Adam;
    ASSERT_TRUE(refusals(job.input()).empty());
    const ModelSlice slice = sliceModel(job.input()).front();
    for (const ParameterSpec& parameter : slice.model.layer(1).parameters)
        if (parameter.role == ParameterRole::Expert) {
            EXPECT_EQ(parameter.repeat, 2);
        }
    const Traffic traffic = sumTraffic(job.schedule(), slice.model.parameters(), 8);
    const CollectiveTraffic* exchange = find(traffic, OpKind::AllToAll, "tokens for experts");
    ASSERT_NE(exchange, nullptr);
    EXPECT_EQ(exchange->count, 2 * 4); // there and back, forward and backward, in both blocks
    EXPECT_EQ(exchange->payloadBytes, Bytes(2 * 4 * 2 * 64 * 8 * 2));
    EXPECT_EQ(exchange->ranks, 4);

    const Bytes even = activationsOf(job);
    job.strategy.parallelism.expertImbalance = 2;
    EXPECT_GT(activationsOf(job), even);
}

TEST(TensorParallelFsdp2, shardsGoOverTheDataParallelRanks)
{
    Job job(llamaOf({.hidden = 16, .heads = 4, .headDim = 4, .ffn = 32}));
    job.strategy.parallelism.tensor = 2;
    job.strategy.parallelism.sequenceParallel = true;
    ASSERT_TRUE(refusals(job.input()).empty());
    const Traffic traffic = sumTraffic(job.schedule(), sliceModel(job.input()).front().model.parameters(), 8);
    const CollectiveTraffic* parameters = find(traffic, OpKind::AllGather, "parameters");
    ASSERT_NE(parameters, nullptr);
    EXPECT_EQ(parameters->ranks, 4);
    // DTensor's modules keep what they have gathered: two all-gathers a block forward, two of gradients backward; one
    // of the head's input, one of the embedding's gradient.
    EXPECT_EQ(find(traffic, OpKind::AllGather, "hidden states")->count, 2 * 4 + 2);
    job.strategy.parallelism.sequenceParallel = false;
    EXPECT_EQ(refusals(job.input()).size(), 1U);
}
