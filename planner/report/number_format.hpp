#pragma once

// Numbers as tables show them: the unit stands in the head of the column, not here.

#include <string>

#include "core/units.hpp"

namespace shardwright {

/// "12.34" GiB (2^30). Something that would round to 0.00 is "<0.01"; nothing is "0".
std::string gibibytes(Bytes bytes);

/// "12.34" GB (1e9), likewise.
std::string gigabytes(Bytes bytes);

/// Two digits after the point, likewise: "2.00", "<0.01", "0".
std::string hundredths(double value);

/// "87 %"; of 0: "-".
std::string percentOf(Bytes part, Bytes whole);

/// Three digits that count: "0.0123", "1.23", "12.3", "1,234"; nothing is "0".
std::string threeDigits(double value);

/// "1.23 s", "12.3 ms", "123 us".
std::string spokenSeconds(double seconds);

/// "45 %", "<1 %"; nothing is "0 %".
std::string percent(double share);

/// "6,738,415,616".
std::string grouped(std::int64_t count);

/// A count for reading, three to four digits: "999", "6.74 billion", "1.01 trillion".
std::string spokenCount(std::int64_t count);

} // namespace shardwright
