#pragma once

#include <string>

#include "core/cluster.hpp"
#include "core/json.hpp"

namespace shardwright {

/// More nodes or GPUs per node than anybody builds; their product stays far inside 64 bits.
constexpr int kMostNodes = 100000000;
constexpr int kMostGpusPerNode = 1000000;

/// Reads a cluster by shipped id ("dgx-a100-80gb") or by path. `nodes` of the result is as the file says (default 1).
Cluster readCluster(const std::string& idOrPath);

/// Reads a cluster that stands at `cursor`; problems go to its findings.
Cluster clusterFromJson(const JsonCursor& cursor, const std::string& id);

/// Reads what may be said of a cluster beside its hardware: storage_bandwidth and price_per_gpu_hour.
void readRunningCosts(const JsonCursor& cursor, Cluster& cluster);

/// Reports at `cursor` when the cluster has more GPUs or nodes than links to join them.
void checkLinks(const JsonCursor& cursor, const Cluster& cluster);

Json toJson(const Cluster& cluster);

/// The text of `shardplan clusters --describe`: how to write one's own cluster file, field by field, with units.
std::string describeClusterFormat();

} // namespace shardwright
