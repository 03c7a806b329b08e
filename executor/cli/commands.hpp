#pragma once

// The commands of shardrun. Each addX() declares the command's options on `root` and gives what runs it; one file per
// command.

#include "core/cli/program.hpp"

namespace shardwright::cli {

Command addRun(CLI::App& root);
Command addCalibrate(CLI::App& root);
Command addValidateAll(CLI::App& root);
Command addConvertCheckpoint(CLI::App& root);

} // namespace shardwright::cli
