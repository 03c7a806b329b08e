#pragma once

#include <string>

namespace shardwright {

/// Hjson's comments (//, /* */ and #) and trailing commas replaced by spaces; every other byte stays where it was.
std::string withoutHjsonComments(const std::string& text);

} // namespace shardwright
