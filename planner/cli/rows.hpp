#pragma once

#include <string>
#include <vector>

#include "core/json.hpp"
#include "planner/cli/output.hpp"

namespace shardwright::cli {

/// Rows of alike objects in any format: a table for people with `before` above it, a JSON array, or CSV. Text and CSV
/// head their columns with the objects' keys.
void writeRows(const std::vector<Json>& rows, const OutputOptions& output, const std::string& before = {});

} // namespace shardwright::cli
