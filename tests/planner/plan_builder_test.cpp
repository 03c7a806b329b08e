#include <gtest/gtest.h>

#include <numeric>

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "planner/plan_builder.hpp"
#include "planner/suggestions.hpp"

namespace shardwright {
namespace {

struct Question {
    Model model = readModel("llama-2-7b");
    Cluster cluster = readCluster("dgx-a100-80gb");
    Training training;
    Strategy strategy = *strategyByName("fsdp2-full-shard", 8);

    PlanInput input() const { return {model, cluster, training, strategy}; }
    Plan plan() const { return buildPlan(input()); }
};

bool anyContains(const std::vector<std::string>& texts, const std::string& part)
{
    return std::any_of(texts.begin(), texts.end(),
                       [&](const std::string& text) { return text.find(part) != std::string::npos; });
}

TEST(BuildPlan, CategoriesAddUpToThePeakAndReservedToUsed)
{
    for (const std::string& name : strategyNames()) {
        Question question;
        question.strategy = *strategyByName(name, 8);
        const Plan plan = question.plan();
        if (plan.verdict == Verdict::NotPossible)
            continue;
        const Bytes sum = std::accumulate(plan.gpu.byCategory.begin(), plan.gpu.byCategory.end(), Bytes(0));
        EXPECT_EQ(sum, plan.gpu.peakAllocated) << name;
        Bytes items;
        for (const LiveItem& item : plan.gpu.peakItems)
            items += item.bytes();
        EXPECT_EQ(items, plan.gpu.peakAllocated) << name;
        Bytes overheads;
        for (const Overhead& overhead : plan.gpu.overheads)
            overheads += overhead.bytes;
        EXPECT_EQ(plan.gpu.peakReserved + overheads, plan.gpu.peakUsed) << name;
        EXPECT_GE(plan.gpu.peakReserved, plan.gpu.peakAllocated) << name;
        EXPECT_GE(plan.gpu.peakAllocated, plan.gpu.held) << name;
        EXPECT_EQ(plan.fits(), plan.gpu.peakUsed <= plan.gpu.capacity) << name;
        const auto highest =
            std::max_element(plan.gpu.curve.begin(), plan.gpu.curve.end(),
                             [](const CurvePoint& a, const CurvePoint& b) { return a.total < b.total; });
        ASSERT_NE(highest, plan.gpu.curve.end()) << name;
        EXPECT_EQ(highest->total, plan.gpu.peakAllocated) << name;
    }
}

// ZeRO (arXiv 1910.02054) sec. 3.1: 16 bytes a parameter, so 6.74e9 parameters need 107.8 GB.
TEST(BuildPlan, DdpOf7BDoesNotFit80GBAndSaysWhy)
{
    Question question;
    question.strategy = *strategyByName("ddp", 8);
    const Plan plan = question.plan();
    EXPECT_EQ(plan.verdict, Verdict::DoesNotFit);
    EXPECT_TRUE(anyContains(plan.reasons, "model states alone"));
    EXPECT_EQ(plan.gpu.modelStates, Bytes(16 * 6738415616));
    EXPECT_LT(plan.headroom, 0);
}

TEST(BuildPlan, TheSmallestChangeReallyFits)
{
    for (const char* name : {"ddp", "fsdp2-no-shard", "deepspeed-zero1"}) {
        Question question;
        question.training.sequenceLength = 8192;
        question.training.microBatch = 4;
        question.strategy = *strategyByName(name, 8);
        const Plan plan = question.plan();
        ASSERT_EQ(plan.verdict, Verdict::DoesNotFit) << name;
        ASSERT_TRUE(plan.smallestChange) << name;
        Question changed = question;
        for (const std::string& step : plan.smallestChange->steps) {
            const auto changes = possibleChanges(changed.input());
            const auto change =
                std::find_if(changes.begin(), changes.end(), [&](const Change& c) { return c.text == step; });
            ASSERT_NE(change, changes.end()) << name << ": " << step;
            const Training training = change->training;
            const Strategy strategy = change->strategy;
            changed.training = training;
            changed.strategy = strategy;
        }
        const Plan after = changed.plan();
        EXPECT_TRUE(after.fits()) << name;
        EXPECT_EQ(after.gpu.peakUsed, plan.smallestChange->peakUsed) << name;
    }
}

TEST(BuildPlan, ARefusedCombinationIsAPlanWithReasons)
{
    Question question;
    Fsdp1Options options;
    options.sharding = ShardingStrategy::HybridShard;
    options.shardGroup = 3;
    question.strategy = {"mine", options};
    const Plan plan = question.plan();
    EXPECT_EQ(plan.verdict, Verdict::NotPossible);
    EXPECT_TRUE(anyContains(plan.reasons, "8 ranks cannot be divided into shard groups of 3"));
}

TEST(BuildPlan, SequencesPastLearnedPositionsAreRefused)
{
    Question question;
    question.model = readModel("gpt2"); // n_positions 1024
    question.training.sequenceLength = 1024;
    EXPECT_TRUE(question.plan().fits());
    question.training.sequenceLength = 1025;
    const Plan plan = question.plan();
    EXPECT_EQ(plan.verdict, Verdict::NotPossible);
    EXPECT_TRUE(anyContains(plan.reasons, "1024 learned positions"));
}

// DeepSpeed issue 1302: a bucket that only the higher stage has, on top of the activations.
TEST(BuildPlans, AHigherStageThatUsesMoreSaysWhy)
{
    Scenario scenario;
    scenario.model = readModel("gpt2-medium");
    scenario.cluster = readCluster("dgx-a100-80gb");
    scenario.training.sequenceLength = 1024;
    scenario.training.microBatch = 8;
    scenario.training.precision.mixed = DType::Fp16;
    scenario.training.loss = LossKind::Fused;
    DeepSpeedOptions lower;
    lower.stage = 1;
    lower.contiguousGradients = false;
    DeepSpeedOptions upper;
    upper.stage = 2;
    scenario.strategies = {{"lower", lower}, {"upper", upper}};
    const std::vector<Plan> plans = buildPlans(scenario);
    EXPECT_TRUE(plans[0].remarks.empty());
    ASSERT_EQ(plans[1].remarks.size(), 1U);
    EXPECT_NE(plans[1].remarks[0].find("more than lower although it shards more"), std::string::npos)
        << plans[1].remarks[0];
    EXPECT_NE(plans[1].remarks[0].find("communication buffers +"), std::string::npos) << plans[1].remarks[0];
}

TEST(BuildPlan, NumbersPast64BitsAreToldNotWrapped)
{
    Question question;
    question.training.attention = Attention::Eager;
    question.training.sequenceLength = 1000000000;
    question.training.microBatch = 1000;
    EXPECT_THROW(question.plan(), NumberTooLarge);
}

TEST(BuildPlan, AMillionGpusAreAnAnswer)
{
    Question question;
    question.cluster = readCluster("dgx-h100");
    question.cluster.nodes = 125000;
    question.strategy = *strategyByName("fsdp1-full-shard", 8);
    EXPECT_TRUE(question.plan().fits());
    // fully_shard pads dimension 0 of every parameter to a multiple of the ranks: a million rows where there are 4,096.
    question.strategy = *strategyByName("fsdp2-full-shard", 8);
    EXPECT_FALSE(question.plan().fits());
}

TEST(BuildPlan, TheSameInputGivesTheSamePlan)
{
    Question question;
    const Plan one = question.plan();
    const Plan two = question.plan();
    EXPECT_EQ(one.gpu.peakAllocated, two.gpu.peakAllocated);
    EXPECT_EQ(one.gpu.peakReserved, two.gpu.peakReserved);
    EXPECT_EQ(one.gpu.peakMoment, two.gpu.peakMoment);
    EXPECT_EQ(one.traffic.psi, two.traffic.psi);
}

} // namespace
} // namespace shardwright
