// Clusters whose "GPUs" are a host's own threads: every rate was measured, and what they predict follows by hand.

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"
#include "core/diagnostics.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/costs/collective_costs.hpp"
#include "planner/costs/gpu_facts.hpp"
#include "planner/costs/host_costs.hpp"
#include "planner/costs/matrix_product.hpp"
#include "planner/costs/transfer_costs.hpp"
#include "planner/overheads.hpp"
#include "planner/readers/time_simulation.hpp"

namespace shardwright {
namespace {

Json hostJson()
{
    return parseJson(R"({
      "schema": "shardwright-cluster/1", "name": "this machine",
      "gpu": {"name": "host", "compute_capability": 1, "memory": "4 GiB", "memory_bandwidth": "8 GB/s",
              "peak_flops": {"fp32": "0.05 TFLOP/s"},
              "rates": {"attention_forward": "0.01 TFLOP/s", "attention_backward": "0.02 TFLOP/s",
                        "pointwise": "8 GB/s", "optimizer": "4 GB/s", "copy": "5 GB/s"}},
      "gpus_per_node": 4,
      "intra_node": {"kind": "shared-memory", "bandwidth": "2 GB/s", "latency": "10 us"},
      "host": {"memory": "16 GiB", "memory_bandwidth": "20 GB/s", "cpu_cores": 4, "pcie_bandwidth": "6 GB/s"}})",
                     "host.json");
}

Cluster hostCluster(const Json& json)
{
    Findings findings("host.json");
    const JsonCursor cursor(json, findings);
    Cluster cluster = clusterFromJson(cursor, "host");
    findings.throwIfAny();
    return cluster;
}

TEST(HostProcessor, TakesTheRatesThatWereMeasured)
{
    const Cluster cluster = hostCluster(hostJson());
    const GpuFacts facts = gpuFacts(cluster.gpu, 4);
    MatrixProduct product;
    product.m = product.n = product.k = 1024;
    product.dtype = DType::Fp32;
    product.outBytes = 4;
    const double flops = 2.0 * 1024 * 1024 * 1024;
    // 12 MiB of operands and result at 8 GB/s add less than a hundredth to 43 ms of multiplying.
    EXPECT_NEAR(seconds(cluster.gpu, facts, product), flops / 50e9, 0.01 * flops / 50e9);

    const TransferCosts transfers(cluster);
    EXPECT_DOUBLE_EQ(transfers.gpuMemory(Bytes(5'000'000'000)), 1);
    EXPECT_DOUBLE_EQ(transfers.gpuOptimizer(Bytes(4'000'000'000)), 1);
    EXPECT_DOUBLE_EQ(transfers.hostOptimizer(Bytes(4'000'000'000), true), 1);
    EXPECT_TRUE(gpuOverheads(cluster, 2).empty());

    const Training training;
    const Model model = readModel("gpt2");
    Strategy strategy;
    strategy.options = NativeOptions{};
    const HostCosts host({model, cluster, training, strategy});
    EXPECT_EQ(host.kernel(), 0); // kernels are function calls
    EXPECT_EQ(host.collective(OpKind::AllReduce), 0);

    const CollectiveCosts collectives(cluster);
    const Group world{"world", 4, 1};
    EXPECT_DOUBLE_EQ(collectives.seconds(OpKind::AllGather, Bytes(8'000'000'000), world), 10e-6 + 3);
    EXPECT_DOUBLE_EQ(collectives.seconds(OpKind::AllReduce, Bytes(8'000'000'000), world), 10e-6 + 6);
}

TEST(HostProcessor, DoesOneThingAfterTheOther)
{
    ScheduleBuilder builder{SizeTable{}};
    builder.beginSegment("initialisation");
    builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
    builder.beginSegment("micro-step");
    builder.op(OpKind::AllGather, Stream::AllGather, Phase::Forward);
    builder.op(OpKind::Forward, Stream::Compute, Phase::Forward);
    const Schedule schedule = builder.finish();
    const OpTimes times{{0, 2, 3}, {0, 0, 0}};
    EXPECT_DOUBLE_EQ(simulate(schedule, times).seconds, 3); // beside each other
    const Timeline inOrder = simulate(inOrderOfIssue(schedule), times);
    EXPECT_DOUBLE_EQ(inOrder.seconds, 5);
    EXPECT_DOUBLE_EQ(inOrder.breakdown.exposedCommunication, 2);
}

TEST(HostProcessor, FilesAreHeldToIt)
{
    const Cluster cluster = hostCluster(hostJson());
    EXPECT_EQ(toJson(hostCluster(toJson(cluster))), toJson(cluster));
    const auto failure = [](const Json& json) -> std::string {
        try {
            hostCluster(json);
        } catch (const InputError& error) {
            return error.what();
        }
        return "";
    };
    Json withoutRates = hostJson();
    withoutRates["gpu"].erase("rates");
    EXPECT_NE(failure(withoutRates).find("/gpu"), std::string::npos);
    Json withoutCopy = hostJson();
    withoutCopy["gpu"]["rates"].erase("copy");
    EXPECT_NE(failure(withoutCopy).find("copy"), std::string::npos);
    Json gpu = hostJson();
    gpu["gpu"]["compute_capability"] = 90;
    EXPECT_NE(failure(gpu).find("/gpu/rates"), std::string::npos);
}

} // namespace
} // namespace shardwright
