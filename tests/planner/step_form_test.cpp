// Step times of candidates by the compiled form against those of their own schedules.

#include "planner/step_form.hpp"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "planner/step_time.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {
namespace {

const std::vector<std::pair<std::string, StrategyOptions>>& strategies()
{
    static const auto all = [] {
        auto list = everyStrategy();
        list.insert(list.end(), everyDeepSpeed().begin(), everyDeepSpeed().end());
        for (const std::string& name : strategyNames())
            if (name.rfind("megatron", 0) != 0) // cut into slices first
                list.emplace_back(name, strategyByName(name, 4)->options);
        return list;
    }();
    return all;
}

void vary(SmallInput& small)
{
    if (small.cluster.gpu.isHostProcessor())
        small.cluster.gpusPerNode = *rc::gen::inRange(1, 9);
    else
        small.cluster.nodes = *rc::gen::inRange(1, 5);
    small.training.microBatch = *rc::gen::inRange(1, 6);
    small.training.sequenceLength = 64 * *rc::gen::inRange(1, 40);
    small.training.gradientAccumulation = *rc::gen::inRange(1, 12);
}

/// Holds one form against the plans of several candidates that differ in numbers.
void holdAgainstStepTimes(const std::string& cluster)
{
    const auto& [name, options] = *rc::gen::elementOf(strategies());
    RC_TAG(name);
    SmallInput small(options);
    small.cluster = readCluster(cluster);
    const bool onHost = small.cluster.gpu.isHostProcessor();
    const int blocks = *rc::gen::inRange(1, 40);
    // The narrow ones wait for the host to launch kernels, the wide one never does.
    small.model = *rc::gen::element(
        llamaOf({256, blocks, 4, 64, 512, 2000, false}), llamaOf({256, blocks, 4, 64, 512, 2000, true}),
        llamaOf({4096, blocks, 32, 128, 11008, 32000, false}), mixtralOf({128, blocks, 2, 64, 256, 500, false}, 4));
    small.training.checkpointing = *rc::gen::element(Checkpointing::None, Checkpointing::Full);
    small.training.checkpointEvery = *rc::gen::inRange(1, 4);
    if (onHost)
        small.training.precision.mixed = std::nullopt;
    if (small.training.checkpointing == Checkpointing::Full && small.training.checkpointEvery == 1)
        small.training.checkpointSegment = *rc::gen::inRange(1, 5);
    vary(small);
    RC_PRE(refusals(small.input()).empty());
    const auto rules = small.rules();
    const std::string key = rules->structureKey();
    StepForm form(*rules, onHost);
    for (int candidate = 0; candidate < 4; ++candidate) {
        const auto own = small.rules();
        if (refusals(small.input()).empty() && own->structureKey() == key) {
            rules->resize(small.input());
            const double seconds = form.seconds(small.input(), *rules);
            const auto step = stepTime(small.input(), *own, own->emit());
            RC_ASSERT(step.has_value() == std::isfinite(seconds));
            if (step) {
                RC_ASSERT(std::abs(seconds - step->seconds) <= 1e-9 * step->seconds);
                RC_ASSERT(form.lowerBound(small.input(), *rules) <= step->seconds);
            }
        }
        vary(small);
    }
}

RC_GTEST_PROP(StepForm, EqualsTheStepTimeOfEveryCandidateOfItsStructure, ())
{
    holdAgainstStepTimes(*rc::gen::element<std::string>("dgx-a100-80gb", "dgx-h100"));
}

/// A rank that is a thread does itself what streams would do beside each other.
RC_GTEST_PROP(StepForm, EqualsTheStepTimeOfRanksThatAreThreads, ())
{
    holdAgainstStepTimes("host-4-threads");
}

/// A stream that cannot move its bytes makes the step endless, and there is no step time to print.
TEST(StepForm, EndlessWithoutTheDriveThatItNeeds)
{
    SmallInput small(strategyByName("deepspeed-zero3-offload-nvme", 8)->options);
    small.model = readModel("codellama-34b"); // shards large enough to be swapped at all
    small.cluster = readCluster("dgx-a100-80gb");
    small.cluster.nvmeReadBandwidth.value = 0;
    const auto rules = small.rules();
    EXPECT_EQ(StepForm(*rules).seconds(small.input(), *rules), std::numeric_limits<double>::infinity());
    EXPECT_FALSE(stepTime(small.input(), *rules, rules->emit()).has_value());
}

} // namespace
} // namespace shardwright
