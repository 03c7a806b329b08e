#pragma once

// Compress, AverageSigns and ExpandSigns: on whole buffers, padding included.

#include <span>

#include "core/actions.hpp"
#include "executor/engine/buffers.hpp"

namespace shardwright {

/// Carries out one of the three verbs. std::logic_error where the buffers do not fit each other.
void runSignVerb(Verb verb, Buffers& buffers, std::span<const BufferId> reads, std::span<const BufferId> writes);

} // namespace shardwright
