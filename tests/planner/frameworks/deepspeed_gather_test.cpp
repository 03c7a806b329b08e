// ZeRO-3's coordinator: what it gathers, keeps and lets go.

#include <gtest/gtest.h>

#include "planner/frameworks/deepspeed/bucket_plan.hpp"
#include "planner/frameworks/deepspeed/gather_plan.hpp"
#include "tests/planner/frameworks/deepspeed_support.hpp"

namespace shardwright::deepspeed_test {
namespace {

struct Replayed {
    GatherPlan plan;
    double gathers; // of the whole model
    double mostLive;
};

Replayed replay(const Model& model, const DeepSpeedOptions& options, Checkpointing checkpointing)
{
    Training training;
    training.checkpointing = checkpointing;
    const ActivationModel activations(model, training, DType::Bf16);
    SizeTable sizes;
    activations.defineSizes(sizes, training);
    Replayed replayed{planGathers(activations, recordVisits(activations, sizes), options), 0, 0};
    replayed.gathers =
        static_cast<double>(replayed.plan.first.gatheredElements) / static_cast<double>(model.parameters());
    replayed.mostLive = static_cast<double>(replayed.plan.first.mostLiveElements) / 1e9;
    return replayed;
}

struct Published {
    const char* model;
    double reuse;
    Checkpointing checkpointing;
    double gathers;
    double mostLive; // 1e9 elements
};

// The release rule (partitioned_param_coordinator.py __params_to_release) replayed by an independent program over
// traces of equal attention and MLP parts, without prefetch. Gathers per micro-step in units of the model.
constexpr Published kReplays[] = {
    {"llama-3-8b", 1e9, Checkpointing::None, 1.93, 0.53},  {"llama-3-8b", 1e9, Checkpointing::Full, 1.93, 0.53},
    {"llama-3-8b", 0, Checkpointing::None, 2.00, 0.53},    {"llama-3-8b", 0, Checkpointing::Full, 2.87, 0.53},
    {"llama-3-8b", 2e9, Checkpointing::None, 1.87, 1.02},  {"llama-3-8b", 2e9, Checkpointing::Full, 1.88, 0.96},
    {"llama-3-70b", 1e9, Checkpointing::None, 1.99, 1.05}, {"llama-3-70b", 1e9, Checkpointing::Full, 2.16, 1.05},
    {"llama-3-70b", 0, Checkpointing::Full, 2.97, 1.05},
};

TEST(DeepSpeedGather, ReleaseRuleAgreesWithAnIndependentReplay)
{
    for (const Published& one : kReplays) {
        DeepSpeedOptions options;
        options.maxReuseDistance = static_cast<std::int64_t>(one.reuse);
        options.prefetchBucketSize = 0;
        options.paramPersistenceThreshold = 0;
        const Replayed replayed = replay(readModel(one.model), options, one.checkpointing);
        EXPECT_NEAR(replayed.gathers, one.gathers, 0.0051) << one.model << " " << one.reuse;
        EXPECT_NEAR(replayed.mostLive, one.mostLive, 0.03) << one.model << " " << one.reuse;
    }
}

// max_live_parameters caps prefetching: it may overshoot by one parameter, and the window of reuse is not touched by
// it.
TEST(DeepSpeedGather, PrefetchStopsAtMaxLiveParameters)
{
    const Model model = readModel("llama-2-7b");
    DeepSpeedOptions options;
    options.maxReuseDistance = 0;
    for (const std::int64_t most : {300000000, 600000000, 1000000000}) {
        options.maxLiveParameters = most;
        const Replayed replayed = replay(model, options, Checkpointing::None);
        EXPECT_LE(replayed.plan.first.mostLiveElements, most + model.largestTensor());
        EXPECT_GT(replayed.plan.first.mostLiveElements, most - model.largestTensor());
    }
}

TEST(DeepSpeedGather, EveryPieceIsFreedOnce)
{
    for (const char* id : {"llama-2-7b", "mixtral-8x7b", "gpt2", "falcon-7b", "deepseek-v2-lite"})
        for (const bool init : {true, false})
            for (const Checkpointing checkpointing : {Checkpointing::None, Checkpointing::Full}) {
                DeepSpeedOptions options;
                options.zero3Init = init;
                options.hpzPartitionSize = 8;
                const Replayed replayed = replay(readModel(id), options, checkpointing);
                for (const GatherTrace* trace : {&replayed.plan.first, &replayed.plan.later}) {
                    std::vector<int> freed(trace->pieces.size(), 0);
                    for (const GatherCommand& command : trace->commands)
                        if (command.kind == GatherCommand::Kind::Free)
                            ++freed[static_cast<std::size_t>(command.index)];
                    for (const int times : freed)
                        ASSERT_EQ(times, 1) << id;
                }
            }
}

// A block of eight experts is a leaf module: fetched whole, not expert by expert.
TEST(DeepSpeedGather, ExpertsAreGatheredTogether)
{
    DeepSpeedOptions options;
    options.prefetchBucketSize = 0;
    const Model model = readModel("mixtral-8x7b");
    const Replayed replayed = replay(model, options, Checkpointing::None);
    const std::int64_t experts = 8 * 3 * std::int64_t{4096} * 14336 + 8 * 4096; // and the router
    bool found = false;
    for (const GatherUnitType& type : replayed.plan.types)
        found |= type.tracedElements == experts;
    EXPECT_TRUE(found);
    EXPECT_GE(replayed.plan.first.mostLiveElements, experts - 8 * 4096);
}

// zero.Init replaces torch's linear; without it every gathered weight outlives its release until backward.
TEST(DeepSpeedGather, ModelsBuiltOutsideZeroInitKeepTheirWeights)
{
    Question question;
    question.model = readModel("llama-2-7b");
    question.options() = DeepSpeedOptions{};
    question.training.sequenceLength = 128;
    question.options().offloadOptimizer = OffloadDevice::Cpu; // the peak is not at the step
    const Bytes with = question.memory().gpu.bytes;
    question.options().zero3Init = false;
    const double more = (question.memory().gpu.bytes - with).asDouble();
    const double blocks = 2 * 32.0 * (4 * 4096.0 * 4096 + 3 * 4096.0 * 11008); // 16-bit linear weights of the blocks
    EXPECT_LT(more, blocks);
    EXPECT_GT(more, blocks - 2 * 1.1e9); // less what was gathered anyway
    // recomputation makes and frees them block by block
    question.training.checkpointing = Checkpointing::Full;
    const Bytes without = question.memory().gpu.bytes;
    question.options().zero3Init = true;
    EXPECT_LT((without - question.memory().gpu.bytes).asDouble(), 2 * 2.1e8); // no more than a block
}

// The bucket reduces what fits; a larger tensor goes alone.
TEST(DeepSpeedGather, BucketsFillInOrderOfArrival)
{
    const Model model = tinyLlama();
    Training training;
    training.sequenceLength = 8;
    const ActivationModel activations(model, training, DType::Bf16);
    SizeTable sizes;
    activations.defineSizes(sizes, training);
    const FlatOrder order(activations);
    const BucketPlan plan = planBuckets(order, arrivalsInBackward(activations, recordVisits(activations, sizes)), 600);
    std::int64_t total = 0;
    for (const BucketFlush& flush : plan.flushes) {
        total += flush.elements;
        EXPECT_TRUE(flush.elements <= 600 || flush.endTensor - flush.firstTensor == 1);
    }
    EXPECT_EQ(total, kTinyParameters);
    EXPECT_EQ(plan.flushes.front().elements, 1024); // the head, larger than the bucket
    EXPECT_EQ(plan.flushes.back().elements, 1024);  // the embedding
    EXPECT_EQ(plan.flushes[1].elements, 16 + 512);  // final norm and down projection; the next would not fit
}

} // namespace
} // namespace shardwright::deepspeed_test
