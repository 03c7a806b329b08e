#include "planner/search/candidates.hpp"

#include <map>
#include <set>

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"

namespace shardwright::search {

namespace {

Scenario scenario(int nodes)
{
    Scenario scenario;
    scenario.model = readModel("llama-3.2-1b");
    scenario.cluster = readCluster("dgx-a100-80gb");
    scenario.cluster.nodes = nodes;
    return scenario;
}

void visit(const Candidates& candidates, const Path& path, std::vector<Path>& all)
{
    if (path.size() == kAxes) {
        all.push_back(path);
        return;
    }
    for (std::size_t i = 0; i < candidates.choices(path); ++i) {
        Path child = path;
        child.push(i);
        visit(candidates, child, all);
    }
}

std::vector<Path> allPaths(const Candidates& candidates)
{
    std::vector<Path> all;
    visit(candidates, {}, all);
    return all;
}

/// Every axis with more than one value.
Space wideSpace(const Scenario& asked)
{
    Space space = defaultSpace(asked, Objective::StepTime);
    space.frameworks = {Framework::Ddp,       Framework::Fsdp1,    Framework::Fsdp2,
                        Framework::DeepSpeed, Framework::Megatron, Framework::Native};
    space.globalBatch = 64;
    space.gpus = {4, 8, 16};
    space.shardGroup = {kWholeGroup, kNodeGroup, 4};
    space.tensor = {1, 2};
    space.sequenceParallel = {false, true};
    space.pipeline = {1, 2};
    space.virtualStages = {1, 2};
    space.checkpointEvery = {1, 2};
    space.checkpointSegment = {1, 4};
    space.microBatch = {1, 2};
    return space;
}

TEST(SearchCandidatesTest, NoTwoAreTheSame)
{
    const Scenario asked = scenario(2);
    const Space space = wideSpace(asked);
    const Candidates candidates(asked, space);
    std::set<std::string> seen;
    Candidate candidate = candidates.start();
    for (const Path& path : allPaths(candidates)) {
        const Assignment so = candidates.assignment(path);
        if (candidates.accumulation(so) == 0)
            continue; // how many ranks shard is then unknown
        candidates.apply(so, candidate);
        const Json options = toJson(candidate.strategy);
        const std::string all = options.dump() + toJson(candidate.training).dump() +
                                std::to_string(candidate.cluster.gpusPerNode) + "x" +
                                std::to_string(candidate.cluster.nodes);
        EXPECT_TRUE(seen.insert(all).second) << candidates.describe(so);
    }
    EXPECT_GT(seen.size(), 1000u);
}

TEST(SearchCandidatesTest, TheGlobalBatchIsKept)
{
    const Scenario asked = scenario(2);
    const Space space = wideSpace(asked);
    const Candidates candidates(asked, space);
    Candidate candidate = candidates.start();
    for (const Path& path : allPaths(candidates)) {
        const Assignment so = candidates.assignment(path);
        if (candidates.accumulation(so) == 0)
            continue;
        candidates.apply(so, candidate);
        EXPECT_EQ(candidate.training.microBatch * candidate.training.gradientAccumulation * so.dataRanks(),
                  space.globalBatch);
        EXPECT_EQ(candidate.cluster.gpus(), so.gpus);
    }
}

TEST(SearchCandidatesTest, AccumulationComesOutEvenOrNotAtAll)
{
    const Scenario asked = scenario(1);
    Space space = defaultSpace(asked, Objective::StepTime);
    space.globalBatch = 24;
    const Candidates candidates(asked, space);
    Assignment so;
    so.gpus = 8;
    so.microBatch = 3;
    EXPECT_EQ(candidates.accumulation(so), 1);
    so.microBatch = 2;
    EXPECT_EQ(candidates.accumulation(so), 0); // 24 / 8 = 3 sequences a rank
    so.tensor = 4;
    EXPECT_EQ(candidates.accumulation(so), 6); // 24 / 2 = 12
    so.gpus = 10;
    EXPECT_EQ(candidates.accumulation(so), 0); // 4 does not divide 10
}

TEST(SearchCandidatesTest, AValueThatChangesNothingStandsThereOnce)
{
    Scenario asked = scenario(1);
    asked.model = readModel("mixtral-8x7b");
    Space space = defaultSpace(asked, Objective::StepTime);
    space.frameworks = {Framework::DeepSpeed, Framework::Megatron};
    space.context = {1, 2};
    space.exchange = {ContextExchange::Ring, ContextExchange::AllGather, ContextExchange::Ulysses};
    space.tensor = {1, 2};
    space.expertTensor = {0, 1};
    space.checkpointing = {Checkpointing::None, Checkpointing::Full};
    space.checkpointEvery = {1, 2};
    space.checkpointSegment = {1, 2, 4};
    const Candidates candidates(asked, space);
    std::map<std::pair<Framework, std::int64_t>, std::set<ContextExchange>> exchanges;
    for (const Path& path : allPaths(candidates)) {
        const Assignment so = candidates.assignment(path);
        exchanges[{so.framework, so.context}].insert(so.exchange);
        EXPECT_TRUE(so.expertTensor == 0 || so.tensor == 2);
        EXPECT_TRUE(so.checkpointSegment == 1 || (so.checkpointing == Checkpointing::Full && so.checkpointEvery == 1));
    }
    EXPECT_EQ((exchanges[{Framework::Megatron, 1}].size()), 1u);
    EXPECT_EQ((exchanges[{Framework::Megatron, 2}].size()), 3u);
    EXPECT_EQ((exchanges[{Framework::DeepSpeed, 2}]), std::set<ContextExchange>{ContextExchange::Ulysses});
}

/// What the predefined strategies say, the axes say too.
TEST(SearchCandidatesTest, PredefinedStrategiesAreAmongThem)
{
    const Scenario asked = scenario(2);
    const Space space = wideSpace(asked);
    const Candidates candidates(asked, space);
    std::vector<StrategyOptions> options;
    Candidate candidate = candidates.start();
    for (const Path& path : allPaths(candidates)) {
        const Assignment so = candidates.assignment(path);
        candidates.apply(so, candidate);
        if (so.gpus == 16 && so.modelRanks() == 1)
            options.push_back(candidate.strategy.options);
    }
    for (const char* name :
         {"ddp", "fsdp1-full-shard", "fsdp1-shard-grad-op", "fsdp1-no-shard", "fsdp1-full-shard-offload",
          "fsdp2-full-shard", "fsdp2-shard-grad-op", "fsdp2-no-shard", "fsdp2-full-shard-offload", "deepspeed-zero0",
          "deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3", "deepspeed-zero2-offload-optimizer-cpu",
          "deepspeed-zero3-offload-cpu", "deepspeed-zeropp", "deepspeed-mics", "native-zero0", "native-zero3"}) {
        const StrategyOptions wanted = strategyByName(name, 8)->options;
        EXPECT_NE(std::find(options.begin(), options.end(), wanted), options.end()) << name;
    }
}

/// What a search prints can be asked for: of FSDP2's groups only those of a node, beside a model in one piece, as
/// fully_shard is told replicas.
TEST(SearchCandidatesTest, TheirNamesAreUnderstood)
{
    const Scenario asked = scenario(2);
    const Space space = wideSpace(asked);
    const Candidates candidates(asked, space);
    Candidate candidate = candidates.start();
    int understood = 0;
    for (const Path& path : allPaths(candidates)) {
        const Assignment so = candidates.assignment(path);
        if (candidates.accumulation(so) == 0)
            continue; // how many ranks shard is then unknown
        candidates.apply(so, candidate);
        const std::string name = candidates.strategyName(so);
        const bool fsdp2Group = so.framework == Framework::Fsdp2 && so.shardGroup != kWholeGroup;
        const auto strategy = strategyByName(name, candidate.cluster.gpusPerNode);
        if (fsdp2Group && (so.shardGroup != candidate.cluster.gpusPerNode || so.modelRanks() > 1)) {
            EXPECT_FALSE(strategy) << name;
            continue;
        }
        ASSERT_TRUE(strategy) << name;
        StrategyOptions options = strategy->options;
        if (fsdp2Group) {
            EXPECT_EQ(std::get<Fsdp2Options>(options).replicate, 0) << name; // one a node
            std::get<Fsdp2Options>(options).replicate = candidate.cluster.nodes;
        }
        EXPECT_EQ(options, candidate.strategy.options) << name;
        EXPECT_EQ(strategy->parallelism, candidate.strategy.parallelism) << name;
        ++understood;
    }
    EXPECT_GT(understood, 1000);
}

} // namespace

} // namespace shardwright::search
