#pragma once

#include <vector>

namespace shardwright {

/// The share `q` of 0 .. 1 of the values lies below it; between two values, on the line through them (type 7 of
/// Hyndman and Fan, The American Statistician 50, 1996). There is at least one value.
double quantileOf(std::vector<double> values, double q);

/// Of at least one value.
double medianOf(std::vector<double> values);

} // namespace shardwright
