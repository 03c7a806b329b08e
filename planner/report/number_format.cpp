#include "planner/report/number_format.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include <fmt/format.h>

namespace shardwright {

std::string hundredths(double value)
{
    if (value == 0)
        return "0";
    constexpr double kSmallest = 0.005; // rounds to 0.01
    if (std::abs(value) < kSmallest)
        return value > 0 ? "<0.01" : ">-0.01";
    return fmt::format("{:.2f}", value);
}

std::string gibibytes(Bytes bytes)
{
    return hundredths(bytes.asDouble() / kGiB);
}

std::string gigabytes(Bytes bytes)
{
    return hundredths(bytes.asDouble() / kGB);
}

std::string percentOf(Bytes part, Bytes whole)
{
    if (whole == Bytes(0))
        return "-";
    const double percent = part.asDouble() / whole.asDouble() * 100;
    if (percent > 0 && percent < 1)
        return "<1 %";
    return fmt::format("{:.0f} %", percent);
}

std::string threeDigits(double value)
{
    if (!std::isfinite(value))
        return "-";
    constexpr double kWhole = 999.5; // rounds to four digits
    if (std::abs(value) >= kWhole && std::abs(value) < 9e18)
        return grouped(std::llround(value));
    if (value == 0)
        return "0";
    const int before = std::max(-8, static_cast<int>(std::floor(std::log10(std::abs(value)))) + 1);
    return fmt::format("{:.{}f}", value, std::max(0, 3 - before));
}

std::string spokenSeconds(double seconds)
{
    if (!std::isfinite(seconds))
        return "forever";
    constexpr double kMilli = 1e-3;
    constexpr double kMicro = 1e-6;
    if (seconds == 0 || seconds >= 0.9995)
        return threeDigits(seconds) + " s";
    return seconds >= 0.9995 * kMilli ? threeDigits(seconds / kMilli) + " ms" : threeDigits(seconds / kMicro) + " us";
}

std::string percent(double share)
{
    constexpr double kSmallest = 0.005;
    if (share > 0 && share < kSmallest)
        return "<1 %";
    return fmt::format("{:.0f} %", share * 100);
}

std::string grouped(std::int64_t count)
{
    std::string text = fmt::format("{}", count);
    const std::size_t first = count < 0 ? 1 : 0;
    for (std::size_t position = text.size(); position > first + 3;) {
        position -= 3;
        text.insert(position, ",");
    }
    return text;
}

std::string spokenCount(std::int64_t count)
{
    constexpr std::array<std::pair<double, const char*>, 4> kScales{
        {{1e15, "quadrillion"}, {1e12, "trillion"}, {1e9, "billion"}, {1e6, "million"}}};
    const auto value = static_cast<double>(count);
    for (const auto& [scale, name] : kScales)
        if (value >= scale)
            return fmt::format("{:.{}f} {}", value / scale, value / scale < 100 ? 2 : 1, name);
    return grouped(count);
}

} // namespace shardwright
