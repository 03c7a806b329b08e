#pragma once

// What a file or a user named must not steer the terminal that it is shown on.

#include <string>
#include <string_view>

namespace shardwright {

/// `text` with control characters as '?'.
std::string withoutControls(std::string_view text);

/// The same, but line ends stay.
std::string withoutControlsButLines(std::string_view text);

} // namespace shardwright
