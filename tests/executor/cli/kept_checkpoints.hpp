#pragma once

// What a run left in its folder of checkpoints.

#include <string>

namespace shardwright::testing {

/// Expects every file under its final name to be whole, and every folder with a manifest to be a checkpoint; returns
/// how many there are.
int expectWholeCheckpoints(const std::string& folder);

} // namespace shardwright::testing
