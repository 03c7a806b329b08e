#pragma once

#include <string>
#include <vector>

#include "core/json.hpp"
#include "core/scenario.hpp"

namespace shardwright {

/// The list at `cursor`: {"strategy", "over", "over_changes", "kind", "value", "unit", "window", "source", "note",
/// "disputed"}. A strategy that is not among `strategies` is reported.
std::vector<PublishedFigure> publishedFromJson(const JsonCursor& cursor, const std::vector<std::string>& strategies);

Json toJson(const PublishedFigure& figure);

} // namespace shardwright
