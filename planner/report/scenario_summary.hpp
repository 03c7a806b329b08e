#pragma once

// The question, in a few lines: stands above every answer for people.

#include <string>

#include "core/scenario.hpp"
#include "planner/report/terminal.hpp"

namespace shardwright {

/// Name and question, then model, cluster and training, one line each.
std::string scenarioSummary(const Scenario& scenario, const OutputStyle& style);

/// "bf16 mixed precision, adamw, ...": the training settings that differ between runs, on one line.
std::string trainingSummary(const Training& training);

/// "vendor", "measured" or "assumed", with the source: "vendor: NVIDIA A100 datasheet".
std::string provenanceText(Provenance tag, const std::string& source);

} // namespace shardwright
