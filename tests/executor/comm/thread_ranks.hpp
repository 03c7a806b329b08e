#pragma once

// Ranks as threads, for tests.

#include <functional>
#include <string>
#include <vector>

#include "executor/comm/transports.hpp"

namespace shardwright {

/// Runs `body` on every rank, each a thread; returns what each rank ended with: the text of its exception, or nothing.
/// As a program would, a rank that fails aborts the others.
std::vector<std::string> runRanks(int ranks, const ThreadTransportOptions& options,
                                  const std::function<void(Transport&)>& body);

} // namespace shardwright
