#pragma once

// Tiny models trained on rank threads, and what their plans said of it.

#include <optional>
#include <string>
#include <vector>

#include "core/json.hpp"
#include "core/plan_file.hpp"
#include "core/scenario.hpp"
#include "executor/run/run_plan.hpp"

namespace shardwright {

/// All but the strategy.
struct SmallRun {
    std::string model; // its config.json
    int nodes = 1;
    int ranksPerNode = 1;
    std::int64_t accumulation = 1;
    std::optional<DType> mixed = std::nullopt;
    Optimizer optimizer = Optimizer::AdamW;
    Checkpointing checkpointing = Checkpointing::None;
};

/// 2 sequences of 16 tokens a micro-batch and rank.
Scenario scenarioOf(const StrategyOptions& options, const SmallRun& run);

/// The same as a user's file asks it, by the name of a strategy: `training` without what every small run has, on a host
/// whose nodes have `ranksPerNode` threads.
Scenario scenarioOf(const std::string& strategy, const Json& model, int nodes, int ranksPerNode, Json training);

/// The plan of the scenario's first strategy, through its file, as shardrun gets it.
ExecutablePlan planOf(const Scenario& scenario);

Measurement runOnThreads(const ExecutablePlan& plan, const RunSettings& settings);

/// Of one rank that makes a micro-step of every other rank's.
std::vector<double> lossesAlone(SmallRun run, const RunSettings& settings);

/// Memory, traffic and the rest that has a tolerance.
void expectAsPredicted(const ExecutablePlan& plan, const Measurement& measured, const std::string& what);

} // namespace shardwright
