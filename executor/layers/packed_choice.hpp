#pragma once

// Apart from packed_sets.hpp: what is compiled for newer processors must not hold functions of the standard library.

#include <vector>

#include "executor/layers/packed_sets.hpp"

namespace shardwright {

struct PackedSet {
    const char* name;
    PackedProduct* product;
};

/// Those that were built and that this processor runs, the best first: packedProduct takes that one.
std::vector<PackedSet> packedSets();

} // namespace shardwright
