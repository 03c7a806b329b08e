#include "planner/report/compare_report.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "core/plain_text.hpp"
#include "planner/report/memory_parts.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/scenario_summary.hpp"
#include "planner/report/text_width.hpp"

namespace shardwright {

namespace {

struct Field {
    Column column;
    std::function<Cell(const Plan&)> cell;
    bool shown = true;
};

bool any(const std::vector<Plan>& plans, const std::function<bool(const Plan&)>& has)
{
    return std::any_of(plans.begin(), plans.end(), has);
}

Cell usedCell(const Plan& plan)
{
    const Ink ink = plan.verdict == Verdict::DoesNotFit ? Ink::Bad : Ink::Plain;
    return {gibibytes(plan.gpu.peakUsed), ink};
}

Cell barCell(const Plan& plan, const OutputStyle& style)
{
    BarScale scale;
    scale.capacity = plan.gpu.capacity.asDouble();
    return Cell::drawing(stackedBar(style, memoryParts(), usedStack(plan), scale));
}

/// Zero where the cluster names no peak for the compute dtype.
std::string utilisation(double share)
{
    return share > 0 ? percent(share) : "-";
}

/// A figure of the step; faint where the plan does not fit and the figure is what would be.
std::function<Cell(const Plan&)> stepCell(double StepTime::*figure, std::string (*text)(double))
{
    return [figure, text](const Plan& plan) {
        return plan.step ? Cell(text((*plan.step).*figure), plan.fits() ? Ink::Plain : Ink::Faint) : Cell("-");
    };
}

/// What fits first, fastest first; then what fits by a hair, what does not, what cannot be. Without times as they came.
std::vector<const Plan*> ranked(const std::vector<Plan>& plans)
{
    std::vector<const Plan*> order;
    order.reserve(plans.size());
    for (const Plan& plan : plans)
        order.push_back(&plan);
    if (!any(plans, [](const Plan& plan) { return plan.step.has_value(); }))
        return order;
    const auto key = [](const Plan* plan) {
        return std::pair(plan->verdict, plan->step && plan->step->tokensPerSecond > 0
                                            ? 1 / plan->step->tokensPerSecond
                                            : std::numeric_limits<double>::infinity());
    };
    std::stable_sort(order.begin(), order.end(), [&](const Plan* a, const Plan* b) { return key(a) < key(b); });
    return order;
}

/// Columns from the left; the drop order says what a narrow terminal can best do without.
std::vector<Field> compareFields(const std::vector<Plan>& plans, const std::optional<Recommendation>& recommendation,
                                 const OutputStyle& style)
{
    const std::string psi(glyph(style, "Ψ", "psi"));
    const bool timed = any(plans, [](const Plan& plan) { return plan.step.has_value(); });
    const auto isRecommended = [&recommendation](const Plan& plan) {
        return recommendation && recommendation->strategy == plan.strategy;
    };
    return {
        {{"strategy", "", Align::Left, 0, 0}, // never cut: long names differ in their ends
         [isRecommended](const Plan& plan) {
             return isRecommended(plan) ? Cell("* " + plan.strategy, Ink::Strong) : Cell("  " + plan.strategy);
         }},
        {{"verdict", "", Align::Left, 0, 0}, [](const Plan& plan) { return verdictCell(plan.verdict); }},
        {{"step", "s", Align::Right, 0, 0}, stepCell(&StepTime::seconds, threeDigits), timed},
        {{"tokens/s", "per GPU", Align::Right, 0, 0}, stepCell(&StepTime::tokensPerSecondPerGpu, threeDigits), timed},
        {{"MFU", "", Align::Right, 0, 1}, stepCell(&StepTime::mfu, utilisation), timed},
        {{"GPU used", "GiB", Align::Right, 0, 0}, usedCell},
        {{"of GPU", "", Align::Right, 0, 6},
         [](const Plan& plan) { return Cell(percentOf(plan.gpu.peakUsed, plan.gpu.capacity)); }},
        {{"memory at the peak", "capacity at the mark", Align::Left, 0, 3},
         [&style](const Plan& plan) { return barCell(plan, style); }},
        {{"states", "GiB", Align::Right, 0, 7}, [](const Plan& plan) { return Cell(gibibytes(plan.gpu.modelStates)); }},
        {{"allocated", "GiB", Align::Right, 0, 8},
         [](const Plan& plan) { return Cell(gibibytes(plan.gpu.peakAllocated)); }},
        {{"reserved", "GiB", Align::Right, 0, 9},
         [](const Plan& plan) { return Cell(gibibytes(plan.gpu.peakReserved)); }},
        {{"host/node", "GiB", Align::Right, 0, 2},
         [](const Plan& plan) { return Cell(gibibytes(plan.host.bytesPerNode)); },
         any(plans, [](const Plan& plan) { return plan.host.bytesPerNode > 0_B; })},
        {{"NVMe/node", "GB", Align::Right, 0, 4},
         [](const Plan& plan) { return Cell(gigabytes(plan.nvme.bytesPerNode)); },
         any(plans, [](const Plan& plan) { return plan.nvme.bytesPerNode > 0_B; })},
        {{"sent/GPU", "GB/step", Align::Right, 0, 1},
         [](const Plan& plan) { return Cell(gigabytes(plan.traffic.sentBytesPerGpu)); }},
        {{"between nodes", "GB/step/node", Align::Right, 0, 2},
         [](const Plan& plan) { return Cell(gigabytes(plan.traffic.interNodeBytesPerNode)); },
         any(plans, [](const Plan& plan) { return plan.traffic.interNodeBytesPerNode > 0_B; })},
        {{"volume", psi, Align::Right, 0, 5}, [](const Plan& plan) { return Cell(hundredths(plan.traffic.psi)); }},
    };
}

std::string indented(const std::string& text, const OutputStyle& style)
{
    constexpr int kIndent = 4;
    std::string result;
    for (const std::string& line :
         wrapWords(withoutControls(text), style.width > 0 ? std::max(20, style.width - kIndent) : 0))
        result += std::string(kIndent, ' ') + line + '\n';
    return result;
}

std::string shortfall(const Plan& plan)
{
    return plan.gpu.peakUsed > plan.gpu.capacity
               ? fmt::format("{} GiB short", gibibytes(plan.gpu.peakUsed - plan.gpu.capacity))
               : std::string();
}

/// Why each plan that does not simply fit is what it is, and the way out.
std::string remarks(const std::vector<Plan>& plans, const OutputStyle& style)
{
    std::string text;
    for (const Plan& plan : plans) {
        if (plan.reasons.empty() && plan.remarks.empty() && !plan.smallestChange && plan.verdict == Verdict::Fits)
            continue;
        const Cell verdict = verdictCell(plan.verdict);
        text += paint(style, verdict.ink, withoutControls(plan.strategy) + " " + verdict.text);
        const std::string by = plan.verdict == Verdict::DoesNotFit ? shortfall(plan) : std::string();
        text += by.empty() ? "\n" : ", " + by + '\n';
        for (const std::string& reason : plan.reasons)
            text += indented(reason, style);
        for (const std::string& remark : plan.remarks)
            text += indented(remark, style);
        if (plan.smallestChange)
            text += indented(fmt::format("smallest change that fits: {}, then {} GiB", plan.smallestChange->text,
                                         gibibytes(plan.smallestChange->peakUsed)),
                             style);
    }
    return text;
}

} // namespace

Cell verdictCell(Verdict verdict)
{
    switch (verdict) {
    case Verdict::Fits: return {"fits", Ink::Good};
    case Verdict::Tight: return {"tight", Ink::Warning};
    case Verdict::DoesNotFit: return {"does not fit", Ink::Bad};
    case Verdict::NotPossible: return {"not possible", Ink::Faint};
    }
    return {"?"};
}

Table compareTable(const std::vector<Plan>& plans, const std::optional<Recommendation>& recommendation,
                   const OutputStyle& style)
{
    std::vector<Field> fields = compareFields(plans, recommendation, style);
    fields.erase(std::remove_if(fields.begin(), fields.end(), [](const Field& field) { return !field.shown; }),
                 fields.end());
    std::vector<Column> columns;
    columns.reserve(fields.size());
    for (const Field& field : fields)
        columns.push_back(field.column);
    Table table(std::move(columns));
    constexpr std::size_t kColumnsWithoutFigures = 2; // strategy and verdict
    for (const Plan* plan : ranked(plans)) {
        std::vector<Cell> cells;
        cells.reserve(fields.size());
        for (std::size_t i = 0; i < fields.size(); ++i)
            cells.push_back(plan->verdict == Verdict::NotPossible && i >= kColumnsWithoutFigures
                                ? (fields[i].column.align == Align::Right ? Cell("-") : Cell())
                                : fields[i].cell(*plan));
        table.addRow(std::move(cells));
    }
    return table;
}

std::string compareText(const Scenario& scenario, const std::vector<Plan>& plans,
                        const std::optional<Recommendation>& recommendation, const OutputStyle& style)
{
    std::string text = scenarioSummary(scenario, style) + '\n';
    text += compareTable(plans, recommendation, style).text(style) + '\n';
    std::vector<std::vector<double>> stacks;
    stacks.reserve(plans.size());
    for (const Plan& plan : plans)
        stacks.push_back(usedStack(plan));
    text += memoryLegend(style, stacks);
    const std::string psi(glyph(style, "Ψ", "psi"));
    std::string units = "GiB = 2^30 bytes, GB = 10^9 bytes. " + psi +
                        ": one gather or one scatter of all parameters counts 1, an all-reduce 2; per "
                        "optimizer step.";
    if (any(plans, [](const Plan& plan) { return plan.step.has_value(); }))
        units +=
            " Step: one optimizer step, simulated; fastest first among those that fit. MFU: the model's FLOPs over "
            "the GPU's dense peak.";
    for (const std::string& line : wrapWords(units, style.width))
        text += paint(style, Ink::Faint, line) + '\n';
    if (const std::string why = remarks(plans, style); !why.empty())
        text += '\n' + why;
    const bool anyFits = any(plans, [](const Plan& plan) { return plan.fits(); });
    if (recommendation || !anyFits)
        text += '\n';
    if (recommendation)
        text += paint(style, Ink::Strong, "recommended: " + withoutControls(recommendation->strategy)) + '\n' +
                indented(recommendation->reason, style);
    else if (!anyFits)
        text += paint(style, Ink::Strong, "recommended: nothing, no plan fits") + '\n';
    return text;
}

} // namespace shardwright
