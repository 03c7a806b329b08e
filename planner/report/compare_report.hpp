#pragma once

// Many plans side by side, for people.

#include <optional>
#include <string>
#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"
#include "planner/report/table.hpp"

namespace shardwright {

/// One row per plan. Memory in GiB as nvidia-smi and torch count it, traffic and NVMe in GB as links and drives are
/// sold. Rows: fastest first among those that fit, see planner/README.md. Columns that are empty for every plan (host,
/// NVMe, between nodes, step time) are left out.
Table compareTable(const std::vector<Plan>& plans, const std::optional<Recommendation>& recommendation,
                   const OutputStyle& style);

/// The question, the table, its legend, why plans do not fit and what would make them fit, and which to take.
std::string compareText(const Scenario& scenario, const std::vector<Plan>& plans,
                        const std::optional<Recommendation>& recommendation, const OutputStyle& style);

/// "fits", "tight", "does not fit", "not possible", and its colour.
Cell verdictCell(Verdict verdict);

} // namespace shardwright
