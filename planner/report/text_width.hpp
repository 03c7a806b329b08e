#pragma once

// How wide a text stands on a terminal: UTF-8 decoded, combining marks 0, East Asian wide characters 2, colour
// sequences 0.

#include <string>
#include <string_view>
#include <vector>

namespace shardwright {

/// Columns that `text` takes. A byte that is not UTF-8 counts 1.
int displayWidth(std::string_view text);

/// `text` cut to at most `width` columns, ending in `mark` when something was cut. A colour that was on is switched
/// off.
std::string truncateToWidth(std::string_view text, int width, std::string_view mark);

/// `text` with spaces on the right (or on the left) up to `width` columns.
std::string padRight(std::string_view text, int width);
std::string padLeft(std::string_view text, int width);

/// The words of `text` in lines of at most `width` columns (0 = one line); a longer word is broken. No colours.
std::vector<std::string> wrapWords(std::string_view text, int width);

} // namespace shardwright
