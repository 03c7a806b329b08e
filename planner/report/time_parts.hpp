#pragma once

// The parts of a step's time as reports name and draw them.

#include <string_view>
#include <vector>

#include "core/plan.hpp"
#include "planner/report/stacked_bar.hpp"

namespace shardwright {

struct TimePart {
    Part part;
    std::string_view name;    // "exposed communication"
    std::string_view field;   // of the JSON contract: "exposed_communication"
    std::string_view meaning; // what the seconds are
    double StepBreakdown::*seconds;
};

/// All of them, in the order of the contract.
const std::vector<TimePart>& timeParts();

/// How they look in bars, in the same order, and how long each is.
const std::vector<Part>& timePartLooks();
std::vector<double> timeStack(const StepBreakdown& breakdown);

} // namespace shardwright
