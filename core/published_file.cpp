#include "core/published_file.hpp"

#include <algorithm>
#include <limits>

#include "core/quantity.hpp"

namespace shardwright {

namespace {

/// What the value of such a figure counts; nothing where there is no value.
std::optional<Quantity> quantityOf(MeasuredKind kind)
{
    switch (kind) {
    case MeasuredKind::GpuAllocated:
    case MeasuredKind::GpuReserved:
    case MeasuredKind::GpuUsed:
    case MeasuredKind::GpuHeld:
    case MeasuredKind::GpuStates:
    case MeasuredKind::HostUsed:
    case MeasuredKind::InterNodeBytes: return Quantity::Bytes;
    case MeasuredKind::StepSeconds: return Quantity::Seconds;
    case MeasuredKind::TflopsPerGpu: return Quantity::Teraflops;
    case MeasuredKind::LargestModel: return Quantity::Parameters;
    case MeasuredKind::Fits:
    case MeasuredKind::OutOfMemory: break;
    }
    return std::nullopt;
}

PublishedFigure figureFromJson(const JsonCursor& cursor, const std::vector<std::string>& strategies)
{
    PublishedFigure figure;
    if (!cursor.expectObject())
        return figure;
    cursor.rejectUnknownKeys({"strategy", "kind", "value", "unit", "window", "source", "note", "disputed"});
    if (const auto strategy = cursor.require("strategy", "the name of one of the scenario's strategies")) {
        figure.strategy = strategy->asString().value_or("");
        if (!figure.strategy.empty() &&
            std::find(strategies.begin(), strategies.end(), figure.strategy) == strategies.end()) {
            const std::string nearest = nearestWord(figure.strategy, strategies);
            strategy->complain("\"" + figure.strategy.substr(0, 60) + "\" is not among the scenario's strategies",
                               nearest.empty() ? "one of them" : "\"" + nearest + "\" perhaps");
        }
    }
    cursor.read("window", figure.window);
    if (const auto source = cursor.require("source", "who published the figure, and where"))
        figure.source = source->asString().value_or("");
    cursor.read("note", figure.note);
    cursor.read("disputed", figure.disputed);
    const auto kind = cursor.require("kind", allNames<MeasuredKind>());
    const auto known = kind ? kind->asEnum<MeasuredKind>() : std::nullopt;
    if (!known)
        return figure;
    figure.kind = *known;
    if (const auto quantity = quantityOf(*known))
        figure.value = valueWithUnit(cursor, *quantity, std::numeric_limits<double>::min()).value_or(0);
    else if (cursor.has("value") || cursor.has("unit"))
        cursor.complain("\"" + std::string(nameOf(*known)) + "\" has no value", "neither \"value\" nor \"unit\"");
    return figure;
}

} // namespace

std::vector<PublishedFigure> publishedFromJson(const JsonCursor& cursor, const std::vector<std::string>& strategies)
{
    std::vector<PublishedFigure> figures;
    if (!cursor.expectArray())
        return figures;
    for (const JsonCursor& element : cursor.elements())
        figures.push_back(figureFromJson(element, strategies));
    return figures;
}

Json toJson(const PublishedFigure& figure)
{
    Json json{{"strategy", figure.strategy}, {"kind", nameOf(figure.kind)}};
    if (const auto quantity = quantityOf(figure.kind)) {
        json["value"] = figure.value;
        json["unit"] = baseUnit(*quantity);
    }
    json["window"] = nameOf(figure.window);
    json["source"] = figure.source;
    if (!figure.note.empty())
        json["note"] = figure.note;
    if (!figure.disputed.empty())
        json["disputed"] = figure.disputed;
    return json;
}

} // namespace shardwright
