#include "planner/costs/transfer_costs.hpp"

#include <cmath>

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"

namespace shardwright {
namespace {

constexpr std::int64_t kGiga = 1000000000;

TEST(TransferCosts, CpuAdamAsTheZeroOffloadPaperMeasuredIt)
{
    // arXiv 2101.06840 table 4: seconds of one step on a DGX-2, whole node, by billions of parameters.
    struct Row {
        std::int64_t billions;
        double deepSpeed;
        double torch;
    };
    Cluster dgx2 = readCluster("dgx-2-v100-32gb");
    dgx2.gpusPerNode = 1; // the table's process has the machine for itself
    const TransferCosts costs(dgx2);
    for (const Row& row :
         {Row{1, 0.22, 1.39}, Row{2, 0.51, 2.75}, Row{4, 1.03, 5.71}, Row{8, 2.41, 11.93}, Row{10, 2.57, 14.76}}) {
        const Bytes onePass(28 * kGiga * row.billions);
        const Bytes allPasses(80 * kGiga * row.billions);
        EXPECT_NEAR(costs.hostOptimizer(onePass, true) / row.deepSpeed, 1, 0.20) << row.billions;
        EXPECT_NEAR(costs.hostOptimizer(allPasses, false) / row.torch, 1, 0.20) << row.billions;
    }
}

TEST(TransferCosts, RanksOfANodeShareItsMemoryAndDrives)
{
    Cluster cluster = readCluster("dgx-a100-80gb");
    const TransferCosts eight(cluster);
    cluster.gpusPerNode = 1;
    const TransferCosts one(cluster);
    const Bytes bytes(10 * kGiga);
    EXPECT_NEAR(eight.hostOptimizer(bytes, true), 8 * one.hostOptimizer(bytes, true), 1e-9);
    EXPECT_NEAR(eight.nvmeRead(bytes) / one.nvmeRead(bytes), 8, 0.01);
    // 26.28 GB/s over PCIe for each GPU: eight of them stay below four fifths of 409.6 GB/s.
    EXPECT_NEAR(eight.copyToDevice(bytes, true), one.copyToDevice(bytes, true), 1e-12);
    cluster.gpusPerNode = 16;
    EXPECT_GT(TransferCosts(cluster).copyToDevice(bytes, true), 1.2 * one.copyToDevice(bytes, true));
}

TEST(TransferCosts, OneThreadOfARankIsSlowerThanItsShareOfTheCores)
{
    const Cluster cluster = readCluster("dgx-a100-80gb"); // 128 cores, 8 ranks, 409.6 GB/s
    const Bytes bytes(10 * kGiga);
    const double all = TransferCosts(cluster).hostOptimizer(bytes, true);
    EXPECT_DOUBLE_EQ(TransferCosts(cluster, 16).hostOptimizer(bytes, true), all);
    // One thread streams 10 GB/s; two of them come near the rank's share of the memory, 409.6 x 0.426 / 8 = 21.8 GB/s.
    EXPECT_DOUBLE_EQ(TransferCosts(cluster, 1).hostOptimizer(bytes, true), 1);
    EXPECT_DOUBLE_EQ(TransferCosts(cluster, 2).hostOptimizer(bytes, true), 0.5);
    EXPECT_NEAR(TransferCosts(cluster, 3).hostOptimizer(bytes, true), 10 / 21.81, 1e-3);
    EXPECT_DOUBLE_EQ(TransferCosts(cluster, 1000).hostOptimizer(bytes, true), all);
    Cluster narrow = cluster;
    narrow.cpuCores = 8; // a core a rank, however many threads share it
    EXPECT_DOUBLE_EQ(TransferCosts(narrow, 4).hostOptimizer(bytes, true), 1);
}

TEST(TransferCosts, PageableMemoryIsTwoToSixTimesSlower)
{
    // dask-cuda pull request 98: 5 to 6 GB/s beside 11 to 12 over PCIe 3.0. DeepSpeed pull request 5301: up to six.
    const Bytes bytes(kGiga);
    const TransferCosts gen3(readCluster("1xv100-32gb"));
    EXPECT_GT(1 / gen3.copyToDevice(bytes, false), 5.0);
    EXPECT_LT(1 / gen3.copyToDevice(bytes, false), 6.0);
    for (const char* id : {"dgx-a100-80gb", "dgx-h100", "1xrtx4090", "dgx-2-v100-32gb"}) {
        const TransferCosts costs(readCluster(id));
        const double ratio = costs.copyToHost(bytes, false) / costs.copyToHost(bytes, true);
        EXPECT_GT(ratio, 1.8) << id;
        EXPECT_LT(ratio, 6.5) << id;
    }
}

TEST(TransferCosts, NothingCostsNothingAndNoDriveTakesForever)
{
    const TransferCosts costs(readCluster("1xt4"));
    EXPECT_EQ(costs.copyToDevice(Bytes(0), true), 0);
    EXPECT_EQ(costs.nvmeRead(Bytes(0)), 0);
    EXPECT_TRUE(std::isinf(costs.nvmeRead(Bytes(1))));
}

TEST(TransferCosts, GpuMemoryIsSlowerThanItsDataSheet)
{
    const Cluster cluster = readCluster("dgx-h100");
    const double rate = 1e9 / TransferCosts(cluster).gpuMemory(Bytes(kGiga));
    EXPECT_LT(rate, 0.9 * cluster.gpu.memoryBandwidth.value);
    EXPECT_GT(rate, 0.7 * cluster.gpu.memoryBandwidth.value);
}

} // namespace
} // namespace shardwright
