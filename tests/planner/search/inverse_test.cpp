#include "planner/search/inverse.hpp"

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "planner/plan_builder.hpp"

namespace shardwright::search {

namespace {

class StillClock final : public Clock {
public:
    double floor(const PlanInput&, const Assignment&, Structures&) override { return 1; }
    double seconds(const PlanInput&, const std::vector<Part>&, Structures&, const IsWanted&) override { return 1; }
    double secondsOf(const PlanInput&, const Plan&) override { return 1; }
};

std::unique_ptr<Clock> stillClock()
{
    return std::make_unique<StillClock>();
}

Scenario scenario(double gpuBytes)
{
    Scenario scenario;
    scenario.model = readModel("llama-3.2-1b");
    scenario.cluster = readCluster("dgx-a100-80gb");
    scenario.cluster.gpusPerNode = 4;
    scenario.cluster.gpu.memory.value = gpuBytes;
    scenario.training.sequenceLength = 1024;
    return scenario;
}

/// One strategy, so that plans can be made by hand beside.
Space fullShardOnly(const Scenario& asked, Objective objective)
{
    Space space = defaultSpace(asked, objective);
    space.frameworks = {Framework::Fsdp2};
    space.sharding = {Sharding::Parameters};
    space.offload = {Offload::None};
    space.checkpointing = {Checkpointing::Full};
    space.heads = {asked.model.architecture.heads};
    return space;
}

bool planFits(const Scenario& asked)
{
    Training training = asked.training;
    training.checkpointing = Checkpointing::Full;
    const Strategy strategy{"", Fsdp2Options{}, {}};
    return buildPlan({asked.model, asked.cluster, training, strategy}, {false, true, false}).verdict == Verdict::Fits;
}

Inverse solve(const Scenario& asked, const Space& space, Objective objective)
{
    Request request;
    request.objective = objective;
    request.threads = 2;
    return solveInverse(asked, space, request, stillClock);
}

TEST(SearchInverseTest, TheLongestSequenceFitsAndTheNextDoesNot)
{
    Scenario asked = scenario(20e9);
    Space space = fullShardOnly(asked, Objective::LongestSequence);
    space.sequence = {256, 100000, 256};
    const Inverse inverse = solve(asked, space, Objective::LongestSequence);
    ASSERT_TRUE(inverse.value);
    EXPECT_FALSE(inverse.atEnd);
    asked.training.sequenceLength = *inverse.value;
    EXPECT_TRUE(planFits(asked));
    for (int further = 1; further <= 8; ++further) {
        asked.training.sequenceLength = *inverse.value + 256 * further;
        EXPECT_FALSE(planFits(asked)) << asked.training.sequenceLength;
    }
    ASSERT_FALSE(inverse.best.answers.empty());
    EXPECT_EQ(inverse.best.answers.front().candidate.training.sequenceLength, *inverse.value);
}

TEST(SearchInverseTest, TheDeepestModelFitsAndTheNextDoesNot)
{
    Scenario asked = scenario(20e9);
    const Model small = asked.model;
    const Inverse inverse = solve(asked, fullShardOnly(asked, Objective::LargestModel), Objective::LargestModel);
    ASSERT_TRUE(inverse.value);
    EXPECT_GT(*inverse.value, small.architecture.layers);
    asked.model = withBlocks(small, *inverse.value);
    EXPECT_TRUE(planFits(asked));
    asked.model = withBlocks(small, *inverse.value + 1);
    EXPECT_FALSE(planFits(asked));
}

TEST(SearchInverseTest, NoOtherDepthAndWidthThatFitsHasMoreParameters)
{
    Scenario asked = scenario(20e9);
    const Model small = asked.model;
    Space space = fullShardOnly(asked, Objective::LargestModel);
    space.layers = {1, 12, 1};
    space.heads = {32, 16, 48, 64};
    const Inverse inverse = solve(asked, space, Objective::LargestModel);
    ASSERT_TRUE(inverse.value);
    EXPECT_FALSE(inverse.atEnd);
    std::int64_t most = 0;
    for (const std::int64_t heads : space.heads)
        for (std::int64_t blocks = 1; blocks <= 12; ++blocks) {
            asked.model = withBlocks(*withHeads(small, heads), blocks);
            if (asked.model.parameters() > most && planFits(asked))
                most = asked.model.parameters();
        }
    EXPECT_EQ(inverse.scenario.model.parameters(), most);
    EXPECT_NE(inverse.scenario.model.architecture.heads, small.architecture.heads);
}

/// Under a pipeline of three stages depths between multiples of three are refused: the search must not stop there.
TEST(SearchInverseTest, DepthsThatAPipelineRefusesAreSteppedOver)
{
    Scenario asked = scenario(20e9);
    asked.training.implementation = Implementation::Megatron;
    asked.cluster.gpusPerNode = 3;
    asked.training.gradientAccumulation = 6;
    Space space = defaultSpace(asked, Objective::LargestModel, 6);
    space.tensor = {1};
    space.pipeline = {3};
    space.virtualStages = {1};
    space.checkpointing = {Checkpointing::Full};
    space.microBatch = {1};
    space.heads = {asked.model.architecture.heads};
    const Inverse inverse = solve(asked, space, Objective::LargestModel);
    ASSERT_TRUE(inverse.value);
    EXPECT_EQ(*inverse.value % 3, 0);
    EXPECT_GT(*inverse.value, 3);
    const auto fitsAt = [&](std::int64_t blocks) {
        const Model model = withBlocks(asked.model, blocks);
        const Candidates candidates(asked, space);
        Candidate candidate = candidates.start();
        for (const Sharding sharding : {Sharding::None, Sharding::Optimizer}) {
            Assignment so = inverse.best.answers.front().assignment;
            so.sharding = sharding;
            candidates.apply(so, candidate);
            const Plan plan = buildPlan({model, candidate.cluster, candidate.training, candidate.strategy},
                                        {.curve = false, .allocator = true, .suggest = false});
            if (plan.verdict == Verdict::Fits)
                return true;
        }
        return false;
    };
    EXPECT_TRUE(fitsAt(*inverse.value));
    for (int further = 1; further <= 9; ++further)
        EXPECT_FALSE(fitsAt(*inverse.value + further)) << further;
}

TEST(SearchInverseTest, TheLargestMicroBatchFitsAndTheNextDoesNot)
{
    Scenario asked = scenario(20e9);
    const Space space = fullShardOnly(asked, Objective::LargestMicroBatch);
    const Inverse inverse = solve(asked, space, Objective::LargestMicroBatch);
    ASSERT_TRUE(inverse.value);
    asked.training.microBatch = *inverse.value;
    EXPECT_TRUE(planFits(asked));
    asked.training.microBatch = *inverse.value + 1;
    EXPECT_FALSE(planFits(asked));
}

TEST(SearchInverseTest, TheEndOfTheRangeIsTold)
{
    const Scenario asked = scenario(80e9);
    Space space = fullShardOnly(asked, Objective::LongestSequence);
    space.sequence = {128, 512, 128};
    const Inverse inverse = solve(asked, space, Objective::LongestSequence);
    ASSERT_TRUE(inverse.value);
    EXPECT_EQ(*inverse.value, 512);
    EXPECT_TRUE(inverse.atEnd);
}

TEST(SearchInverseTest, NothingFitsIsAnAnswer)
{
    const Scenario asked = scenario(1e9);
    const Inverse inverse = solve(asked, fullShardOnly(asked, Objective::LongestSequence), Objective::LongestSequence);
    EXPECT_FALSE(inverse.value);
    EXPECT_TRUE(inverse.proven);
}

TEST(SearchInverseTest, BlocksAreAddedAndTakenAway)
{
    const Model model = readModel("llama-3.2-1b");
    const std::int64_t block = model.layerTypes[static_cast<std::size_t>(model.layers[1])].numel();
    for (const std::int64_t blocks : {1, 15, 16, 17, 40}) {
        const Model changed = withBlocks(model, blocks);
        EXPECT_EQ(changed.parameters(), model.parameters() + (blocks - 16) * block);
        EXPECT_EQ(changed.layers.size(), model.layers.size() + static_cast<std::size_t>(blocks) - 16);
        EXPECT_EQ(changed.layers.front(), model.layers.front());
        EXPECT_EQ(changed.layers.back(), model.layers.back());
    }
    const Model mixed = readModel("deepseek-v2-lite"); // its first block is dense, the others are mixtures
    EXPECT_EQ(withBlocks(mixed, mixed.architecture.layers).parameters(), mixed.parameters());
    EXPECT_EQ(withBlocks(mixed, 28).layersOfType(mixed.layers[1]), 1);
}

} // namespace

} // namespace shardwright::search
