#pragma once

// Which models and settings shardrun's layers (Training::implementation "shardrun") can train: the planner refuses the
// others before it plans, the executor before it runs.

#include <string>
#include <vector>

#include "core/training.hpp"

namespace shardwright {

/// Why the layers cannot train this model or with these settings, in the user's words; empty = they can.
std::vector<std::string> layerRefusals(const Model& model, const Training& training);

} // namespace shardwright
