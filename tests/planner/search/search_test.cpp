#include "planner/search/search.hpp"

#include <random>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/plan_builder.hpp"
#include "planner/readers/memory_replay.hpp"

namespace shardwright::search {

namespace {

/// Seconds that have little to do with training, but are the same for the same candidate and never below their floor.
class MadeUpClock final : public Clock {
public:
    double floor(const PlanInput& input, const Assignment&, Structures&) override { return base(input); }
    static double base(const PlanInput& input)
    {
        const Training& training = input.training;
        const double recomputation = training.checkpointing == Checkpointing::None ? 1.0 : 1.33;
        return recomputation * double(training.gradientAccumulation) * (double(training.microBatch) + 0.5);
    }
    double seconds(const PlanInput& input, const std::vector<Part>&, Structures&, const IsWanted&) override
    {
        return of(input);
    }
    double secondsOf(const PlanInput& input, const Plan&) override { return of(input); }
    static double of(const PlanInput& input)
    {
        const std::size_t options = input.strategy.options.index();
        return base(input) * (1 + 0.1 * double((options * 3 + std::size_t(input.ranks())) % 4));
    }
};

std::unique_ptr<Clock> madeUpClock()
{
    return std::make_unique<MadeUpClock>();
}

Scenario scenario()
{
    Scenario scenario;
    scenario.model = readModel("gpt2");
    scenario.cluster = readCluster("dgx-a100-80gb");
    scenario.cluster.nodes = 2;
    scenario.cluster.gpu.memory.value = 6e9; // some candidates fit, some do not
    scenario.training.sequenceLength = 512;
    scenario.training.microBatch = 4;
    return scenario;
}

struct Plans {
    std::vector<Found> all; // of what fits, scored by time and memory
    std::int64_t candidates = 0;
};

/// Every candidate of a space by its whole plan.
void enumerate(const Candidates& candidates, const Path& path, Plans& plans)
{
    if (path.size() < kAxes) {
        for (std::size_t i = 0; i < candidates.choices(path); ++i) {
            Path child = path;
            child.push(i);
            enumerate(candidates, child, plans);
        }
        return;
    }
    ++plans.candidates;
    const Assignment so = candidates.assignment(path);
    if (candidates.accumulation(so) == 0)
        return;
    Candidate candidate = candidates.start();
    candidates.apply(so, candidate);
    const PlanInput input{candidates.scenario().model, candidate.cluster, candidate.training, candidate.strategy};
    const Plan plan = buildPlan(input, {.curve = false, .allocator = true, .suggest = false});
    if (plan.verdict == Verdict::Fits)
        plans.all.push_back({{MadeUpClock::of(input), plan.gpu.peakUsed.asDouble()}, path});
}

std::vector<std::string> bestOf(const Candidates& candidates, std::vector<Found> all, std::size_t most)
{
    std::sort(all.begin(), all.end(),
              [](const Found& a, const Found& b) { return a.score != b.score ? a.score < b.score : a.path < b.path; });
    std::vector<std::string> names;
    for (std::size_t i = 0; i < std::min(most, all.size()); ++i)
        names.push_back(candidates.describe(candidates.assignment(all[i].path)));
    return names;
}

std::vector<std::string> namesOf(const Candidates& candidates, const Result& result)
{
    std::vector<std::string> names;
    for (const Answer& answer : result.answers)
        names.push_back(candidates.describe(answer.assignment));
    return names;
}

/// A space of some of the values of every axis.
Space anySpace(const Scenario& asked)
{
    std::mt19937 random(*rc::gen::resize(100, rc::gen::inRange(0, 1 << 30)));
    const auto some = [&](auto values) {
        std::shuffle(values.begin(), values.end(), random);
        values.resize(1 + random() % std::min<std::size_t>(values.size(), 3));
        return values;
    };
    Space space = defaultSpace(asked, Objective::StepTime);
    space.frameworks = some(space.frameworks);
    space.sharding = some(space.sharding);
    space.offload = some(space.offload);
    space.zeroPlusPlus = some(space.zeroPlusPlus);
    space.shardGroup = some(space.shardGroup);
    space.checkpointing = some(space.checkpointing);
    space.microBatch = some(std::vector<std::int64_t>{1, 2, 3, 4, 8, 16});
    space.gpus = some(std::vector<std::int64_t>{2, 4, 8, 16});
    return space;
}

RC_GTEST_PROP(SearchTest, FindsWhatPlanningEveryCandidateFinds, ())
{
    const Scenario asked = scenario();
    const Space space = anySpace(asked);
    const Candidates candidates(asked, space);
    Plans plans;
    enumerate(candidates, {}, plans);
    Request request;
    request.top = 3;
    request.threads = *rc::gen::inRange(1, 4);
    const Result result = search(candidates, request, madeUpClock);
    RC_ASSERT(result.proven);
    RC_ASSERT(result.declared == plans.candidates);
    RC_ASSERT(namesOf(candidates, result) == bestOf(candidates, plans.all, 3));
}

/// Judged one and all, what is rejected and what fits make up the space.
RC_GTEST_PROP(SearchTest, EveryRejectedCandidateIsCounted, ())
{
    const Scenario asked = scenario();
    const Space space = anySpace(asked);
    const Candidates candidates(asked, space);
    Plans plans;
    enumerate(candidates, {}, plans);
    Request request;
    request.judgeAll = true;
    request.top = 100000;
    const Result result = search(candidates, request, madeUpClock);
    RC_ASSERT(result.rejected.total() + std::int64_t(plans.all.size()) == plans.candidates);
    RC_ASSERT(result.answers.size() == plans.all.size());
}

/// What is told of one candidate holds for all that differ from it in checkpointing and micro-batch, once and again
/// where they accumulate gradients (PlanExplorer::evaluate).
RC_GTEST_PROP(SearchTest, HostsAndDrivesHoldTheSameWhateverTheMicroBatch, ())
{
    Scenario asked = scenario();
    asked.model = readModel(*rc::gen::element("gpt2", "llama-3.2-1b", "qwen1.5-moe-a2.7b"));
    asked.cluster.nvmeCapacity.value = 1e13;
    Space space = defaultSpace(asked, Objective::StepTime, 64);
    space.offload = {Offload::Optimizer, Offload::Cpu, Offload::Nvme};
    space.frameworks = {Framework::Fsdp1, Framework::Fsdp2, Framework::DeepSpeed};
    const Candidates candidates(asked, space);
    std::mt19937 random(*rc::gen::resize(100, rc::gen::inRange(0, 1 << 30)));
    constexpr std::size_t kStrategyKnown = static_cast<std::size_t>(Axis::ShardGroup) + 1;
    std::optional<Path> strategy;
    std::array<std::optional<std::array<Bytes, 4>>, 2> firsts; // of those that do not accumulate, and do
    for (int turn = 0; turn < 12; ++turn) {
        Path path = strategy.value_or(Path{});
        while (path.size() < kAxes && candidates.choices(path) > 0)
            path.push(random() % candidates.choices(path));
        if (path.size() < kAxes)
            continue;
        strategy = path.first(kStrategyKnown);
        const Assignment so = candidates.assignment(path);
        Candidate candidate = candidates.start();
        candidates.apply(so, candidate);
        const PlanInput input{asked.model, candidate.cluster, candidate.training, candidate.strategy};
        if (candidates.accumulation(so) == 0 || !refusals(input).empty())
            continue;
        const auto rules = makeRules(input);
        const MemoryReplay replay = replayMemory(rules->emit(), false);
        const std::array<Bytes, 4> held{replay.hostPinned.bytes, replay.hostPageable.bytes, replay.nvme.bytes,
                                        rules->hostInitPeakPerNode()};
        auto& first = firsts[candidate.training.gradientAccumulation > 1 ? 1 : 0];
        RC_ASSERT(held == first.value_or(held));
        first = held;
    }
}

TEST(SearchTest, WhatIsFoundIsWhatAPlanSays)
{
    const Scenario asked = scenario();
    const Space space = defaultSpace(asked, Objective::StepTime);
    const Candidates candidates(asked, space);
    const Result result = search(candidates, {}, madeUpClock);
    ASSERT_EQ(result.answers.size(), 10u);
    for (const Answer& answer : result.answers) {
        EXPECT_EQ(answer.plan.verdict, Verdict::Fits);
        EXPECT_EQ(answer.plan.strategy, answer.candidate.strategy.name);
        EXPECT_FALSE(answer.plan.strategy.empty());
    }
}

TEST(SearchTest, TheFewestGpusComeFirst)
{
    Scenario asked = scenario();
    asked.model = readModel("gpt2-xl"); // 1.5 billion parameters: some 25 GB of states
    asked.training.microBatch = 1;
    Space space = defaultSpace(asked, Objective::FewestGpus);
    space.offload = {Offload::None};
    const Candidates candidates(asked, space);
    Request request;
    request.objective = Objective::FewestGpus;
    request.top = 1;
    const Result result = search(candidates, request, madeUpClock);
    ASSERT_EQ(result.answers.size(), 1u);
    const std::int64_t fewest = result.answers.front().assignment.gpus;
    Plans plans;
    enumerate(candidates, {}, plans);
    for (const Found& found : plans.all)
        EXPECT_GE(candidates.assignment(found.path).gpus, fewest);
}

} // namespace

} // namespace shardwright::search
