#include "core/units.hpp"

#include <array>
#include <limits>

#include <fmt/format.h>

namespace shardwright {

void throwNumberTooLarge(const char* operation, std::int64_t left, std::int64_t right)
{
    throw NumberTooLarge(
        fmt::format("{} {} {} does not fit in 64 bits: some number of the input is too large", left, operation, right));
}

std::int64_t nextPowerOfTwo(std::int64_t value)
{
    std::int64_t power = 1;
    while (power < value) {
        if (power > std::numeric_limits<std::int64_t>::max() / 2)
            throwNumberTooLarge("rounded up to a power of two, times", value, 1);
        power *= 2;
    }
    return power;
}

Bytes share(Bytes bytes, std::int64_t numerator, std::int64_t denominator)
{
    __extension__ using Wide = __int128;
    const Wide product = static_cast<Wide>(bytes.count()) * numerator;
    const Wide result = (product + denominator - 1) / denominator;
    if (result > std::numeric_limits<std::int64_t>::max())
        throwNumberTooLarge("x a share,", bytes.count(), numerator);
    return Bytes(static_cast<std::int64_t>(result));
}

namespace {

std::string formatScaled(double value, double base, const std::array<const char*, 6>& names)
{
    std::size_t scale = 0;
    while ((value >= base || value <= -base) && scale + 1 < names.size()) {
        value /= base;
        ++scale;
    }
    if (scale == 0)
        return fmt::format("{:.0f} {}", value, names[scale]);
    return fmt::format("{:.2f} {}", value, names[scale]);
}

} // namespace

std::string formatDecimal(Bytes bytes)
{
    return formatScaled(bytes.asDouble(), 1000.0, {"B", "kB", "MB", "GB", "TB", "PB"});
}

std::string formatBinary(Bytes bytes)
{
    return formatScaled(bytes.asDouble(), 1024.0, {"B", "KiB", "MiB", "GiB", "TiB", "PiB"});
}

} // namespace shardwright
