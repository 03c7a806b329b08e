#pragma once

// Figures with units, as files write them: {"value": 79.25, "unit": "GiB", "tag": "measured", "source": "..."}, or the
// short text "79.25 GiB".

#include <optional>
#include <string>

#include "core/cluster.hpp"
#include "core/json.hpp"

namespace shardwright {

/// What a figure counts; it decides which units may stand beside the value. The first unit of each is its base.
enum class Dimension : std::uint8_t {
    Bytes,
    BytesPerSecond,
    FlopsPerSecond,
    Seconds,
    Teraflops,
    Parameters,
    Ratio,
    Watts,
    DollarsPerHour
};

/// How many base units (bytes, bytes/s, FLOP/s, s, TFLOP/s, parameters, W, $/h) one `unit` is; nothing for a unit of
/// something else.
std::optional<double> unitFactor(Dimension quantity, const std::string& unit);

/// "bytes, MB, MiB, ... or TiB": what an error message offers.
std::string unitNames(Dimension quantity);

/// The unit that figures are written in.
std::string baseUnit(Dimension quantity);

/// Reads "value" and "unit" of the object at `cursor` into base units; bytes are whole. `minimum` is in base units.
std::optional<double> valueWithUnit(const JsonCursor& cursor, Dimension quantity, double minimum);

/// Reads a figure. The short text form is tagged "assumed", its source says where it was given.
Figure figureFromJson(const JsonCursor& cursor, Dimension quantity, double minimum = 0);

Json toJson(const Figure& figure, Dimension quantity);

} // namespace shardwright
