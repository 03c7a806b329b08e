#pragma once

// Scenarios that carry somebody's measured figures: the files of scenarios/published/ and scenarios/.

#include <string>
#include <vector>

#include "core/scenario.hpp"

namespace shardwright {

/// The scenarios of one file: a .json holds one; a .jsonl holds one a line, empty lines apart. Problems of every line
/// come as one InputError whose findings name file and line ("mosaic.jsonl:12").
std::vector<Scenario> readPublishedFile(const std::string& path);

/// What ships with figures: scenarios/published/*.json and *.jsonl, then scenarios/*.json, each sorted by name.
std::vector<std::string> publishedFiles();

} // namespace shardwright
