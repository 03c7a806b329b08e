#pragma once

// DeepSpeed's keys <-> DeepSpeedOptions: "zero_optimization" with its offload blocks, "aio", "data_types",
// "communication_data_type" and the storage flags of "bf16". Names, aliases, defaults and bounds as in DeepSpeed
// 0.19.6: runtime/zero/config.py, runtime/zero/offload_config.py, runtime/swap_tensor/aio_config.py,
// runtime/precision_config.py.

#include <optional>
#include <string>
#include <vector>

#include "core/json_cursor.hpp"
#include "core/strategy.hpp"
#include "core/training.hpp"

namespace shardwright {

/// A deprecated setting and what it became.
struct Rewrite {
    std::string place; // JSON pointer
    std::string text;
};

/// What was read besides the values that DeepSpeedOptions has fields for.
struct DeepSpeedExtras {
    std::vector<std::string> automatic; // JSON pointers of values that are "auto"; the option keeps its default
    std::vector<Rewrite> rewritten;
    std::vector<std::string> ignored; // pointers of keys that DeepSpeed reads nowhere, in blocks that allow them
    Json carried = Json::object();    // keys that no option stands for, ignored ones too, in their places
};

/// The options of a file that says nothing: DeepSpeed's own defaults (stage 0, nothing gathered on save).
DeepSpeedOptions deepSpeedFileDefaults();

/// The keys that readDeepSpeedOptions reads from an object.
const std::vector<std::string>& deepSpeedOptionKeys();

/// Reads `object`'s deepSpeedOptionKeys() over `options`; other keys are the caller's. Of "bf16" only the storage flags
/// are options; "enabled" is the caller's, the rest is carried. Problems go to the cursor's findings.
void readDeepSpeedOptions(const JsonCursor& object, DeepSpeedOptions& options, DeepSpeedExtras& extras);

/// One object with deepSpeedOptionKeys() that readDeepSpeedOptions reads back to equal options, overlap_comm resolved.
/// Every key that acts at the stage is written out, so that a change of DeepSpeed's defaults changes nothing.
Json deepSpeedOptionsJson(const DeepSpeedOptions& options);

/// overlap_comm as it acts: true for stage 3 and false below where it is not said.
bool overlapsCommunication(const DeepSpeedOptions& options);

/// A combination that DeepSpeed refuses or silently drops.
struct SettingProblem {
    std::string place; // JSON pointer: "/zero_optimization/offload_param/device"
    std::string what;
    std::string expected;
};

/// Every problem in the combination of options; `optimizer` where it is known.
std::vector<SettingProblem> findDeepSpeedProblems(const DeepSpeedOptions& options,
                                                  std::optional<Optimizer> optimizer = std::nullopt);

} // namespace shardwright
