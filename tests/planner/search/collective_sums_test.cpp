#include "planner/search/collective_sums.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/cluster_file.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/step_time.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright::search {

namespace {

/// By the operations of the schedule itself, one after the other.
double collectivesOf(const SmallInput& job, const FrameworkRules& rules)
{
    const Schedule schedule = rules.emit();
    const PlanInput input = job.input();
    return loadOf(schedule, opTimes(schedule, OpCosts(input, *rules.activations(), schedule.sizes))).collectives;
}

SmallInput anyJob(const StrategyOptions& options)
{
    const int gpusPerNode = *rc::gen::inRange(1, 5);
    SmallInput job(options, gpusPerNode, *rc::gen::inRange(1, 5));
    job.cluster = readCluster(*rc::gen::element("dgx-a100-80gb", "ethernet-a100-80gb"));
    job.cluster.gpusPerNode = gpusPerNode;
    job.cluster.nodes = *rc::gen::inRange(1, 5);
    job.model = llamaOf({64, *rc::gen::inRange(1, 9), 4, 16, 96, 500, *rc::gen::arbitrary<bool>()});
    job.training.sequenceLength = 64;
    job.training.checkpointing = *rc::gen::element(Checkpointing::None, Checkpointing::Full);
    return job;
}

} // namespace

/// What is summed over one candidate's schedule tells the collectives of another one with other batches.
RC_GTEST_PROP(CollectiveSumsTest, AreThoseOfEverySchedule, ())
{
    std::vector<std::pair<std::string, StrategyOptions>> strategies = everyStrategy();
    strategies.insert(strategies.end(), everyDeepSpeed().begin(), everyDeepSpeed().end());
    const auto& [name, options] = strategies[*rc::gen::inRange<std::size_t>(0, strategies.size())];
    SmallInput job = anyJob(options);
    job.training.gradientAccumulation = *rc::gen::inRange(1, 17);
    if (!refusals(job.input()).empty())
        return;
    const auto first = job.rules();
    const CollectiveSums sums(first->emit());
    const int shape = accumulationShape(job.training.gradientAccumulation);
    const std::int64_t accumulation = *rc::gen::inRange(1, 17);
    for (const bool other : {false, true}) {
        if (other) {
            job.training.microBatch = *rc::gen::inRange(1, 5);
            job.training.gradientAccumulation = accumulation;
        }
        if (!refusals(job.input()).empty())
            return;
        const auto rules = job.rules();
        if (accumulationShape(job.training.gradientAccumulation) != shape ||
            rules->structureKey() != first->structureKey())
            return;
        const PlanInput input = job.input();
        const double expected = collectivesOf(job, *rules);
        const double summed =
            sums.seconds(OpCosts(input, *rules->activations(), rules->sizes()), job.training.gradientAccumulation);
        RC_LOG() << name;
        RC_ASSERT(std::abs(summed - expected) <= 1e-12 * expected);
    }
}

} // namespace shardwright::search
