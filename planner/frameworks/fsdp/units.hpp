#pragma once

// FSDP units: which parameters are gathered, used and reduced together.

#include <string>
#include <vector>

#include "core/model.hpp"
#include "core/strategy.hpp"
#include "planner/activations/modules.hpp"

namespace shardwright {

/// Units that are alike (the blocks) share a UnitType.
struct UnitType {
    std::string name;                             // "block", "root", "embedding", "final norm and head"
    std::vector<const ParameterSpec*> parameters; // in forward order; ParameterSpec::repeat counts
    std::int64_t numel = 0;
    std::int64_t trainable = 0;
    int layerType = -1; // of the layer it lies in, -1 when it spans several
    bool root = false;
    bool experts = false; // a unit within a block's, used while the block's is
};

struct Unit {
    int type = 0;
    int firstLayer = 0; // position in Model::layers
    int lastLayer = 0;
};

struct UnitMap {
    std::vector<UnitType> types;
    std::vector<Unit> units; // in order of first use in forward; the root, if it has parameters, comes first
    std::vector<std::vector<int>> unitOf; // [layer position][module] -> unit

    const UnitType& typeOf(int unit) const
    {
        return types[static_cast<std::size_t>(units[static_cast<std::size_t>(unit)].type)];
    }
};

struct UnitPolicy {
    WrapPolicy wrap = WrapPolicy::Transformer;
    std::int64_t minNumParams = 100000000;
    bool separateHead = false;    // embedding is a unit, final norm and head are one
    bool separateExperts = false; // a block's experts are a unit of their own within the block's
};

/// Units under a wrap policy. TRANSFORMER_BASED_WRAP: every block, the rest in the root. SIZE_BASED_WRAP: bottom-up, a
/// module whose parameters not yet wrapped reach minNumParams (torch size_based_auto_wrap_policy); NO_WRAP: only the
/// root.
UnitMap unitsOf(const Model& model, const UnitPolicy& policy);

} // namespace shardwright
