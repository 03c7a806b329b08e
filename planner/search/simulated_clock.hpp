#pragma once

#include "planner/search/clock.hpp"

namespace shardwright::search {

/// A clock that simulates schedules, as plans do: seconds() is what StepTime::seconds of the candidate's plan is.
/// Infinite where the cluster lacks what an operation runs on.
std::unique_ptr<Clock> simulatedClock();

} // namespace shardwright::search
