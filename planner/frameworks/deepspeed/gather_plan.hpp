#pragma once

// ZeRO-3's parameter coordinator over a model's own trace: when each parameter is gathered, ahead of its use or at it,
// and when it is let go. Everything here is decided by parameter sizes and thresholds in elements, not by the number of
// ranks, and is the same in every step once the trace is recorded. Source: DeepSpeed
// runtime/zero/partitioned_param_coordinator.py ("coordinator"), runtime/zero/partition_parameters.py.

#include <cstdint>
#include <vector>

#include "core/strategy.hpp"
#include "planner/frameworks/deepspeed/tensor_order.hpp"

namespace shardwright {

/// A run of equal tensors that are gathered for computing.
struct TensorRun {
    std::int64_t numel = 0; // of one
    std::int64_t count = 1;
    bool frozen = false;

    auto operator<=>(const TensorRun&) const = default;
};
using TensorRuns = std::vector<TensorRun>;

/// What is fetched and released together: a module's own parameters, or all of a mixture-of-experts block (a "z3 leaf
/// module"). Units that are alike share a type.
struct GatherUnitType {
    int layerType = -1;
    TensorRuns tensors;              // those that are not persistent
    std::int64_t elements = 0;       // of `tensors`
    std::int64_t tracedElements = 0; // persistent ones too: what the reuse distance counts
    bool linear = false;             // autograd's own linear keeps its weight for backward
};

struct GatherUnit {
    int type = 0;
    int layer = 0;
};

/// One all-gather call. More than one tensor: they share a flat buffer, and each is copied out of it when the first of
/// them is needed; the buffer lives until the last of them is.
struct GatherCall {
    int kind = 0;
    std::int32_t firstPiece = 0; // into GatherTrace::pieces
    std::int32_t endPiece = 0;
    bool secondary = false; // within the hpZ group
};

/// The tensors of one unit in one gather call: what a release frees.
struct GatherPiece {
    int kind = 0;
    int unit = 0;
    std::vector<std::int32_t> tensors; // indices into listParameters, where they are asked for
};

struct GatherCommand {
    enum class Kind : std::uint8_t { Gather, Wait, DropFlat, Free, MakeSecondary };
    Kind kind = Kind::Gather;
    std::int32_t index = 0; // of the call, the piece, or the unit
};

/// The commands of one micro-step, by visit: before and after the module runs.
struct GatherTrace {
    std::vector<GatherCall> calls;
    std::vector<GatherPiece> pieces;
    std::vector<GatherCommand> commands;
    std::vector<std::uint32_t> beforeEnd; // by visit: commands up to here run before it ...
    std::vector<std::uint32_t> afterEnd;  // ... and up to here after it
    std::int64_t gatheredElements = 0;
    std::int64_t mostLiveElements = 0; // of unsharded parameters, persistent ones left out
};

struct GatherPlan {
    std::vector<GatherUnitType> types;
    std::vector<GatherUnit> units;
    std::vector<TensorRuns> callKinds;           // tensors of a gather call, by kind
    std::vector<TensorRuns> pieceKinds;          // tensors of a piece, by kind
    TensorRuns persistent;                       // tensors that stay gathered
    std::vector<std::int32_t> persistentTensors; // they, by their indices into listParameters
    std::vector<bool> endsUnit;                  // by visit: the unit's last module in this pass
    GatherTrace first;                           // the first micro-step of a step
    GatherTrace later;                           // the others; differs from the first under hpZ only
};

/// `namesTensors`: says which tensors the pieces are, for schedules that are carried out.
GatherPlan planGathers(const ActivationModel& activations, const std::vector<Visit>& visits,
                       const DeepSpeedOptions& options, bool namesTensors = false);

} // namespace shardwright
