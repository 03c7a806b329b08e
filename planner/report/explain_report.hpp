#pragma once

// One plan in full, for people: every figure with its formula, the inputs and their sources, what is assumed and what
// is left out.

#include <string>

#include "core/plan.hpp"
#include "core/scenario.hpp"
#include "planner/report/terminal.hpp"

namespace shardwright {

/// The whole explanation.
std::string explainText(const Scenario& scenario, const Plan& plan, const OutputStyle& style);

// Its sections, each with a title; empty where the plan has nothing of the kind.

/// The symbols of the formulas with their values, and the figures of the hardware with their sources.
std::string explainInputs(const Scenario& scenario, const OutputStyle& style);
/// From model states to what the device shows as used, each line with how it comes about.
std::string explainGpuMemory(const Scenario& scenario, const Plan& plan, const OutputStyle& style);
/// Every class of buffers that is live at the peak, largest first.
std::string explainPeak(const Plan& plan, const OutputStyle& style);
/// Live bytes over the step, drawn.
std::string explainCurve(const Plan& plan, const OutputStyle& style);
std::string explainHostAndNvme(const Scenario& scenario, const Plan& plan, const OutputStyle& style);
std::string explainTraffic(const Scenario& scenario, const Plan& plan, const OutputStyle& style);
/// The step's seconds: a bar of its parts, rates and money, and what holds it up.
std::string explainTime(const Scenario& scenario, const Plan& plan, const OutputStyle& style);
std::string explainCheckpoint(const Plan& plan, const OutputStyle& style);
/// What is assumed, and what the figures leave out.
std::string explainNotes(const Plan& plan, const OutputStyle& style);

} // namespace shardwright
