#include "planner/published/statistics.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <utility>

namespace shardwright {

double quantileOf(std::vector<double> values, double q)
{
    assert(!values.empty());
    std::sort(values.begin(), values.end());
    const double place = q * static_cast<double>(values.size() - 1);
    const auto below = static_cast<std::size_t>(std::floor(place));
    const std::size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (values[above] - values[below]) * (place - std::floor(place));
}

double medianOf(std::vector<double> values)
{
    return quantileOf(std::move(values), 0.5);
}

} // namespace shardwright
