#pragma once

namespace shardwright {

/// "0.1.0"
const char* version();

} // namespace shardwright
