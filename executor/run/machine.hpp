#pragma once

#include <string>

namespace shardwright {

/// This machine's processor as /proc/cpuinfo names it.
std::string processorName();

} // namespace shardwright
