#include "core/published_file.hpp"

#include <algorithm>
#include <limits>

#include "core/json_cursor.hpp"
#include "core/quantity.hpp"

namespace shardwright {

namespace {

/// What the value of such a figure counts; nothing where there is no value.
std::optional<Dimension> quantityOf(MeasuredKind kind)
{
    switch (kind) {
    case MeasuredKind::GpuAllocated:
    case MeasuredKind::GpuReserved:
    case MeasuredKind::GpuUsed:
    case MeasuredKind::GpuHeld:
    case MeasuredKind::GpuStates:
    case MeasuredKind::HostUsed:
    case MeasuredKind::InterNodeBytes: return Dimension::Bytes;
    case MeasuredKind::StepSeconds:
    case MeasuredKind::ForwardGatherSeconds:
    case MeasuredKind::BackwardGatherSeconds:
    case MeasuredKind::ReduceScatterSeconds:
    case MeasuredKind::HostOptimizerSeconds: return Dimension::Seconds;
    case MeasuredKind::Speedup:
    case MeasuredKind::ActivationRatio: return Dimension::Ratio;
    case MeasuredKind::TflopsPerGpu:
    case MeasuredKind::HardwareTflopsPerGpu: return Dimension::Teraflops;
    case MeasuredKind::LargestModel: return Dimension::Parameters;
    case MeasuredKind::Fits:
    case MeasuredKind::OutOfMemory:
    case MeasuredKind::SlowerPerGpu:
    case MeasuredKind::MoreGpuMemory: break;
    }
    return std::nullopt;
}

void readStrategy(const JsonCursor& cursor, const char* key, const std::vector<std::string>& strategies,
                  std::string& name)
{
    const auto strategy = cursor.require(key, "the name of one of the scenario's strategies");
    if (!strategy)
        return;
    name = strategy->asString().value_or("");
    if (name.empty() || std::find(strategies.begin(), strategies.end(), name) != strategies.end())
        return;
    const std::string nearest = nearestWord(name, strategies);
    strategy->complain("\"" + name.substr(0, 60) + "\" is not among the scenario's strategies",
                       nearest.empty() ? "one of them" : "\"" + nearest + "\" perhaps");
}

PublishedFigure figureFromJson(const JsonCursor& cursor, const std::vector<std::string>& strategies)
{
    PublishedFigure figure;
    if (!cursor.expectObject())
        return figure;
    cursor.rejectUnknownKeys(
        {"strategy", "over", "over_changes", "kind", "value", "unit", "window", "source", "note", "disputed"});
    readStrategy(cursor, "strategy", strategies, figure.strategy);
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
    if (isOverAnother(*known)) {
        readStrategy(cursor, "over", strategies, figure.over);
        if (const auto changes = cursor.find("over_changes"); changes && changes->expectObject())
            figure.overChanges = changes->json().dump();
    } else if (cursor.has("over") || cursor.has("over_changes")) {
        cursor.complain("\"" + std::string(nameOf(*known)) + "\" is over nothing",
                        "neither \"over\" nor \"over_changes\"");
    }
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
    if (!figure.over.empty())
        json["over"] = figure.over;
    if (!figure.overChanges.empty())
        json["over_changes"] = Json::parse(figure.overChanges);
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
