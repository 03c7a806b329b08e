#include "planner/step_cost.hpp"

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"

namespace shardwright {
namespace {

StepTime fourSeconds()
{
    StepTime step;
    step.seconds = 4;
    step.tokensPerSecond = 1000;
    step.breakdown = {2, 0.5, 0.5, 0.25, 0.25, 0.5, 0};
    return step;
}

class StepCostTest : public ::testing::Test {
protected:
    StepCost cost(bool optimizerOnHost = false) const
    {
        return stepCost({m_model, m_cluster, m_training, m_strategy}, fourSeconds(), optimizerOnHost);
    }

    Model m_model;
    Cluster m_cluster = readCluster("dgx-h100");
    Training m_training;
    Strategy m_strategy;
};

TEST_F(StepCostTest, NothingIsSaidOfMoneyWithoutAPriceNorOfEnergyWithoutPower)
{
    EXPECT_FALSE(cost().dollarsPerStep);
    EXPECT_TRUE(cost().joulesPerStep);
    m_cluster.gpu.power = {};
    EXPECT_FALSE(cost().joulesPerStep);
}

TEST_F(StepCostTest, DollarsAreGpuHoursTimesTheirPrice)
{
    m_cluster.pricePerGpuHour.value = 2.25;
    m_cluster.nodes = 2;
    // 16 GPUs x 4 s = 64 GPU seconds; 4000 tokens
    EXPECT_DOUBLE_EQ(*cost().dollarsPerStep, 64.0 / 3600 * 2.25);
    EXPECT_DOUBLE_EQ(*cost().dollarsPerBillionTokens, 0.04 / 4000 * 1e9);
}

TEST_F(StepCostTest, WaitingGpusDrawNoRatedPower)
{
    // 8 x 700 W for 4 s less 0.25 of bubble and 0.25 of offload, and 0.5 of an optimizer on the host
    EXPECT_DOUBLE_EQ(*cost().joulesPerStep, 8 * 700 * 3.5);
    EXPECT_DOUBLE_EQ(*cost(true).joulesPerStep, 8 * 700 * 3.0);
}

TEST(StepCost, TheNetworkThatHidesTrafficCarriesItWhileThePlanComputes)
{
    Traffic traffic;
    EXPECT_FALSE(networkThatHidesTraffic(traffic, fourSeconds().breakdown));
    traffic.interNodeRingBytesPerNode = 50_GB;
    EXPECT_DOUBLE_EQ(*networkThatHidesTraffic(traffic, fourSeconds().breakdown), 20e9); // over 2.5 s
}

TEST(StepCost, ACheckpointTakesItsBytesOverTheStoragesBandwidth)
{
    Cluster cluster;
    CheckpointSize checkpoint;
    checkpoint.shardedTotal = 84_GB;
    EXPECT_FALSE(checkpointSeconds(cluster, checkpoint));
    cluster.storageBandwidth.value = 2e9;
    EXPECT_DOUBLE_EQ(*checkpointSeconds(cluster, checkpoint), 42);
}

} // namespace
} // namespace shardwright
