#pragma once

// The commands of shardplan. Each addX() declares the command's options on `root` and gives what runs it; one file per
// command.

#include "core/cli/program.hpp"
#include "core/diagnostics.hpp"

namespace shardwright::cli {

// What is wrong on the command line itself goes to `findings`, so that all of it is told at once.
Command addCompare(CLI::App& root, Findings& findings);
Command addSearch(CLI::App& root, Findings& findings);
Command addExplain(CLI::App& root, Findings& findings);
Command addTrace(CLI::App& root, Findings& findings);
Command addExport(CLI::App& root, Findings& findings);
Command addConvert(CLI::App& root, Findings& findings);
Command addImport(CLI::App& root, Findings& findings);
Command addBatch(CLI::App& root, Findings& findings);
Command addValidate(CLI::App& root, Findings& findings);
Command addLedger(CLI::App& root, Findings& findings);
Command addModels(CLI::App& root, Findings& findings);
Command addClusters(CLI::App& root, Findings& findings);
Command addStrategies(CLI::App& root, Findings& findings);
Command addCompletion(CLI::App& root, Findings& findings);

} // namespace shardwright::cli
