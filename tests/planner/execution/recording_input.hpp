#pragma once

// Small inputs whose recorded schedules can be played, and options that shardrun carries out.

#include <optional>
#include <string>
#include <vector>

#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {

/// What surrounds a strategy.
struct Conditions {
    int nodes = 1;
    int gpusPerNode = 1;
    std::int64_t accumulation = 1;
    std::optional<DType> mixed = std::nullopt;
    bool tied = false;
    Checkpointing checkpointing = Checkpointing::None;
    Optimizer optimizer = Optimizer::AdamW;

    std::string text() const; // "2 x 4 ranks, accumulation 2, bf16, tied"
};

/// A Llama whose sizes no number of ranks divides all.
SmallInput recordingInput(const StrategyOptions& options, const Conditions& conditions);

/// A GPT-2 of that size.
Model smallGpt2();

/// DeepSpeed's options on few ranks, as shardrun carries them out: groups of two ranks; on NVMe all of it, through
/// buffers of `bufferElements`.
DeepSpeedOptions fittedToTwo(const StrategyOptions& options, std::int64_t bufferElements);

/// Each on a line of its own; "" for none.
std::string textOf(const std::vector<std::string>& problems);

/// Expects that the schedule, wherever it is not refused, plays without problems.
void expectSound(const std::string& name, const StrategyOptions& options, const Conditions& conditions);

/// Expects that the play notices every action that is left out, but for those that are `inVain`.
void expectEveryActionCounts(const std::string& name, const SmallInput& input,
                             bool (*inVain)(const Schedule& schedule, std::size_t action) = nullptr);

} // namespace shardwright
