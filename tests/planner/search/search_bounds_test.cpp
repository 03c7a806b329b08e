// What rules candidates out, over random spaces, models, clusters and training settings, against their whole plans.

#include <random>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "planner/plan_builder.hpp"
#include "planner/search/explorer.hpp"
#include "planner/search/simulated_clock.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright::search {

namespace {

class Chance {
public:
    Chance() : m_random(*rc::gen::resize(100, rc::gen::inRange(0, 1 << 30))) {}

    std::int64_t between(std::int64_t least, std::int64_t most)
    {
        return least + static_cast<std::int64_t>(m_random() % static_cast<std::uint64_t>(most - least + 1));
    }
    template <typename T> T oneOf(const std::vector<T>& values)
    {
        return values[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(values.size()) - 1))];
    }
    template <typename T> std::vector<T> some(std::vector<T> values)
    {
        std::shuffle(values.begin(), values.end(), m_random);
        values.resize(static_cast<std::size_t>(between(1, static_cast<std::int64_t>(values.size()))));
        return values;
    }

private:
    std::mt19937 m_random;
};

Scenario anyScenario(Chance& chance)
{
    Scenario scenario;
    const int blocks = static_cast<int>(chance.between(1, 12));
    const bool experts = chance.between(0, 3) == 0;
    scenario.model = experts ? mixtralOf({64, blocks, 4, 16, 96, 500, false}, 8)
                             : llamaOf({256, blocks, 8, 32, 512, 2000, chance.between(0, 1) == 0});
    scenario.cluster =
        readCluster(chance.oneOf<std::string>({"dgx-a100-80gb", "dgx-h100", "ethernet-a100-80gb", "dgx-2-v100-32gb"}));
    scenario.cluster.nodes = static_cast<int>(chance.between(1, 4));
    scenario.cluster.gpu.memory.value = 1e9 * static_cast<double>(chance.between(1, 12));
    Training& training = scenario.training;
    training.implementation = chance.oneOf<Implementation>(
        {Implementation::HuggingFace, Implementation::Torchtitan, Implementation::Megatron});
    training.sequenceLength = 128 * chance.between(1, 16);
    training.microBatch = chance.between(1, 4);
    training.gradientAccumulation = chance.between(1, 8);
    training.fusedOptimizer = chance.between(0, 1) == 0;
    return scenario;
}

Space anySpace(const Scenario& scenario, Chance& chance)
{
    Space space = defaultSpace(scenario, Objective::FewestGpus);
    space.gpus = chance.some(space.gpus);
    space.frameworks = chance.some(space.frameworks);
    space.offload = chance.some(space.offload);
    space.zeroPlusPlus = chance.some(space.zeroPlusPlus);
    space.shardGroup = chance.some(std::vector<std::int64_t>{kWholeGroup, kNodeGroup, 2, 4});
    if (space.frameworks.front() == Framework::Megatron)
        space.context = {1, 2};
    space.checkpointEvery = chance.some(std::vector<std::int64_t>{1, 2, 3});
    space.checkpointSegment = chance.some(std::vector<std::int64_t>{1, 2, 4});
    return space;
}

std::optional<Path> anyPath(const Candidates& candidates, Chance& chance)
{
    Path path;
    while (path.size() < kAxes) {
        const auto choices = static_cast<std::int64_t>(candidates.choices(path));
        if (choices == 0)
            return std::nullopt;
        path.push(static_cast<std::size_t>(chance.between(0, choices - 1)));
    }
    return path;
}

Score scoreOf(Measure measure, const Plan& plan, std::int64_t gpus)
{
    const double seconds = plan.step->seconds;
    const auto count = static_cast<double>(gpus);
    const double memory = plan.gpu.peakUsed.asDouble();
    switch (measure) {
    case Measure::Gpus: return {count, seconds};
    case Measure::GpuTime: return {seconds * count, seconds};
    case Measure::MemoryAndTime: return {memory, seconds};
    default: return {seconds, memory};
    }
}

} // namespace

/// Every subtree that a candidate lies in: its floor is below the candidate's figures, and it is not turned down where
/// the candidate fits.
RC_GTEST_PROP(SearchBoundsTest, NoSubtreeIsRuledOutForACandidateThatIsBetter, ())
{
    Chance chance;
    const Scenario scenario = anyScenario(chance);
    const Space space = anySpace(scenario, chance);
    const Candidates candidates(scenario, space);
    const auto measure =
        chance.oneOf<Measure>({Measure::Time, Measure::Gpus, Measure::GpuTime, Measure::MemoryAndTime});
    PlanExplorer explorer(candidates, measure, simulatedClock());
    for (int i = 0; i < 10; ++i) {
        const auto path = anyPath(candidates, chance);
        const Assignment so = candidates.assignment(path.value_or(Path{}));
        if (!path || candidates.accumulation(so) == 0)
            continue;
        Candidate candidate = candidates.start();
        candidates.apply(so, candidate);
        const Plan plan =
            buildPlan({scenario.model, candidate.cluster, candidate.training, candidate.strategy}, kOfAnswers);
        if (plan.verdict != Verdict::Fits || !plan.step)
            continue;
        const Score score = scoreOf(measure, plan, so.gpus);
        for (std::size_t axes = 0; axes <= kAxes; ++axes) {
            const auto floor = explorer.floor(path->first(axes));
            RC_ASSERT(floor.has_value());
            RC_ASSERT(floor->first <= score.first);
            RC_ASSERT(floor->second <= score.second);
        }
        RC_ASSERT(explorer.evaluate(*path, Archive({Wanted::Kind::Ranking, 1})) == std::optional(score));
    }
}

} // namespace shardwright::search
