#pragma once

// Predicted beside measured.

#include <string>
#include <vector>

#include "core/measurement.hpp"
#include "core/plan_file.hpp"

namespace shardwright {

/// How close a figure must come. Exact: to the byte, to the message.
enum class Tolerance : std::uint8_t { Exact, OnePercent, FifteenPercent, ForInformation };

struct ValidationRow {
    std::string quantity; // "parameters, gpu", "all-gather over shard: bytes", "step time"
    std::string unit;     // "B", "messages", "s"
    double predicted = 0;
    double measured = 0;
    Tolerance tolerance = Tolerance::Exact;
    std::string remark;   // names the operation where the two part, or why a row is for information only
    double rounding = 0;  // of Exact: below this the two may part, because the plan says whole bytes a call
    double error() const; // (predicted - measured) / measured; 0 where both are 0
    bool within() const;
};

struct ValidationReport {
    std::vector<ValidationRow> rows;
    std::string notJudged; // why nothing can be said of the rows; empty where it can
    /// Judged, and every row keeps its tolerance.
    bool within() const;
};

/// Lays the plan's figures beside the measured ones: model states, peak and held memory by category and place, host and
/// NVMe bytes, traffic by collective and group, step time. The rank with the most memory counts; a rank that differs
/// from it where the plan says they are alike is a row of its own. `timeCounts`: the step time has to keep its
/// tolerance (a calibrated machine, steps over 0.2 s). A plan describes a step of the steady state: a run that ended
/// before its first such step is not judged.
ValidationReport validate(const ExecutablePlan& plan, const Measurement& measurement, bool timeCounts);

/// A table for people: predicted, measured, error, within tolerance.
std::string tableOf(const ValidationReport& report);
Json toJson(const ValidationReport& report);

} // namespace shardwright
