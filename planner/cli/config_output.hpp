#pragma once

// Configuration files as an answer: written into a folder, or shown on standard output.

#include <string>

#include "core/json.hpp"
#include "planner/cli/output.hpp"
#include "planner/configs/configs.hpp"

namespace shardwright::cli {

/// Delivers the files. With -o they are written into its folder, all or (when one exists and --force is missing) none,
/// and `beside` goes to standard output. Without -o the files go to standard output, more than one with their names
/// above them, and `beside` to standard error, so that a single file can be redirected. With --format json everything
/// is one object on standard output, which has the members of `more` too.
void deliver(const ConfigExport& config, const std::string& beside, const Json& more, const OutputOptions& output);

/// "in the script: gradient clipping: ...", one note a line.
std::string noteLines(const std::vector<ConfigNote>& notes);

Json toJson(const std::vector<ConfigNote>& notes);

/// Adds --to, whose words stand in `formatHelp()`.
void addFormatOption(CLI::App& app, std::string& word);
std::string formatHelp();

} // namespace shardwright::cli
