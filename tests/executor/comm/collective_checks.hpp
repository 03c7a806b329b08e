#pragma once

// What every transport must do, checked against plain sums and copies that each rank makes for itself: the content of
// every rank's buffers is a function of its place, so all know what all hold.

#include "executor/comm/transport.hpp"

namespace shardwright {

/// All collectives of this rank's group, over sizes from nothing to several chunks. To be called on all its ranks.
void checkCollectives(Transport& transport, const Group& group);

/// Sums of 16-bit numbers that 16 bits do not hold: off by no more than a rounding a hop.
void checkRoundingOfSums(Transport& transport, const Group& group);

/// Bytes sent by all ranks of the group together: S (n-1) for each collective of S bytes, twice that for all-reduce.
void checkSentBytes(Transport& transport, const Group& group);

} // namespace shardwright
