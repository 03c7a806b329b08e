#include <algorithm>

#include <fmt/format.h>

#include "planner/report/explain_report.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/scenario_summary.hpp"
#include "planner/report/table.hpp"
#include "planner/report/text_layout.hpp"
#include "planner/report/time_parts.hpp"

namespace shardwright {

namespace {

std::string breakdownText(const StepTime& step, const OutputStyle& style)
{
    constexpr int kBarCells = 60;
    BarScale scale;
    scale.capacity = step.breakdown.total();
    scale.cells = kBarCells;
    scale.capacityCell = kBarCells;
    std::string text = "  " + stackedBar(style, timePartLooks(), timeStack(step.breakdown), scale) + '\n';
    Table table({{"", "", Align::Left, 0, 0},
                 {"part", "", Align::Left, 0, 0},
                 {"s/step", "", Align::Right, 0, 0},
                 {"share", "", Align::Right, 0, 0},
                 {"what it is", "", Align::Left, 24, 0, true}});
    for (const TimePart& part : timeParts()) {
        const double seconds = step.breakdown.*part.seconds;
        constexpr double kNoise = 1e-9; // what sums of floating-point numbers leave behind
        if (seconds <= kNoise)
            continue;
        const bool block = style.colour && style.unicode;
        table.addRow({Cell(block ? "█" : std::string(1, part.part.letter), part.part.ink), std::string(part.name),
                      threeDigits(seconds), percent(seconds / step.seconds), std::string(part.meaning)});
    }
    return text + table.text(style);
}

Table rateTable(const Plan& plan)
{
    const StepTime& step = *plan.step;
    Table table({{"figure", "", Align::Left, 0, 0},
                 {"value", "", Align::Right, 0, 0},
                 {"how it comes about", "", Align::Left, 30, 0, true}});
    table.addRow({Cell("one step", Ink::Strong), Cell(spokenSeconds(step.seconds), Ink::Strong),
                  fmt::format("simulated; to be expected between {} and {}", spokenSeconds(step.lowSeconds),
                              spokenSeconds(step.highSeconds))});
    table.addRow({"tokens/s", threeDigits(step.tokensPerSecond), "of the whole job"});
    table.addRow({"tokens/s of a GPU", threeDigits(step.tokensPerSecondPerGpu), ""});
    table.addRow({"sequences/s", threeDigits(step.samplesPerSecond), ""});
    table.addRow({"TFLOP/s of a GPU", threeDigits(step.tflopsPerGpu), "FLOPs of the model; recomputation not counted"});
    if (step.mfu > 0) {
        table.addRow({"MFU", percent(step.mfu),
                      "these over the GPU's dense peak in the compute dtype (PaLM, arXiv 2204.02311)"});
        table.addRow({"HFU", percent(step.hfu),
                      "what the GPU carries out: with recomputation, without the half of causal attention that fused "
                      "kernels skip"});
    }
    const StepCost& cost = plan.cost;
    if (cost.dollarsPerStep)
        table.addRow({"$ a step", threeDigits(*cost.dollarsPerStep), "price of all GPUs for that time"});
    if (cost.dollarsPerBillionTokens)
        table.addRow({"$ a billion tokens", threeDigits(*cost.dollarsPerBillionTokens), ""});
    if (cost.joulesPerStep)
        table.addRow({"kJ a step", threeDigits(*cost.joulesPerStep / 1e3),
                      "rated power of the GPUs while they have work; hosts left out"});
    return table;
}

/// What holds the step up beside computing, largest first: at most three sentences.
std::string causes(const Scenario& scenario, const Plan& plan, const OutputStyle& style)
{
    const StepTime& step = *plan.step;
    struct Cause {
        double seconds;
        std::string text;
    };
    std::vector<Cause> list;
    for (const TimePart& part : timeParts())
        if (const double seconds = step.breakdown.*part.seconds;
            part.seconds != &StepBreakdown::compute && seconds > 0.01 * step.seconds)
            list.push_back({seconds, fmt::format("{} takes {} ({}): {}", part.name, spokenSeconds(seconds),
                                                 percent(seconds / step.seconds), part.meaning)});
    std::stable_sort(list.begin(), list.end(), [](const Cause& a, const Cause& b) { return a.seconds > b.seconds; });
    constexpr std::size_t kMost = 3;
    std::string text;
    for (std::size_t i = 0; i < std::min(kMost, list.size()); ++i)
        text += bullet(style, list[i].text);
    const double communication = step.hiddenCommunicationSeconds + step.breakdown.exposedCommunication;
    if (communication > 0)
        text += bullet(style, fmt::format("collectives run for {}, of which computing hides {} ({})",
                                          spokenSeconds(communication), spokenSeconds(step.hiddenCommunicationSeconds),
                                          percent(step.hiddenCommunicationSeconds / communication)));
    if (plan.networkBytesPerSecondPerNode) {
        const double has = scenario.cluster.interNode.bandwidth.value;
        const double needs = *plan.networkBytesPerSecondPerNode;
        text += bullet(style, fmt::format("to hide what crosses nodes behind computing a node needs {} GB/s, it has {}",
                                          threeDigits(needs / kGB), threeDigits(has / kGB)));
    }
    return text;
}

} // namespace

std::string explainTime(const Scenario& scenario, const Plan& plan, const OutputStyle& style)
{
    if (!plan.step)
        return {};
    std::string notes;
    for (const Note& note : plan.step->assumptions)
        notes += bullet(style, note.text + " (" + provenanceText(note.tag, note.source) + ")");
    return section(style, "Time of an optimizer step",
                   breakdownText(*plan.step, style) + '\n' + rateTable(plan).text(style) +
                       causes(scenario, plan, style) + notes);
}

} // namespace shardwright
