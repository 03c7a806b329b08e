#pragma once

#include <string>
#include <vector>

#include "core/json_cursor.hpp"
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

/// The strategy of that predefined name, with how the model is split besides where "-tp8sp-pp4v2-cp2u-ep8-etp1" or a
/// part of it stands behind ("sp": the sequence is split too; "v2": two chunks a stage, interleaved; "ag", "u":
/// all-gather, Ulysses; "etp": expert_tensor). Nothing when there is none. gpusPerNode fills hybrid group sizes.
std::optional<Strategy> strategyByName(const std::string& name, int gpusPerNode);

} // namespace shardwright
