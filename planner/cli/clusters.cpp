#include <cmath>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/catalogue.hpp"
#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"
#include "planner/cli/rows.hpp"
#include "planner/report/result_json.hpp"
#include "planner/report/scenario_summary.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan clusters
  shardplan clusters dgx-a100-80gb
  shardplan clusters dgx-h100 --format json
  shardplan clusters --describe

--format json of one cluster is a cluster file: save it, change it, and name it with --cluster.)";

struct Options {
    std::string cluster;
    bool describe = false;
    OutputOptions output;
};

/// A figure in a unit of `scale` base units, to three digits after the point at most.
Json scaled(const Figure& figure, double scale)
{
    if (figure.value == 0)
        return nullptr;
    constexpr double kDigits = 1e3;
    return Json(std::round(figure.value / scale * kDigits) / kDigits);
}

std::string linkName(const Link& link)
{
    return link.kind == LinkKind::None ? std::string() : std::string(nameOf(link.kind));
}

Json summary(const Cluster& cluster)
{
    return {{"id", cluster.id},
            {"gpu", cluster.gpu.name},
            {"gpus_per_node", cluster.gpusPerNode},
            {"gpu_memory_gib", scaled(cluster.gpu.memory, kGiB)},
            {"in_node", linkName(cluster.intraNode)},
            {"in_node_gb_per_s", scaled(cluster.intraNode.bandwidth, kGB)},
            {"between_nodes", linkName(cluster.interNode)},
            {"between_nodes_gb_per_s", scaled(cluster.interNode.bandwidth, kGB)},
            {"host_memory_gib", scaled(cluster.hostMemory, kGiB)},
            {"pcie_gb_per_s", scaled(cluster.pcieBandwidth, kGB)},
            {"nvme_tb", scaled(cluster.nvmeCapacity, 1000 * kGB)}};
}

/// Every figure of a cluster with its source.
std::vector<Json> figureRows(const Cluster& cluster)
{
    std::vector<Json> rows;
    const auto add = [&rows](const std::string& what, const Figure& figure, double scale, const char* unit) {
        if (figure.value != 0)
            rows.push_back({{"figure", what},
                            {"value", fmt::format("{} {}", scaled(figure, scale).dump(), unit)},
                            {"origin", provenanceText(figure.tag, figure.source)}});
    };
    constexpr double kTera = 1e12;
    constexpr double kMicro = 1e-6;
    add("GPU memory", cluster.gpu.memory, kGiB, "GiB");
    add("GPU memory bandwidth", cluster.gpu.memoryBandwidth, kGB, "GB/s");
    for (const auto& [dtype, peak] : cluster.gpu.peakFlops)
        add(fmt::format("peak {}", nameOf(dtype)), peak, kTera, "TFLOP/s");
    add("power of a GPU", cluster.gpu.power, 1, "W");
    add("link in a node, per GPU", cluster.intraNode.bandwidth, kGB, "GB/s");
    add("its latency", cluster.intraNode.latency, kMicro, "us");
    add("link between nodes, per node", cluster.interNode.bandwidth, kGB, "GB/s");
    add("its latency", cluster.interNode.latency, kMicro, "us");
    add("host memory", cluster.hostMemory, kGiB, "GiB");
    add("host memory bandwidth", cluster.hostMemoryBandwidth, kGB, "GB/s");
    add("PCIe, per GPU", cluster.pcieBandwidth, kGB, "GB/s");
    add("NVMe", cluster.nvmeCapacity, kTera, "TB");
    add("NVMe reading", cluster.nvmeReadBandwidth, kGB, "GB/s");
    add("NVMe writing", cluster.nvmeWriteBandwidth, kGB, "GB/s");
    add("storage for checkpoints, whole cluster", cluster.storageBandwidth, kGB, "GB/s");
    add("price of a GPU", cluster.pricePerGpuHour, 1, "$/h");
    return rows;
}

void show(const Cluster& cluster, const OutputOptions& output)
{
    if (output.format() == Format::Json) {
        output.write(jsonText(toJson(cluster)) + '\n');
        return;
    }
    std::string links;
    if (cluster.intraNode.kind != LinkKind::None)
        links += fmt::format(", {} in a node", nameOf(cluster.intraNode.kind));
    if (cluster.interNode.kind != LinkKind::None)
        links += fmt::format(", {} between nodes", nameOf(cluster.interNode.kind));
    writeRows(figureRows(cluster), output,
              fmt::format("{}: {}\n{} x {} a node{}, {} CPU cores\n\n", cluster.id, cluster.name, cluster.gpusPerNode,
                          cluster.gpu.name, links, cluster.cpuCores));
}

ExitCode clusters(const Options& options)
{
    if (options.describe) {
        options.output.write(describeClusterFormat());
        return ExitCode::Done;
    }
    if (!options.cluster.empty()) {
        show(readCluster(options.cluster), options.output);
        return ExitCode::Done;
    }
    std::vector<Json> rows;
    for (const std::string& id : clusterIds())
        rows.push_back(summary(readCluster(id)));
    writeRows(rows, options.output);
    return ExitCode::Done;
}

} // namespace

Command addClusters(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("clusters", "The clusters that ship, and how to describe one's own");
    app->footer(kHelp);
    app->add_option("cluster", options->cluster, "show this one with the source of each figure")->type_name("ID|PATH");
    app->add_flag("--describe", options->describe, "how to write a cluster file, field by field");
    options->output.add(*app, findings, Formats::TextJsonCsv);
    return {app, [options] { return clusters(*options); }};
}

} // namespace shardwright::cli
