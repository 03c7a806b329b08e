#include "core/quantity.hpp"

#include <charconv>
#include <cmath>

#include "core/json_cursor.hpp"

namespace shardwright {

namespace {

struct Unit {
    const char* name;
    double factor;
};

/// Larger than any machine or run, small enough that sums and products of a few stay finite and bytes fit 64 bits.
constexpr double kLargestValue = 9e18;

const std::vector<Unit>& unitsOf(Dimension quantity)
{
    static const std::vector<Unit> bytes{{"bytes", 1},         {"MB", 1e6},   {"MiB", 1024.0 * 1024},
                                         {"GB", kGB},          {"GiB", kGiB}, {"TB", 1e12},
                                         {"TiB", 1024 * kGiB}, {"PB", 1e15},  {"PiB", 1048576 * kGiB}};
    // Network gear is sold in bits: 1 Gbit/s = 1e9/8 bytes/s.
    static const std::vector<Unit> bandwidth{{"bytes/s", 1},  {"MB/s", 1e6},  {"GB/s", kGB},
                                             {"GiB/s", kGiB}, {"TB/s", 1e12}, {"Gbit/s", 1e9 / 8}};
    static const std::vector<Unit> flops{{"FLOP/s", 1}, {"GFLOP/s", 1e9}, {"TFLOP/s", 1e12}, {"PFLOP/s", 1e15}};
    static const std::vector<Unit> seconds{{"s", 1}, {"ms", 1e-3}, {"us", 1e-6}, {"ns", 1e-9}};
    static const std::vector<Unit> teraflops{{"TFLOP/s", 1}};
    static const std::vector<Unit> parameters{{"parameters", 1}};
    static const std::vector<Unit> ratio{{"x", 1}};
    static const std::vector<Unit> watts{{"W", 1}, {"kW", 1e3}};
    static const std::vector<Unit> dollarsPerHour{{"$/h", 1}};
    switch (quantity) {
    case Dimension::Bytes: return bytes;
    case Dimension::BytesPerSecond: return bandwidth;
    case Dimension::FlopsPerSecond: return flops;
    case Dimension::Seconds: return seconds;
    case Dimension::Teraflops: return teraflops;
    case Dimension::Ratio: return ratio;
    case Dimension::Watts: return watts;
    case Dimension::DollarsPerHour: return dollarsPerHour;
    case Dimension::Parameters: break;
    }
    return parameters;
}

std::optional<double> inBaseUnits(const JsonCursor& place, Dimension quantity, double value, const std::string& unit,
                                  double minimum)
{
    const auto factor = unitFactor(quantity, unit);
    if (!factor) {
        place.complain("\"" + unit + "\" is not a unit of this figure", unitNames(quantity));
        return std::nullopt;
    }
    double base = value * *factor;
    if (quantity == Dimension::Bytes)
        base = std::round(base);
    if (!(base >= minimum && base <= kLargestValue)) {
        place.complain(minimum > 0 && base < minimum ? "must be greater than 0" : "is out of range",
                       minimum > 0 ? "a positive figure" : "a figure of at least 0");
        return std::nullopt;
    }
    return base;
}

/// "79.25 GiB" -> value and unit.
std::optional<std::pair<double, std::string>> splitShortForm(const std::string& text)
{
    double value = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || !std::isfinite(value) || rest == end || *rest != ' ' || rest + 1 == end)
        return std::nullopt;
    return std::make_pair(value, std::string(rest + 1, end));
}

std::string exampleOf(Dimension quantity)
{
    return "\"2.5 " + std::string(unitsOf(quantity).back().name) +
           "\" or {\"value\", \"unit\", \"tag\", \"source\"}, with a unit of " + unitNames(quantity);
}

} // namespace

std::optional<double> unitFactor(Dimension quantity, const std::string& unit)
{
    for (const Unit& candidate : unitsOf(quantity))
        if (candidate.name == unit)
            return candidate.factor;
    return std::nullopt;
}

std::string unitNames(Dimension quantity)
{
    const auto& units = unitsOf(quantity);
    std::string text;
    for (std::size_t i = 0; i < units.size(); ++i) {
        if (i > 0)
            text += i + 1 == units.size() ? " or " : ", ";
        text += units[i].name;
    }
    return text;
}

std::string baseUnit(Dimension quantity)
{
    return unitsOf(quantity).front().name;
}

std::optional<double> valueWithUnit(const JsonCursor& cursor, Dimension quantity, double minimum)
{
    const auto value = cursor.require("value", "a number");
    const auto unit = cursor.require("unit", unitNames(quantity));
    const auto number = value ? value->asNumber(0, kLargestValue) : std::nullopt;
    const auto unitText = unit ? unit->asString() : std::nullopt;
    if (unitText && !unitFactor(quantity, *unitText)) {
        unit->complain("\"" + *unitText + "\" is not a unit of this figure", unitNames(quantity));
        return std::nullopt;
    }
    if (!number || !unitText)
        return std::nullopt;
    return inBaseUnits(*value, quantity, *number, *unitText, minimum);
}

Figure figureFromJson(const JsonCursor& cursor, Dimension quantity, double minimum)
{
    Figure figure;
    if (cursor.json().is_string()) {
        const auto parts = splitShortForm(cursor.json().get<std::string>());
        if (!parts) {
            cursor.complain("is not a number, a blank and a unit", exampleOf(quantity));
            return figure;
        }
        figure.source = "given in " + cursor.findings().file() + " without a source";
        figure.value = inBaseUnits(cursor, quantity, parts->first, parts->second, minimum).value_or(0);
        return figure;
    }
    if (!cursor.json().is_object()) {
        cursor.complain("is not a figure with a unit", exampleOf(quantity));
        return figure;
    }
    cursor.rejectUnknownKeys({"value", "unit", "tag", "source"});
    figure.value = valueWithUnit(cursor, quantity, minimum).value_or(0);
    if (const auto tag = cursor.require("tag", allNames<Provenance>()))
        figure.tag = tag->asEnum<Provenance>().value_or(Provenance::Assumed);
    if (const auto source = cursor.require("source", "where the figure comes from"))
        figure.source = source->asString().value_or("");
    return figure;
}

Json toJson(const Figure& figure, Dimension quantity)
{
    return {
        {"value", figure.value}, {"unit", baseUnit(quantity)}, {"tag", nameOf(figure.tag)}, {"source", figure.source}};
}

} // namespace shardwright
