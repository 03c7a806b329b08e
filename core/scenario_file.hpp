#pragma once

#include <string>
#include <vector>

#include "core/json.hpp"
#include "core/scenario.hpp"

namespace shardwright {

/// Reads a scenario file; all problems of the file, of its model and of its cluster come as one InputError.
Scenario readScenario(const std::string& path);

/// Reads a scenario from parsed JSON. `file` names it in messages; relative paths in it are taken from its folder. A
/// scenario without "strategies" compares every predefined one but the native ones; "all" in the list stands for them.
Scenario scenarioFromJson(const Json& json, const std::string& file);

/// The scenario as JSON that scenarioFromJson reads back to an equal one: model by id where it ships, else inline or by
/// absolute path; cluster by id where it ships unchanged but for its size, else inline.
Json toJson(const Scenario& scenario);

Training trainingFromJson(const JsonCursor& cursor);
Json toJson(const Training& training);

/// A strategy: a text (one of strategyNames()), or an object {"name", "framework", options under the framework's
/// names}. Only types and ranges are checked: what the framework forbids is its room's business. gpusPerNode fills the
/// group sizes of predefined hybrid strategies.
Strategy strategyFromJson(const JsonCursor& cursor, int gpusPerNode);
Json toJson(const Strategy& strategy);

/// The predefined names: "ddp", "fsdp1-full-shard", ..., "deepspeed-zero3-offload-nvme".
std::vector<std::string> strategyNames();

/// The strategy of that predefined name, with what a search writes behind it: "-8" (ranks of a shard group), parts of
/// ZeRO++ "-qwz-hpz-qgz", "-offload..." and how the model is split, "-tp8sp-pp4v2-cp2u-ep8-etp1" (scenarios/README.md).
/// Nothing when there is none. gpusPerNode fills the sizes of groups; 0: a node may have as many as the name says.
std::optional<Strategy> strategyByName(const std::string& name, int gpusPerNode);

} // namespace shardwright
