#include "planner/search/simulated_clock.hpp"

#include <random>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/plan_builder.hpp"
#include "planner/search/memory_check.hpp"
#include "planner/search/search.hpp"

namespace shardwright::search {

namespace {

Scenario scenario(const char* model, Implementation implementation)
{
    Scenario scenario;
    scenario.model = readModel(model);
    scenario.cluster = readCluster("dgx-a100-80gb");
    scenario.cluster.nodes = 2;
    scenario.training.sequenceLength = 512;
    scenario.training.microBatch = 4;
    scenario.training.implementation = implementation;
    return scenario;
}

/// A candidate somewhere in the tree, or nothing where it is not possible.
std::optional<Path> anyPath(const Candidates& candidates, std::mt19937& random)
{
    Path path;
    while (path.size() < kAxes) {
        const std::size_t choices = candidates.choices(path);
        if (choices == 0)
            return std::nullopt;
        path.push(random() % choices);
    }
    return path;
}

/// Asked of many candidates in turn, so that structures are used again with other sizes.
void holdAgainstPlans(const Scenario& asked)
{
    Space space = defaultSpace(asked, Objective::FewestGpus);
    space.checkpointEvery = {1, 2};
    space.checkpointSegment = {1, 3, 4};
    if (asked.training.implementation == Implementation::Megatron) {
        space.context = {1, 2};
        space.exchange = {ContextExchange::Ring, ContextExchange::AllGather, ContextExchange::Ulysses};
        space.expertImbalance = 1.25;
    }
    const Candidates candidates(asked, space);
    const auto clock = simulatedClock();
    Structures structures(*rc::gen::element<std::int64_t>(1, 3, 1000)); // compiled at once, later, never
    std::mt19937 random(*rc::gen::resize(100, rc::gen::inRange(0, 1 << 30)));
    Candidate candidate = candidates.start();
    for (int i = 0; i < 20; ++i) {
        const auto path = anyPath(candidates, random);
        const Assignment so = candidates.assignment(path.value_or(Path{}));
        if (!path || candidates.accumulation(so) == 0)
            continue;
        candidates.apply(so, candidate);
        const PlanInput input{asked.model, candidate.cluster, candidate.training, candidate.strategy};
        if (!refusals(input).empty())
            continue;
        std::optional<double> collectives;
        const auto isWorthIt = [&](double seconds) {
            collectives = seconds;
            return true;
        };
        const std::vector<Part>& parts = structures.partsOf(input, so, isWorthIt);
        const MemoryVerdict memory = checkMemory(parts);
        const double bound = clock->seconds(input, parts, structures, [](double) { return false; });
        const double seconds = clock->seconds(input, parts, structures, [](double) { return true; });
        const Plan plan = buildPlan(input, {.curve = false, .allocator = false, .suggest = false});
        RC_ASSERT(memory.used == plan.gpu.peakUsed);
        RC_ASSERT(memory.obstacle.has_value() == (plan.verdict == Verdict::DoesNotFit));
        RC_ASSERT(plan.step.has_value() == std::isfinite(seconds));
        if (plan.step)
            RC_ASSERT(std::abs(seconds - plan.step->seconds) <= 1e-9 * seconds);
        RC_ASSERT(clock->floor(input, so, structures) <= seconds);
        RC_ASSERT(bound <= seconds);
        RC_ASSERT(collectives.has_value() == (so.pipeline == 1));
        if (collectives)
            RC_ASSERT(clock->floorWith(input, so, *collectives, structures) <= seconds);
        RC_ASSERT(leastUsed(input, so, structures) <= memory.used);
    }
}

RC_GTEST_PROP(SearchSimulatedClockTest, SecondsAreThePlansAndFloorsAreBelow, ())
{
    const char* model = *rc::gen::element("gpt2", "llama-3.2-1b", "qwen1.5-moe-a2.7b", "opt-350m");
    holdAgainstPlans(scenario(model, Implementation::HuggingFace));
}

RC_GTEST_PROP(SearchSimulatedClockTest, OfTorchtitanToo, ())
{
    holdAgainstPlans(scenario("llama-3.2-1b", Implementation::Torchtitan));
}

RC_GTEST_PROP(SearchSimulatedClockTest, OfMegatronToo, ())
{
    holdAgainstPlans(scenario("megatron-gpt3-tiny", Implementation::Megatron));
}

RC_GTEST_PROP(SearchSimulatedClockTest, OfMixturesOfExpertsToo, ())
{
    holdAgainstPlans(scenario("qwen1.5-moe-a2.7b", Implementation::Megatron));
}

/// The search as it is used: what it finds is what planning every candidate finds.
void holdAgainstEnumeration(const Scenario& asked, const Space& space)
{
    const Candidates candidates(asked, space);
    std::vector<double> seconds; // of every plan that fits
    std::int64_t outOfMemory = 0;
    const std::function<void(const Path&)> visit = [&](const Path& path) {
        if (path.size() < kAxes) {
            for (std::size_t i = 0; i < candidates.choices(path); ++i) {
                Path child = path;
                child.push(i);
                visit(child);
            }
            return;
        }
        const Assignment so = candidates.assignment(path);
        if (candidates.accumulation(so) == 0)
            return;
        Candidate candidate = candidates.start();
        candidates.apply(so, candidate);
        const Plan plan = buildPlan({asked.model, candidate.cluster, candidate.training, candidate.strategy},
                                    {.curve = false, .allocator = true, .suggest = false});
        outOfMemory += plan.verdict == Verdict::DoesNotFit ? 1 : 0;
        if (plan.verdict == Verdict::Fits && plan.step)
            seconds.push_back(plan.step->seconds);
    };
    visit({});
    EXPECT_GT(outOfMemory, 0); // the limit matters
    std::sort(seconds.begin(), seconds.end());
    Request request;
    request.top = 5;
    const Result result = search(candidates, request, simulatedClock);
    ASSERT_EQ(result.answers.size(), 5u);
    ASSERT_GE(seconds.size(), 5u);
    for (std::size_t i = 0; i < 5; ++i)
        EXPECT_NEAR(result.answers[i].plan.step->seconds, seconds[i], 1e-9 * seconds[i]);
    EXPECT_GT(result.counts.beaten + result.counts.evaluated, 100);
}

/// What is found and what is told of the others, whoever looked at what, and whatever each had compiled.
TEST(SearchSimulatedClockTest, ThreadsChangeNothing)
{
    Scenario asked = scenario("gpt2", Implementation::HuggingFace);
    asked.cluster.gpu.memory.value = 3e9;
    const Space space = defaultSpace(asked, Objective::StepTime);
    const Candidates candidates(asked, space);
    for (const bool front : {false, true}) {
        std::optional<Result> first;
        for (const int threads : {1, 2, 5}) {
            Request request;
            request.front = front;
            request.threads = threads;
            Result result = search(candidates, request, simulatedClock);
            if (!first) {
                first = std::move(result);
                continue;
            }
            ASSERT_EQ(result.answers.size(), first->answers.size());
            for (std::size_t i = 0; i < result.answers.size(); ++i)
                EXPECT_EQ(candidates.describe(result.answers[i].assignment),
                          candidates.describe(first->answers[i].assignment));
            EXPECT_EQ(result.counts.evaluated, first->counts.evaluated);
            EXPECT_EQ(result.counts.beaten, first->counts.beaten);
            ASSERT_EQ(result.rejected.reasons().size(), first->rejected.reasons().size());
            for (const auto& [reason, rejected] : result.rejected.reasons())
                EXPECT_EQ(rejected.candidates, first->rejected.reasons().at(reason).candidates) << reason.text;
        }
    }
}

TEST(SearchSimulatedClockTest, TheOptimumIsThatOfAllPlans)
{
    Scenario asked = scenario("gpt2", Implementation::HuggingFace);
    asked.cluster.gpu.memory.value = 3e9;
    Space space = defaultSpace(asked, Objective::StepTime);
    space.microBatch = {1, 2, 4};
    holdAgainstEnumeration(asked, space);
}

TEST(SearchSimulatedClockTest, TheOptimumOfPipelinesIsThatOfAllPlans)
{
    Scenario asked = scenario("megatron-gpt3-tiny", Implementation::Megatron);
    Space space = defaultSpace(asked, Objective::StepTime, 64);
    space.microBatch = {1, 2, 4};
    asked.cluster.gpu.memory.value = 2e9;
    holdAgainstEnumeration(asked, space);
}

TEST(SearchSimulatedClockTest, TheOptimumOverSegmentsOfCheckpointsIsThatOfAllPlans)
{
    Scenario asked = scenario("megatron-gpt3-tiny", Implementation::Megatron);
    Space space = defaultSpace(asked, Objective::StepTime, 64);
    space.checkpointing = {Checkpointing::None, Checkpointing::Full};
    space.checkpointSegment = {1, 2, 3};
    space.pipeline = {1, 2};
    space.microBatch = {2, 4};
    asked.cluster.gpu.memory.value = 1.6e9;
    holdAgainstEnumeration(asked, space);
}

} // namespace

} // namespace shardwright::search
