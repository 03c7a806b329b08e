#pragma once

// The comparison with published figures, for people and for programs.

#include <string>
#include <vector>

#include "core/json.hpp"
#include "planner/published/comparison.hpp"
#include "planner/report/table.hpp"

namespace shardwright {

inline constexpr const char* kPublishedSchema = "shardwright-published/1";

/// One row per figure: memory in GiB, traffic between nodes in GB, time in s.
Table publishedTable(const std::vector<FigureComparison>& figures);

/// One row per source and one for all.
Table publishedSummaryTable(const std::vector<FigureComparison>& figures);

/// Both tables, why figures cannot be right, and what was refused. Unless `everything`, figures that tell nothing new
/// have no row: "fits" told right, and what is not predicted and not objected to. A line says how many those are.
std::string publishedText(const std::vector<FigureComparison>& figures, const OutputStyle& style, bool everything);

/// One figure in base units: bytes, seconds, TFLOP/s or parameters.
Json figureToJson(const FigureComparison& figure);

/// Figures in base units (bytes, seconds, TFLOP/s, parameters) with the summaries.
Json publishedToJson(const std::vector<FigureComparison>& figures);

} // namespace shardwright
