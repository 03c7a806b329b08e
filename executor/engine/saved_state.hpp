#pragma once

// Parameters and optimizer states out of the buffers and back.

#include <vector>

#include "core/plan_file.hpp"
#include "executor/comm/transport.hpp"
#include "executor/engine/buffers.hpp"
#include "executor/state/training_state.hpp"

namespace shardwright {

/// The state between two steps as views into `buffers`; what files hold is read into `staged`, which must live as long.
TrainingState savedState(Buffers& buffers, const ExecutablePlan& plan, std::int64_t rank, std::int64_t step,
                         std::vector<std::vector<std::byte>>& staged);

/// Writes `saved` into every live buffer that holds parameters or optimizer states. Elements of which this rank's
/// pieces say nothing come from the rank that has them: collective over all ranks.
void restoreState(const TrainingState& saved, Buffers& buffers, const ExecutablePlan& plan, Transport& transport);

} // namespace shardwright
