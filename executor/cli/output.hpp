#pragma once

#include <string>

namespace shardwright::cli {

/// Sees, before the work whose result goes there, that `path` can be written: InputError where a file is there and
/// `replace` is false.
void requireOutput(const std::string& path, bool replace);

} // namespace shardwright::cli
