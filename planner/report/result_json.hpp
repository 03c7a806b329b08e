#pragma once

// The answer for programs. Every field is documented, with its unit, in planner/README.md.

#include <optional>
#include <string>
#include <vector>

#include "core/json.hpp"
#include "core/plan.hpp"
#include "core/scenario.hpp"

namespace shardwright {

inline constexpr const char* kResultSchema = "shardwright-result/1";

/// Summary: what a comparison needs. Full: also the live items of the peak, the memory curve and the host's items.
enum class ReportDetail : std::uint8_t { Summary, Full };

Json planToJson(const Plan& plan, ReportDetail detail = ReportDetail::Full);

/// A whole answer. Nothing recommended: "recommended" is null.
Json resultToJson(const Scenario& scenario, const std::vector<Plan>& plans,
                  const std::optional<Recommendation>& recommendation, ReportDetail detail = ReportDetail::Summary);

/// JSON as a text, indented by so many spaces (-1: one line). Names that are not UTF-8 are shown with U+FFFD.
std::string jsonText(const Json& json, int indent = 2);

/// One line per plan, bytes as integers; the columns are the fields of the JSON form joined by dots.
std::string plansToCsv(const std::vector<Plan>& plans);

} // namespace shardwright
