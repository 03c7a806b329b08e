#include "core/cluster_file.hpp"

#include <algorithm>
#include <filesystem>
#include <limits>

#include <fmt/format.h>

#include "core/catalogue.hpp"
#include "core/json_cursor.hpp"
#include "core/quantity.hpp"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

constexpr const char* kSchema = "shardwright-cluster/1";

/// Figures that divide something or that nothing runs without.
constexpr double kPositive = std::numeric_limits<double>::min();

/// The figure `key` of `cursor` where it is given.
Figure optionalFigure(const JsonCursor& cursor, const std::string& key, Dimension quantity)
{
    const auto member = cursor.find(key);
    return member ? figureFromJson(*member, quantity, kPositive) : Figure{};
}

/// The figure `key` of `cursor`; absent is reported.
Figure requireFigure(const JsonCursor& cursor, const std::string& key, Dimension quantity, const std::string& meaning)
{
    if (const auto member = cursor.require(key, meaning))
        return figureFromJson(*member, quantity, kPositive);
    return {};
}

void readCapability(const JsonCursor& cursor, Gpu& gpu)
{
    if (cursor.json().at("compute_capability") == kHostProcessor)
        gpu.computeCapability = kHostProcessor;
    else
        cursor.read("compute_capability", gpu.computeCapability, 30, 999);
}

constexpr Dimension dimensionOf(MeasuredRate rate)
{
    return rate == MeasuredRate::AttentionForward || rate == MeasuredRate::AttentionBackward
               ? Dimension::FlopsPerSecond
               : Dimension::BytesPerSecond;
}

/// A host's processor carries the rates of its kernels; a GPU's are known here.
void readRates(const JsonCursor& cursor, Gpu& gpu)
{
    const auto rates = cursor.find("rates");
    if (!gpu.isHostProcessor()) {
        if (rates)
            rates->complain("belongs to host processors alone", "no rates, or compute_capability 1");
        return;
    }
    if (!rates || !rates->expectObject()) {
        cursor.require("rates", "of the kernels, as `shardrun calibrate` measures them");
        return;
    }
    std::vector<std::string> known;
    for (const auto& [rate, name] : EnumNames<MeasuredRate>::table) {
        known.emplace_back(name);
        gpu.measuredRates[rate] =
            requireFigure(*rates, std::string(name), dimensionOf(rate), "measured on this machine");
    }
    rates->rejectUnknownKeys(known);
}

Gpu gpuFromJson(const JsonCursor& cursor)
{
    Gpu gpu;
    if (!cursor.expectObject())
        return gpu;
    cursor.rejectUnknownKeys({"name", "compute_capability", "multiprocessors", "power", "memory", "peak_flops",
                              "memory_bandwidth", "rates"});
    if (const auto name = cursor.require("name", "the product name, \"A100-SXM4-80GB\""))
        gpu.name = name->asString().value_or("");
    if (cursor.require("compute_capability", "major x 10 + minor: 80 for an A100, 90 for an H100"))
        readCapability(cursor, gpu);
    readRates(cursor, gpu);
    cursor.read("multiprocessors", gpu.multiprocessors, 1, 100000);
    gpu.power = optionalFigure(cursor, "power", Dimension::Watts);
    gpu.memory = requireFigure(cursor, "memory", Dimension::Bytes, "what the driver gives to programs, \"79.25 GiB\"");
    gpu.memoryBandwidth = requireFigure(cursor, "memory_bandwidth", Dimension::BytesPerSecond, "as \"2039 GB/s\"");
    const auto peaks = cursor.require("peak_flops", "an object from dtype to dense FLOP/s");
    if (!peaks || !peaks->expectObject())
        return gpu;
    if (peaks->json().empty())
        peaks->complain("is empty", "at least one dtype, as {\"bf16\": \"312 TFLOP/s\"}");
    for (const auto& item : peaks->json().items()) {
        const auto dtype = valueOf<DType>(item.key());
        const auto member = peaks->find(item.key());
        if (!dtype)
            peaks->complain("\"" + item.key().substr(0, 60) + "\" is not a dtype", allNames<DType>());
        else if (!member)
            peaks->complain("\"" + item.key() + "\" is null", "a figure, or leave it out");
        else
            gpu.peakFlops[*dtype] = figureFromJson(*member, Dimension::FlopsPerSecond, kPositive);
    }
    return gpu;
}

enum class Tier : std::uint8_t { InNode, BetweenNodes };

Link linkFromJson(const JsonCursor& cursor, Tier tier)
{
    Link link;
    if (!cursor.expectObject())
        return link;
    if (tier == Tier::BetweenNodes)
        cursor.rejectUnknownKeys({"kind", "bandwidth", "latency", "per_node"});
    else
        cursor.rejectUnknownKeys({"kind", "bandwidth", "latency"});
    if (cursor.require("kind", allNames<LinkKind>()))
        cursor.read("kind", link.kind);
    if (link.kind == LinkKind::None) {
        if (cursor.has("bandwidth") || cursor.has("latency") || cursor.has("per_node"))
            cursor.complain("has figures but kind \"none\"", "another kind, or no figures");
        return link;
    }
    link.bandwidth = requireFigure(cursor, "bandwidth", Dimension::BytesPerSecond,
                                   tier == Tier::InNode ? "per GPU, one direction, \"300 GB/s\""
                                                        : "per node (all network cards), one direction, \"200 GB/s\"");
    link.latency = requireFigure(cursor, "latency", Dimension::Seconds, "of one hop, as \"3 us\"");
    if (tier == Tier::BetweenNodes)
        cursor.read("per_node", link.perNode, 1, 10000);
    return link;
}

Json toJson(const Link& link)
{
    Json json{{"kind", nameOf(link.kind)}};
    if (link.kind != LinkKind::None) {
        json["bandwidth"] = toJson(link.bandwidth, Dimension::BytesPerSecond);
        json["latency"] = toJson(link.latency, Dimension::Seconds);
        if (link.perNode > 0)
            json["per_node"] = link.perNode;
    }
    return json;
}

void readHost(const JsonCursor& cursor, Cluster& cluster)
{
    if (!cursor.expectObject())
        return;
    cursor.rejectUnknownKeys({"memory", "memory_bandwidth", "cpu_cores", "pcie_bandwidth"});
    cluster.hostMemory = requireFigure(cursor, "memory", Dimension::Bytes, "of one node, \"1024 GiB\"");
    cluster.hostMemoryBandwidth = requireFigure(cursor, "memory_bandwidth", Dimension::BytesPerSecond, "of one node");
    cluster.pcieBandwidth = requireFigure(cursor, "pcie_bandwidth", Dimension::BytesPerSecond,
                                          "of one GPU, one direction, pinned memory, \"25 GB/s\"");
    if (cursor.require("cpu_cores", "physical cores of one node"))
        cursor.read("cpu_cores", cluster.cpuCores, 1, 1000000);
}

void readNvme(const JsonCursor& cursor, Cluster& cluster)
{
    if (!cursor.expectObject())
        return;
    cursor.rejectUnknownKeys({"capacity", "read_bandwidth", "write_bandwidth"});
    cluster.nvmeCapacity = requireFigure(cursor, "capacity", Dimension::Bytes, "of one node, \"30 TB\"");
    cluster.nvmeReadBandwidth = requireFigure(cursor, "read_bandwidth", Dimension::BytesPerSecond, "of one node");
    cluster.nvmeWriteBandwidth = requireFigure(cursor, "write_bandwidth", Dimension::BytesPerSecond, "of one node");
}

} // namespace

Cluster clusterFromJson(const JsonCursor& cursor, const std::string& id)
{
    Cluster cluster;
    cluster.id = id;
    cluster.name = id;
    cluster.source = cursor.findings().file();
    if (!cursor.expectObject())
        return cluster;
    cursor.rejectUnknownKeys({"schema", "name", "gpu", "gpus_per_node", "nodes", "intra_node", "inter_node", "host",
                              "nvme", "storage_bandwidth", "price_per_gpu_hour"});
    if (const auto schema = cursor.find("schema"); schema && schema->json() != kSchema)
        schema->complain("is another format", std::string("\"") + kSchema + "\"");
    cursor.read("name", cluster.name);
    if (const auto gpu = cursor.require("gpu", "an object that describes the GPU"))
        cluster.gpu = gpuFromJson(*gpu);
    if (cursor.require("gpus_per_node", "a whole number"))
        cursor.read("gpus_per_node", cluster.gpusPerNode, 1, kMostGpusPerNode);
    cursor.read("nodes", cluster.nodes, 1, kMostNodes);
    if (const auto link = cursor.find("intra_node"))
        cluster.intraNode = linkFromJson(*link, Tier::InNode);
    if (const auto link = cursor.find("inter_node"))
        cluster.interNode = linkFromJson(*link, Tier::BetweenNodes);
    if (const auto host = cursor.require("host", "an object that describes the node's memory, CPU and PCIe"))
        readHost(*host, cluster);
    if (const auto nvme = cursor.find("nvme"))
        readNvme(*nvme, cluster);
    readRunningCosts(cursor, cluster);
    checkLinks(cursor, cluster);
    return cluster;
}

void readRunningCosts(const JsonCursor& cursor, Cluster& cluster)
{
    if (cursor.has("storage_bandwidth"))
        cluster.storageBandwidth = optionalFigure(cursor, "storage_bandwidth", Dimension::BytesPerSecond);
    if (cursor.has("price_per_gpu_hour"))
        cluster.pricePerGpuHour = optionalFigure(cursor, "price_per_gpu_hour", Dimension::DollarsPerHour);
}

void checkLinks(const JsonCursor& cursor, const Cluster& cluster)
{
    if (cluster.gpusPerNode > 1 && cluster.intraNode.kind == LinkKind::None)
        cursor.complain(fmt::format("{} GPUs per node but no intra_node link", cluster.gpusPerNode),
                        "an \"intra_node\" object with a kind, or one GPU per node");
    if (cluster.nodes > 1 && cluster.interNode.kind == LinkKind::None)
        cursor.complain(fmt::format("{} nodes but no inter_node link", cluster.nodes),
                        "an \"inter_node\" object with a kind, or one node");
}

Cluster readCluster(const std::string& idOrPath)
{
    const std::vector<std::string> ids = clusterIds();
    const bool shipped = std::find(ids.begin(), ids.end(), idOrPath) != ids.end();
    std::error_code ignored;
    if (!shipped && !fs::is_regular_file(idOrPath, ignored)) {
        const std::string nearest = nearestWord(idOrPath, ids);
        throw InputError(idOrPath, "", "is neither a cluster that ships nor a file",
                         nearest.empty() ? "an id that `shardplan clusters` lists, or the path of a cluster file"
                                         : fmt::format("\"{}\" perhaps", nearest));
    }
    const std::string path =
        shipped ? (fs::path(homeFolder()) / "scenarios" / "clusters" / (idOrPath + ".json")).string() : idOrPath;
    const Json json = parseJson(readTextFile(path), path);
    Findings findings(path);
    const JsonCursor cursor(json, findings);
    cursor.require("schema", std::string("\"") + kSchema + "\"");
    Cluster cluster = clusterFromJson(cursor, shipped ? idOrPath : fs::path(path).stem().string());
    findings.throwIfAny();
    return cluster;
}

Json toJson(const Cluster& cluster)
{
    Json json{{"schema", kSchema}, {"name", cluster.name}};
    Json gpu{{"name", cluster.gpu.name},
             {"compute_capability", cluster.gpu.computeCapability},
             {"multiprocessors", cluster.gpu.multiprocessors},
             {"power", toJson(cluster.gpu.power, Dimension::Watts)},
             {"memory", toJson(cluster.gpu.memory, Dimension::Bytes)},
             {"memory_bandwidth", toJson(cluster.gpu.memoryBandwidth, Dimension::BytesPerSecond)},
             {"peak_flops", Json::object()}};
    for (const auto& [dtype, figure] : cluster.gpu.peakFlops)
        gpu["peak_flops"][std::string(nameOf(dtype))] = toJson(figure, Dimension::FlopsPerSecond);
    for (const auto& [rate, figure] : cluster.gpu.measuredRates)
        gpu["rates"][std::string(nameOf(rate))] = toJson(figure, dimensionOf(rate));
    if (cluster.gpu.multiprocessors == 0)
        gpu.erase("multiprocessors");
    if (cluster.gpu.power.value == 0)
        gpu.erase("power");
    json["gpu"] = std::move(gpu);
    json["gpus_per_node"] = cluster.gpusPerNode;
    json["nodes"] = cluster.nodes;
    json["intra_node"] = toJson(cluster.intraNode);
    json["inter_node"] = toJson(cluster.interNode);
    json["host"] = {{"memory", toJson(cluster.hostMemory, Dimension::Bytes)},
                    {"memory_bandwidth", toJson(cluster.hostMemoryBandwidth, Dimension::BytesPerSecond)},
                    {"cpu_cores", cluster.cpuCores},
                    {"pcie_bandwidth", toJson(cluster.pcieBandwidth, Dimension::BytesPerSecond)}};
    if (cluster.nvmeCapacity.value > 0)
        json["nvme"] = {{"capacity", toJson(cluster.nvmeCapacity, Dimension::Bytes)},
                        {"read_bandwidth", toJson(cluster.nvmeReadBandwidth, Dimension::BytesPerSecond)},
                        {"write_bandwidth", toJson(cluster.nvmeWriteBandwidth, Dimension::BytesPerSecond)}};
    if (cluster.storageBandwidth.value > 0)
        json["storage_bandwidth"] = toJson(cluster.storageBandwidth, Dimension::BytesPerSecond);
    if (cluster.pricePerGpuHour.value > 0)
        json["price_per_gpu_hour"] = toJson(cluster.pricePerGpuHour, Dimension::DollarsPerHour);
    return json;
}

} // namespace shardwright
