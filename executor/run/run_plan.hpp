#pragma once

// Runs a plan: every rank of this process a thread, step by step, until the steps are done or somebody stops it.

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/measurement.hpp"
#include "core/plan_file.hpp"
#include "executor/comm/transport.hpp"
#include "executor/engine/rank_executor.hpp"

namespace shardwright {

/// A step that all ranks have done.
struct StepDone {
    std::int64_t step = 0; // from 1
    std::int64_t steps = 0;
    double loss = 0;
    double seconds = 0; // of the rank that reports
    double tokensPerSecond = 0;
    Bytes peak; // of the reporting rank's device memory
};

struct RunSettings {
    std::int64_t steps = 20;
    std::uint64_t seed = 1;
    std::string text;                           // file whose bytes are the tokens; empty: synthetic ones
    std::shared_ptr<const BatchSource> batches; // instead of both
    std::string weights;                        // safetensors file or folder; empty: seeded ones
    ExecutorOptions executor;
    std::string checkpoints;                        // folder; empty: none are written
    std::int64_t checkpointEvery = 0;               // steps; 0: after the last one only
    std::string resume;                             // a checkpoint, or a folder of them
    std::function<void(const StepDone&)> afterStep; // called by the lowest rank of this process
    std::function<void(const std::string&)> remark; // called with what the user should know, before the first step
    const std::atomic<bool>* stop = nullptr;        // set from anywhere: all ranks end as soon as they can
};

/// Runs `plan` on the ranks whose ends this process has; all processes of a run call it. Gives what was measured, by
/// all ranks; complete = false where it was stopped. A failure of one rank ends all and is thrown: InputError,
/// EnvironmentError, OutOfMemory, TransportError; its text names the rank.
Measurement runPlan(const ExecutablePlan& plan, const RunSettings& settings,
                    const std::vector<std::unique_ptr<Transport>>& ends);

} // namespace shardwright
