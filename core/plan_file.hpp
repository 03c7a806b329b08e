#pragma once

// plan.json: one strategy's plan with its schedule, as shardplan hands it to shardrun. It stands alone: the model's
// config, the training description, the ranks, the operations with their contents, and the figures that were predicted.

#include <deque>
#include <memory>
#include <string>

#include "core/json_cursor.hpp"
#include "core/scenario.hpp"
#include "core/schedule.hpp"

namespace shardwright {

/// Version of plan.json; a file of another one is refused by name.
constexpr int kPlanFormat = 1;

/// What a plan file says. It can be moved, not copied: `schedule` points into `texts` and `specs`, whose elements stay
/// where they are when a deque moves.
struct ExecutablePlan {
    ExecutablePlan() = default;
    ExecutablePlan(ExecutablePlan&&) = default;
    ExecutablePlan& operator=(ExecutablePlan&&) = default;
    ExecutablePlan(const ExecutablePlan&) = delete;
    ExecutablePlan& operator=(const ExecutablePlan&) = delete;

    std::string scenario;    // its name
    std::string modelConfig; // text of the Hugging Face config.json
    Model model;
    Training training;
    Strategy strategy;
    std::int64_t ranks = 1; // GPUs of the cluster it was planned for
    std::int64_t ranksPerNode = 1;
    Schedule schedule;
    Json prediction;  // the result for the strategy, as planner/README.md defines it
    std::string file; // where it was read from

    std::deque<std::string> texts;
    std::deque<BufferSpec> specs;
};

/// The plan as text. `schedule` must be executable().
std::string planFileText(const ExecutablePlan& plan);

/// The file around a plan's body: kind, version and checksum.
std::string sealedPlan(Json body);

/// Reads plan.json. InputError names the file and the place of all that is wrong: cut short or changed (a checksum says
/// so), of another version, ids out of range, buffers that are freed twice.
ExecutablePlan readPlanFile(const std::string& path);
ExecutablePlan planFromText(const std::string& text, const std::string& file);

} // namespace shardwright
