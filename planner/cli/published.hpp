#pragma once

#include <string>
#include <vector>

#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"

namespace shardwright::cli {

/// `compare --published`: figures of `files`, or of all that ship. `flags` that change the question are refused: a
/// figure belongs to the settings that it was measured with.
ExitCode comparePublishedFigures(const std::vector<std::string>& files, const std::vector<std::string>& flags,
                                 const OutputOptions& output);

} // namespace shardwright::cli
