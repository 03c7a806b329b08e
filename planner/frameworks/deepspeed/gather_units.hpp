#pragma once

// The model as ZeRO-3's parameter coordinator meets it: which parameters come and go together, and which stay.

#include "planner/frameworks/deepspeed/gather_plan.hpp"

namespace shardwright {

struct GatherUnits {
    std::vector<GatherUnitType> types;
    std::vector<GatherUnit> units;
    TensorRuns persistent;
    std::vector<std::int32_t> persistentTensors; // indices into listParameters, where they are asked for
    std::vector<std::vector<int>> unitOf;        // by layer and module
    std::vector<std::size_t> tensorBase;         // by unit: tensors of those before it; behind the last: all
    std::vector<std::int32_t> names;             // by tensor: index into listParameters, where it is asked for

    const GatherUnitType& typeOf(int unit) const
    {
        return types[static_cast<std::size_t>(units[static_cast<std::size_t>(unit)].type)];
    }
    std::size_t tensors() const { return tensorBase.back(); }
    std::size_t tensorsOf(int unit) const
    {
        return tensorBase[static_cast<std::size_t>(unit) + 1] - tensorBase[static_cast<std::size_t>(unit)];
    }
    std::size_t tensorId(int unit, std::size_t tensor) const
    {
        return tensorBase[static_cast<std::size_t>(unit)] + tensor;
    }
    /// Of one tensor, but for its count.
    const TensorRun& tensorRun(int unit, std::size_t tensor) const;
};

/// `namesTensors`: as for planGathers().
GatherUnits gatherUnits(const ActivationModel& activations, const DeepSpeedOptions& options, bool namesTensors);

/// Whether a module is part of a mixture of experts, all of which is one unit.
bool belongsToExperts(ModuleKind kind);

/// Puts a run at the end, as part of the last one where it is alike.
void append(TensorRuns& runs, const TensorRun& run);

} // namespace shardwright
