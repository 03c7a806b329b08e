#pragma once

// A recorded schedule as JSON, row by row: "ops" and the lists beside it are arrays of arrays, in the order of the
// structs' fields in core/schedule.hpp and core/actions.hpp. Part of plan.json.

#include <vector>

#include "core/json.hpp"
#include "core/plan_file.hpp"

namespace shardwright {

Json toJson(const Schedule& schedule);

/// Fills plan.schedule; its texts come to live in plan.texts and plan.specs. Findings: wrong types, ids out of range,
/// ranges that leave their lists, buffers that are used before they are allocated or freed twice.
void readSchedule(const JsonCursor& cursor, const std::vector<NamedParameter>& parameters, std::int64_t layers,
                  ExecutablePlan& plan);

} // namespace shardwright
