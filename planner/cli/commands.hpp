#pragma once

// The commands of shardplan. Each addX() declares the command's options on `root` and gives what runs it; one file per
// command.

#include <functional>

#include "core/diagnostics.hpp"

namespace CLI {
class App;
}

namespace shardwright::cli {

/// What a program's exit code means; the same for every program of Shardwright.
enum class ExitCode : int {
    Done = 0,
    No = 1,           // the answer is no: nothing fits, a line of a batch failed
    BadInput = 2,     // findings were printed
    Environment = 3,  // the machine lacks something
    Interrupted = 130 // 128 + SIGINT, as shells report it
};

struct Command {
    CLI::App* app = nullptr;
    std::function<ExitCode()> run;
};

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
