#pragma once

// What a run must keep to go on: a rank's pieces of parameters and optimizer states.

#include <cstdint>
#include <vector>

#include "core/actions.hpp"
#include "executor/tensor_view.hpp"

namespace shardwright {

/// Elements [first, first + count) of a tensor's quantity, in memory that the rank owns. Of Moments, `moment` says
/// which: 0 exp_avg, 1 exp_avg_sq. Errors (0 the worker's, 1 the server's) are a rank's own, padding included: rank r's
/// stand behind those of the ranks before it, and mean nothing to another number of `ranks`.
struct StatePiece {
    Quantity quantity = Quantity::Parameters;
    int moment = 0;
    std::int32_t tensor = 0; // index into listParameters(model)
    std::int64_t first = 0;
    std::int64_t count = 0;
    TensorView values;      // of `count` elements
    bool mine = true;       // false: a lower rank holds the same piece; a checkpoint leaves it to that rank
    std::int64_t ranks = 0; // of errors: that have as many elements each
};

/// A rank's pieces, each element once per quantity: the most exact copy (master parameters before 16-bit ones). Pieces
/// of other ranks may hold the same elements (replicas).
struct TrainingState {
    std::int64_t step = 0; // optimizer steps done
    std::vector<StatePiece> pieces;
};

} // namespace shardwright
