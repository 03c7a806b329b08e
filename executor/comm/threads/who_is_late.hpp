#pragma once

#include <string>

#include "executor/comm/threads/hub.hpp"

namespace shardwright {

/// "ranks 2 and 5 did not come to all-gather of group shard": those that have begun fewer calls than `rank`. Where
/// these wait in other groups themselves, the ranks that do not wait at all; or else the one that `rank` waits for, -1
/// being all of them.
std::string whoIsLate(const Hub& hub, const SharedGroup& group, int rank, int awaited = -1);

} // namespace shardwright
