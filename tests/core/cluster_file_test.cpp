#include <cmath>

#include <gtest/gtest.h>

#include "core/catalogue.hpp"
#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"

namespace shardwright {
namespace {

Cluster readText(const std::string& text, std::vector<Finding>* found = nullptr)
{
    const Json json = parseJson(text, "c.json");
    Findings findings("c.json");
    Cluster cluster = clusterFromJson(JsonCursor(json, findings), "c");
    if (found)
        *found = findings.all();
    else
        findings.throwIfAny();
    return cluster;
}

std::string textOf(const std::vector<Finding>& findings)
{
    return findings.empty() ? std::string() : InputError(findings).what();
}

/// The example that the description gives: the JSON object between its first and last line of a lone brace.
std::string exampleOf(const std::string& description)
{
    const std::size_t begin = description.find("\n{\n");
    return description.substr(begin, description.find("\n}\n", begin) + 3 - begin);
}

std::vector<const Figure*> figuresOf(const Cluster& cluster)
{
    std::vector<const Figure*> figures{&cluster.gpu.memory, &cluster.gpu.memoryBandwidth, &cluster.hostMemory,
                                       &cluster.hostMemoryBandwidth, &cluster.pcieBandwidth};
    for (const auto& [dtype, figure] : cluster.gpu.peakFlops)
        figures.push_back(&figure);
    for (const Link* link : {&cluster.intraNode, &cluster.interNode})
        if (link->kind != LinkKind::None)
            figures.insert(figures.end(), {&link->bandwidth, &link->latency});
    if (cluster.nvmeCapacity.value > 0)
        figures.insert(figures.end(), {&cluster.nvmeCapacity, &cluster.nvmeReadBandwidth, &cluster.nvmeWriteBandwidth});
    return figures;
}

TEST(ShippedClusters, ReadWithoutFindingsAndNameEverySource)
{
    const auto ids = clusterIds();
    ASSERT_GE(ids.size(), 20U);
    for (const std::string& id : ids) {
        const Cluster cluster = readCluster(id);
        EXPECT_EQ(cluster.id, id);
        EXPECT_EQ(cluster.nodes, 1) << id;
        for (const Figure* figure : figuresOf(cluster)) {
            EXPECT_GT(figure->value, 0) << id << ": " << figure->source;
            EXPECT_EQ(figure->source.find("without a source"), std::string::npos) << id;
            EXPECT_FALSE(figure->source.empty()) << id;
        }
    }
}

TEST(ShippedClusters, FiguresAreThoseOfRealMachines)
{
    for (const std::string& id : clusterIds()) {
        const Cluster cluster = readCluster(id);
        if (cluster.gpu.isHostProcessor()) // stands for a host, which calibrate measures
            continue;
        // Marketing GB are decimal or binary by product; what programs get lies between 11 % below and the full size.
        EXPECT_GT(cluster.gpu.memory.value, 14e9) << id;
        EXPECT_LT(cluster.gpu.memory.value, 200e9) << id;
        // From the slowest (T4, 0.3 TB/s) to the fastest (B200, 8 TB/s).
        EXPECT_GE(cluster.gpu.memoryBandwidth.value, 300e9) << id;
        EXPECT_LE(cluster.gpu.memoryBandwidth.value, 8e12) << id;
        // A link is never faster than the GPU's own memory, and PCIe never faster than NVLink.
        EXPECT_LT(cluster.intraNode.bandwidth.value, cluster.gpu.memoryBandwidth.value) << id;
        if (cluster.intraNode.kind == LinkKind::NvSwitch) {
            EXPECT_LT(cluster.pcieBandwidth.value, cluster.intraNode.bandwidth.value) << id;
        }
        // From the T4's 40 multiprocessors and 70 W to the B200.
        EXPECT_GE(cluster.gpu.multiprocessors, 40) << id;
        EXPECT_LE(cluster.gpu.multiprocessors, 148) << id;
        EXPECT_GE(cluster.gpu.power.value, 70) << id;
        EXPECT_LE(cluster.gpu.power.value, 1000) << id;
        // 16-bit tensor cores exist on all of them and are faster than fp32; bf16 needs compute capability 80.
        ASSERT_TRUE(cluster.gpu.peakFlops.count(DType::Fp16)) << id;
        EXPECT_GT(cluster.gpu.peakFlops.at(DType::Fp16).value, cluster.gpu.peakFlops.at(DType::Fp32).value) << id;
        EXPECT_EQ(cluster.gpu.peakFlops.count(DType::Bf16) > 0, cluster.gpu.computeCapability >= 80) << id;
        EXPECT_EQ(cluster.gpu.peakFlops.count(DType::Fp8) > 0, cluster.gpu.computeCapability >= 89) << id;
    }
}

TEST(ShippedClusters, UnitsAreConverted)
{
    const Cluster dgx = readCluster("dgx-a100-80gb");
    EXPECT_DOUBLE_EQ(dgx.gpu.memory.value, 79.25 * kGiB);
    EXPECT_DOUBLE_EQ(dgx.interNode.bandwidth.value, 200e9); // 8 cards of 200 Gbit/s = 1600/8 GB/s
    EXPECT_DOUBLE_EQ(dgx.intraNode.latency.value, 3.4e-6);
    EXPECT_DOUBLE_EQ(dgx.gpu.peakFlops.at(DType::Bf16).value, 312e12);
}

TEST(ShippedClusters, SurviveWritingAndReading)
{
    for (const std::string& id : clusterIds()) {
        const Json json = toJson(readCluster(id));
        EXPECT_EQ(toJson(readText(json.dump())), json) << id;
    }
}

TEST(ClusterFile, TheDescribedExampleIsAClusterFile)
{
    const Cluster cluster = readText(exampleOf(describeClusterFormat()));
    EXPECT_EQ(cluster.gpusPerNode, 2);
    EXPECT_EQ(cluster.gpu.memory.value, std::round(23.64 * kGiB));
    EXPECT_EQ(cluster.gpu.memory.tag, Provenance::Assumed);
    EXPECT_EQ(cluster.gpu.memory.source, "given in c.json without a source");
    EXPECT_EQ(cluster.nvmeCapacity.tag, Provenance::Vendor);
}

TEST(ClusterFile, EveryKeyIsDescribed)
{
    const std::string description = describeClusterFormat();
    Cluster cluster = readCluster("p5-48xlarge"); // has a price
    cluster.storageBandwidth.value = 1;
    const Json json = toJson(cluster);
    const Json flat = json.flatten();
    for (const auto& item : flat.items()) {
        std::string key = item.key().substr(item.key().rfind('/') + 1);
        EXPECT_NE(description.find(key), std::string::npos) << item.key();
    }
}

TEST(ClusterFile, TellsEveryMistakeAtOnce)
{
    std::vector<Finding> findings;
    readText(R"({"name": "x", "gpus_per_node": 0, "nodes": 2, "colour": "red",
        "gpu": {"name": "A", "compute_capability": 80, "memory": "80GB", "memory_bandwidth": "2 TB",
                "peak_flops": {"bf17": "1 TFLOP/s"}},
        "intra_node": {"kind": "none", "latency": "1 us"},
        "host": {"memory": {"value": -1, "unit": "GB", "tag": "guess", "source": ""}, "cpu_cores": 1.5}})",
             &findings);
    const std::string text = textOf(findings);
    for (const char* expected :
         {"/colour: is not a known key", "/gpus_per_node: is 0", "/gpu/memory: is not a number, a blank and a unit",
          "/gpu/memory_bandwidth: \"TB\" is not a unit of this figure", "\"bf17\" is not a dtype",
          "/intra_node: has figures but kind \"none\"", "/host/memory/value: is -1", "\"guess\" is not known here",
          "/host: \"memory_bandwidth\" is missing", "/host: \"pcie_bandwidth\" is missing", "/host/cpu_cores: is 1.5",
          "2 nodes but no inter_node link"})
        EXPECT_NE(text.find(expected), std::string::npos) << expected << "\nin\n" << text;
}

TEST(ClusterFile, WhatRunningCostsIsOptionalAndHasUnitsOfItsOwn)
{
    const std::string text = toJson(readCluster("dgx-a100-40gb")).dump();
    const Cluster plain = readText(text);
    EXPECT_EQ(plain.pricePerGpuHour.value, 0);
    EXPECT_EQ(plain.storageBandwidth.value, 0);
    Json json = Json::parse(text);
    json["price_per_gpu_hour"] = "2.5 $/h";
    json["storage_bandwidth"] = "40 GB/s";
    json["gpu"]["power"] = "0.4 kW";
    json["inter_node"]["per_node"] = 4;
    const Cluster priced = readText(json.dump());
    EXPECT_DOUBLE_EQ(priced.pricePerGpuHour.value, 2.5);
    EXPECT_DOUBLE_EQ(priced.storageBandwidth.value, 40e9);
    EXPECT_DOUBLE_EQ(priced.gpu.power.value, 400);
    EXPECT_EQ(priced.interNode.perNode, 4);

    json["price_per_gpu_hour"] = "2.5 W";
    json["gpu"]["power"] = "0 W";
    json["intra_node"]["per_node"] = 4; // cards are between nodes
    std::vector<Finding> findings;
    readText(json.dump(), &findings);
    const std::string told = textOf(findings);
    for (const char* expected : {"/price_per_gpu_hour: \"W\" is not a unit of this figure",
                                 "/gpu/power: must be greater", "/intra_node/per_node: is not a known key"})
        EXPECT_NE(told.find(expected), std::string::npos) << expected << "\nin\n" << told;
}

TEST(ClusterFile, AnUnknownIdNamesTheNearestOne)
{
    try {
        readCluster("dgx-a100-80");
        FAIL();
    } catch (const InputError& error) {
        EXPECT_EQ(error.findings()[0].expected, "\"dgx-a100-80gb\" perhaps");
    }
}

} // namespace
} // namespace shardwright
