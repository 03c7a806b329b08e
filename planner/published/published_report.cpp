#include "planner/published/published_report.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "core/plain_text.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/text_width.hpp"

namespace shardwright {

namespace {

/// Errors that the table points out: the aims for the median and for the worst figure.
constexpr double kGoodError = 0.04;
constexpr double kTolerableError = 0.12;

struct Measure {
    const char* unit;
    double divisor;
};

Measure measureOf(MeasuredKind kind)
{
    switch (kind) {
    case MeasuredKind::GpuAllocated:
    case MeasuredKind::GpuReserved:
    case MeasuredKind::GpuUsed:
    case MeasuredKind::GpuHeld:
    case MeasuredKind::GpuStates:
    case MeasuredKind::HostUsed: return {"GiB", kGiB};
    case MeasuredKind::InterNodeBytes: return {"GB", kGB};
    case MeasuredKind::StepSeconds:
    case MeasuredKind::HostOptimizerSeconds: return {"s", 1};
    case MeasuredKind::ForwardGatherSeconds:
    case MeasuredKind::BackwardGatherSeconds:
    case MeasuredKind::ReduceScatterSeconds: return {"ms", 1e-3};
    case MeasuredKind::Speedup:
    case MeasuredKind::ActivationRatio: return {"x", 1};
    case MeasuredKind::TflopsPerGpu:
    case MeasuredKind::HardwareTflopsPerGpu: return {"TFLOP/s", 1};
    case MeasuredKind::LargestModel: return {"billion", 1e9};
    case MeasuredKind::SlowerPerGpu:
    case MeasuredKind::MoreGpuMemory: return {"x", 1};
    case MeasuredKind::Fits:
    case MeasuredKind::OutOfMemory: break;
    }
    return {"", 1};
}

/// A source as tables name it: of GitHub addresses the repository and the path.
std::string shortSource(const std::string& source)
{
    const std::string host = "github.com/";
    std::string text = withoutControls(source);
    if (text.rfind(host, 0) != 0)
        return text;
    text.erase(0, host.size());
    const std::string blob = "/blob/";
    const std::size_t at = text.find(blob);
    const std::size_t path = at == std::string::npos ? at : text.find('/', at + blob.size());
    if (path != std::string::npos)
        text.replace(at, path - at + 1, " ");
    return text;
}

std::string signedPercent(double share)
{
    return fmt::format("{:+.1f} %", share * 100);
}

std::string percent(const std::optional<double>& share)
{
    return share ? fmt::format("{:.1f} %", *share * 100) : "-";
}

Cell errorCell(const FigureComparison& figure)
{
    if (!figure.error)
        return {"-"};
    const double size = std::abs(*figure.error);
    const Ink ink = !figure.objections.empty() ? Ink::Faint
                    : size <= kGoodError       ? Ink::Good
                    : size <= kTolerableError  ? Ink::Warning
                                               : Ink::Bad;
    return {signedPercent(*figure.error), ink};
}

Cell outcomeCell(const FigureComparison& figure)
{
    if (!figure.objections.empty())
        return {"cannot be right", Ink::Faint};
    switch (figure.outcome) {
    case FigureOutcome::Predicted: return {""};
    case FigureOutcome::ToldRight: return {"told right", Ink::Good};
    case FigureOutcome::ToldWrong: return {"told wrong", Ink::Bad};
    case FigureOutcome::NotPredicted: return {"not predicted", Ink::Faint};
    case FigureOutcome::NotPossible: return {"not possible", Ink::Warning};
    }
    return {"?"};
}

std::string kindText(const FigureComparison& figure)
{
    std::string text(nameOf(figure.kind));
    if (figure.window != MeasuredWindow::SteadyState)
        text += fmt::format(", {}", nameOf(figure.window));
    return text;
}

bool tellsNothingNew(const FigureComparison& figure)
{
    const bool memory = figure.kind == MeasuredKind::Fits || figure.kind == MeasuredKind::OutOfMemory;
    return figure.objections.empty() &&
           ((memory && figure.outcome == FigureOutcome::ToldRight) || figure.outcome == FigureOutcome::NotPredicted);
}

std::string wrapped(const std::string& text, const OutputStyle& style, int indent)
{
    std::string result;
    const int width = style.width > 0 ? std::max(20, style.width - indent) : 0;
    for (const std::string& line : wrapWords(withoutControls(text), width))
        result += std::string(static_cast<std::size_t>(indent), ' ') + line + '\n';
    return result;
}

/// What the framework refuses, each reason once with the figures that it concerns.
std::string refusals(const std::vector<FigureComparison>& figures, const OutputStyle& style)
{
    std::vector<std::pair<std::string, std::vector<std::string>>> reasons;
    for (const FigureComparison& figure : figures) {
        if (figure.outcome != FigureOutcome::NotPossible)
            continue;
        const auto known = std::find_if(reasons.begin(), reasons.end(),
                                        [&](const auto& reason) { return reason.first == figure.note; });
        auto& names = known == reasons.end() ? reasons.emplace_back(figure.note, std::vector<std::string>{}).second
                                             : known->second;
        names.push_back(figure.scenario + ", " + figure.strategy + ", " + kindText(figure));
    }
    std::string text;
    for (const auto& [reason, names] : reasons) {
        const std::string more = names.size() > 1 ? fmt::format(" and {} more", names.size() - 1) : "";
        text += paint(style, Ink::Strong, withoutControls(names.front())) + more + ": not possible\n";
        text += wrapped(reason, style, 4);
    }
    return text;
}

std::string remarks(const std::vector<FigureComparison>& figures, const OutputStyle& style)
{
    std::string text;
    for (const FigureComparison& figure : figures) {
        if (figure.objections.empty())
            continue;
        const Cell outcome = outcomeCell(figure);
        text += paint(style, Ink::Strong,
                      withoutControls(figure.scenario + ", " + figure.strategy + ", " + kindText(figure))) +
                ": " + outcome.text + '\n';
        for (const std::string& reason : figure.objections)
            text += wrapped(reason, style, 4);
    }
    return text + refusals(figures, style);
}

Json summaryJson(const SourceSummary& summary)
{
    const auto orNull = [](const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); };
    return {{"source", summary.source},
            {"figures", summary.figures},
            {"compared", summary.compared},
            {"median_error", orNull(summary.medianError)},
            {"worst_error", orNull(summary.worstError)},
            {"bias", orNull(summary.bias)},
            {"verdicts", summary.verdicts},
            {"verdicts_right", summary.verdictsRight},
            {"not_predicted", summary.notPredicted},
            {"cannot_be_right", summary.objected}};
}

void addSummary(Table& table, const SourceSummary& summary, Ink ink)
{
    const auto count = [](std::int64_t number) { return number > 0 ? std::to_string(number) : std::string("-"); };
    table.addRow({Cell(summary.source, ink), Cell(count(summary.figures)), Cell(count(summary.compared)),
                  Cell(percent(summary.medianError)), Cell(percent(summary.worstError)),
                  Cell(summary.bias ? signedPercent(*summary.bias) : "-"),
                  Cell(summary.verdicts > 0 ? fmt::format("{} of {}", summary.verdictsRight, summary.verdicts) : "-",
                       summary.verdictsRight < summary.verdicts ? Ink::Bad : Ink::Plain),
                  Cell(count(summary.notPredicted)), Cell(count(summary.objected))});
}

} // namespace

Table publishedTable(const std::vector<FigureComparison>& figures)
{
    Table table({{"scenario", "", Align::Left, 0, 0},
                 {"strategy", "", Align::Left, 0, 1},
                 {"what", "", Align::Left, 0, 0},
                 {"published", "", Align::Right, 0, 0},
                 {"predicted", "", Align::Right, 0, 0},
                 {"", "unit", Align::Left, 0, 0},
                 {"error", "", Align::Right, 0, 0},
                 {"outcome", "", Align::Left, 0, 0},
                 {"source", "", Align::Left, 0, 2}});
    for (const FigureComparison& figure : figures) {
        const Measure measure = measureOf(figure.kind);
        const bool number = !isVerdict(figure.kind);
        const bool predicted = figure.predicted && (number || isOverAnother(figure.kind)); // verdicts: by how much
        table.addRow({Cell(withoutControls(figure.scenario)), Cell(withoutControls(figure.strategy)),
                      Cell(kindText(figure)), Cell(number ? hundredths(figure.published / measure.divisor) : "-"),
                      Cell(predicted ? hundredths(*figure.predicted / measure.divisor) : "-"), Cell(measure.unit),
                      errorCell(figure), outcomeCell(figure), Cell(shortSource(figure.source))});
    }
    return table;
}

Table publishedSummaryTable(const std::vector<FigureComparison>& figures)
{
    Table table({{"source", "", Align::Left, 0, 0},
                 {"figures", "", Align::Right, 0, 3},
                 {"compared", "", Align::Right, 0, 0},
                 {"median error", "", Align::Right, 0, 0},
                 {"worst error", "", Align::Right, 0, 0},
                 {"bias", "", Align::Right, 0, 1},
                 {"verdicts right", "", Align::Right, 0, 0},
                 {"not predicted", "", Align::Right, 0, 4},
                 {"cannot be right", "", Align::Right, 0, 2}});
    for (SourceSummary summary : summarise(figures)) {
        summary.source = shortSource(summary.source);
        addSummary(table, summary, Ink::Plain);
    }
    addSummary(table, summariseAll(figures), Ink::Strong);
    return table;
}

std::string publishedText(const std::vector<FigureComparison>& figures, const OutputStyle& style, bool everything)
{
    std::vector<FigureComparison> shown;
    std::int64_t toldRight = 0;
    std::int64_t notPredicted = 0;
    for (const FigureComparison& figure : figures) {
        if (everything || !tellsNothingNew(figure))
            shown.push_back(figure);
        else if (figure.outcome == FigureOutcome::ToldRight)
            ++toldRight;
        else
            ++notPredicted;
    }
    std::string text;
    if (!shown.empty())
        text += publishedTable(shown).text(style) + '\n';
    if (toldRight + notPredicted > 0)
        text += paint(style, Ink::Faint,
                      fmt::format("Without a row: {} told right whether they fit, {} that are not predicted yet.",
                                  toldRight, notPredicted)) +
                "\n\n";
    text += publishedSummaryTable(figures).text(style);
    text += wrapped("Errors are (predicted - published) / published; figures that cannot be right are not counted in "
                    "them. GiB = 2^30 bytes, GB = 10^9 bytes.",
                    style, 0);
    if (const std::string why = remarks(shown, style); !why.empty())
        text += '\n' + why;
    return text;
}

Json figureToJson(const FigureComparison& figure)
{
    return {{"scenario", figure.scenario},
            {"strategy", figure.strategy},
            {"kind", nameOf(figure.kind)},
            {"window", nameOf(figure.window)},
            {"published", isVerdict(figure.kind) ? Json(nullptr) : Json(figure.published)},
            {"predicted", figure.predicted ? Json(*figure.predicted) : Json(nullptr)},
            {"error", figure.error ? Json(*figure.error) : Json(nullptr)},
            {"outcome", nameOf(figure.outcome)},
            {"cannot_be_right", figure.objections},
            {"note", figure.note},
            {"source", figure.source}};
}

Json publishedToJson(const std::vector<FigureComparison>& figures)
{
    Json json{{"schema", kPublishedSchema}, {"figures", Json::array()}, {"sources", Json::array()}};
    for (const FigureComparison& figure : figures)
        json["figures"].push_back(figureToJson(figure));
    for (const SourceSummary& summary : summarise(figures))
        json["sources"].push_back(summaryJson(summary));
    json["all"] = summaryJson(summariseAll(figures));
    return json;
}

} // namespace shardwright
