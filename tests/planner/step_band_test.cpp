#include <set>

#include <gtest/gtest.h>

#include "planner/step_band.hpp"

namespace shardwright {
namespace {

TEST(StepBand, everySettingHasItsPlace)
{
    std::set<std::string> names;
    for (std::size_t i = 0; i < kStepSettings; ++i) {
        EXPECT_EQ(indexOf(stepSettingAt(i)), i);
        names.insert(nameOf(stepSettingAt(i)));
    }
    EXPECT_EQ(names.size(), kStepSettings);
}

TEST(StepBand, holdsThePredictionItself)
{
    for (const StepBand& band : kStepBandTable) {
        EXPECT_GT(band.low, 0);
        EXPECT_LE(band.low, 1);
        EXPECT_GE(band.high, 1);
        EXPECT_EQ(band.rows > 0, band.origin != BandOrigin::Assumed);
    }
}

TEST(StepBand, settingFollowsStrategyAndCluster)
{
    Cluster cluster;
    cluster.nodes = 4;
    DeepSpeedOptions options;
    options.offloadParam = OffloadDevice::Nvme;
    Strategy strategy{"s", options};
    EXPECT_EQ(nameOf(stepSettingOf(strategy, cluster)), "deepspeed, many nodes, offload");
    strategy.options = MegatronOptions{};
    strategy.parallelism.context = 2;
    cluster.nodes = 1;
    EXPECT_EQ(nameOf(stepSettingOf(strategy, cluster)), "megatron, one node, model parallel");
    EXPECT_EQ(nameOf(stepSettingOf({"s", Fsdp2Options{}}, cluster)), "pytorch, one node");
}

} // namespace
} // namespace shardwright
