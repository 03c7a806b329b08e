#pragma once

namespace shardwright::cli {

/// The whole program: reads the command line, runs one command, maps what went wrong to an exit code. Never throws.
int runShardrun(int argc, const char* const* argv);

} // namespace shardwright::cli
