#pragma once

// Texts of all ranks on every rank.

#include <string>
#include <vector>

#include "executor/comm/transport.hpp"

namespace shardwright {

/// Collective over all ranks; by rank.
std::vector<std::string> gatherText(const std::string& own, Transport& transport);

} // namespace shardwright
