#include "planner/search/report.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "core/plain_text.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/scenario_summary.hpp"
#include "planner/report/text_layout.hpp"

namespace shardwright::search {

namespace {

std::string wanted(Objective objective)
{
    switch (objective) {
    case Objective::TokensPerSecond: return "the most tokens per second";
    case Objective::StepTime: return "the shortest step";
    case Objective::GpuHours: return "the fewest GPU-hours";
    case Objective::Cost: return "the least money";
    case Objective::FewestGpus: return "the fewest GPUs";
    case Objective::LargestModel: return "the largest model";
    case Objective::LongestSequence: return "the longest sequence";
    case Objective::LargestMicroBatch: return "the largest micro-batch";
    }
    return {};
}

/// "no other candidate of the declared space is better" or what it is instead.
std::string standing(const Asked& asked, const Result& result)
{
    if (!result.proven)
        return "stopped before the end: the best found so far, NOT proven to be the best";
    if (result.answers.empty())
        return "nothing in the declared space fits";
    return asked.request.front ? "proven: no candidate of the declared space equals or beats any of these in both"
                               : "proven: no other candidate of the declared space is better";
}

/// What became of the candidates, in one line.
std::string counts(const Result& result)
{
    std::int64_t uneven = 0;
    std::int64_t refused = 0;
    std::int64_t other = 0;
    for (const auto& [reason, rejected] : result.rejected.reasons())
        (reason.obstacle == Obstacle::Divisibility ? uneven
         : reason.obstacle == Obstacle::Refused    ? refused
                                                   : other) += rejected.candidates;
    return fmt::format(
        "{} candidates declared: {} do not divide the GPUs or the global batch, {} are refused by their "
        "framework, {} have no room, {} are ruled out by a bound on their time; in all, {} had to be judged one by one",
        grouped(result.declared), grouped(uneven), grouped(refused), grouped(other), grouped(result.counts.beaten),
        grouped(result.counts.evaluated));
}

double gpuHoursPerBillionTokens(const Answer& answer)
{
    constexpr double kBillion = 1e9;
    constexpr double kSecondsPerHour = 3600;
    return kBillion / answer.plan.step->tokensPerSecond * static_cast<double>(answer.assignment.gpus) / kSecondsPerHour;
}

struct Field {
    Column column;
    std::string (*cell)(const Answer&, const Candidates&);
    bool shown;
};

template <typename Differs> bool any(const Result& result, Differs differs)
{
    return std::any_of(result.answers.begin(), result.answers.end(), differs);
}

std::vector<Field> fields(const Asked& asked, const Result& result)
{
    const bool costs = asked.request.objective == Objective::Cost || asked.request.objective == Objective::GpuHours;
    return {
        {{"strategy", "", Align::Left, 0, 0},
         [](const Answer& a, const Candidates& c) { return c.strategyName(a.assignment); },
         true},
        {{"GPUs", "", Align::Right, 0, 0},
         [](const Answer& a, const Candidates&) { return grouped(a.assignment.gpus); },
         asked.space.gpus.size() > 1},
        {{"micro-batch", "x accumulation", Align::Right, 0, 0},
         [](const Answer& a, const Candidates&) {
             return fmt::format("{} x {}", a.assignment.microBatch, a.candidate.training.gradientAccumulation);
         },
         true},
        {{"checkpointing", "", Align::Left, 0, 0},
         [](const Answer& a, const Candidates& c) { return c.checkpointingName(a.assignment); },
         true},
        {{"step", "s", Align::Right, 0, 0},
         [](const Answer& a, const Candidates&) { return hundredths(a.plan.step->seconds); },
         true},
        {{"tokens/s", "", Align::Right, 0, 0},
         [](const Answer& a, const Candidates&) {
             return grouped(static_cast<std::int64_t>(a.plan.step->tokensPerSecond));
         },
         true},
        {{"MFU", "%", Align::Right, 0, 3},
         [](const Answer& a, const Candidates&) { return fmt::format("{:.1f}", 100 * a.plan.step->mfu); },
         true},
        {{"exposed", "s", Align::Right, 0, 4},
         [](const Answer& a, const Candidates&) { return hundredths(a.plan.step->breakdown.exposedCommunication); },
         any(result, [](const Answer& a) { return a.plan.step->breakdown.exposedCommunication > 0; })},
        {{"bubble", "s", Align::Right, 0, 4},
         [](const Answer& a, const Candidates&) { return hundredths(a.plan.step->breakdown.bubble); },
         any(result, [](const Answer& a) { return a.plan.step->breakdown.bubble > 0; })},
        {{"GPU-hours", "per 10^9 tokens", Align::Right, 0, 0},
         [](const Answer& a, const Candidates&) { return hundredths(gpuHoursPerBillionTokens(a)); },
         costs},
        {{"cost", "$ per 10^9 tokens", Align::Right, 0, 0},
         [](const Answer& a, const Candidates&) {
             return hundredths(gpuHoursPerBillionTokens(a) * a.candidate.cluster.pricePerGpuHour.value);
         },
         asked.scenario.cluster.pricePerGpuHour.value > 0},
        {{"GPU used", "GiB", Align::Right, 0, 0},
         [](const Answer& a, const Candidates&) { return gibibytes(a.plan.gpu.peakUsed); },
         true},
        {{"of GPU", "", Align::Right, 0, 2},
         [](const Answer& a, const Candidates&) { return percentOf(a.plan.gpu.peakUsed, a.plan.gpu.capacity); },
         true},
        {{"host/node", "GiB", Align::Right, 0, 1},
         [](const Answer& a, const Candidates&) { return gibibytes(a.plan.host.bytesPerNode); },
         any(result, [](const Answer& a) { return a.plan.host.bytesPerNode > 0_B; })},
    };
}

std::string nearestMiss(const Candidates& candidates, const Rejected& rejected)
{
    if (rejected.nearest.size() < kAxes)
        return {};
    const std::string by =
        rejected.miss > 0 ? fmt::format("{} too much: ", formatBinary(Bytes(static_cast<std::int64_t>(rejected.miss))))
                          : std::string();
    return by + candidates.describe(candidates.assignment(rejected.nearest));
}

std::string rejectedText(const Asked& asked, const Result& result, const OutputStyle& style)
{
    if (!asked.explainRejected || result.rejected.reasons().empty())
        return {};
    const Candidates candidates(asked.scenario, asked.space);
    Table table({{"candidates", "", Align::Right, 0, 0},
                 {"why", "", Align::Left, 30, 0, true},
                 {"nearest", "", Align::Left, 30, 0, true}});
    std::vector<std::pair<Reason, Rejected>> reasons(result.rejected.reasons().begin(),
                                                     result.rejected.reasons().end());
    std::stable_sort(reasons.begin(), reasons.end(),
                     [](const auto& a, const auto& b) { return a.second.candidates > b.second.candidates; });
    for (const auto& [reason, rejected] : reasons)
        table.addRow({grouped(rejected.candidates), withoutControls(reason.text), nearestMiss(candidates, rejected)});
    return section(style, "not possible, or no room", table.text(style));
}

std::string listed(const Asked& asked, const Result& result, const OutputStyle& style)
{
    std::string text;
    if (!result.answers.empty())
        text += answersTable(asked, result).text(style) + '\n';
    text += paragraph(style, standing(asked, result) + ".");
    text += paint(style, Ink::Faint, paragraph(style, counts(result) + "."));
    return text + rejectedText(asked, result, style);
}

} // namespace

Table answersTable(const Asked& asked, const Result& result)
{
    const Candidates candidates(asked.scenario, asked.space);
    std::vector<Field> shown = fields(asked, result);
    shown.erase(std::remove_if(shown.begin(), shown.end(), [](const Field& field) { return !field.shown; }),
                shown.end());
    std::vector<Column> columns{{"", "", Align::Right, 0, 0}};
    for (const Field& field : shown)
        columns.push_back(field.column);
    Table table(std::move(columns));
    std::size_t rank = 0;
    for (const Answer& answer : result.answers) {
        std::vector<Cell> cells{std::to_string(++rank)};
        for (const Field& field : shown)
            cells.emplace_back(field.cell(answer, candidates),
                               rank == 1 && !asked.request.front ? Ink::Strong : Ink::Plain);
        table.addRow(std::move(cells));
    }
    return table;
}

std::string searchText(const Asked& asked, const Result& result, const OutputStyle& style)
{
    std::string text = scenarioSummary(asked.scenario, style);
    text += paragraph(style, fmt::format("searched for {}, {} sequences per step",
                                         asked.request.front ? "the least memory and the shortest step"
                                                             : wanted(asked.request.objective),
                                         grouped(asked.space.globalBatch)));
    return text + '\n' + listed(asked, result, style);
}

std::string inverseText(const Asked& asked, const Inverse& inverse, const OutputStyle& style)
{
    std::string text = scenarioSummary(inverse.value ? inverse.scenario : asked.scenario, style);
    text += paragraph(style, "searched for " + wanted(asked.request.objective)) + '\n';
    if (!inverse.proven && !inverse.value)
        return text + paragraph(style, "stopped before the end: nothing is known yet.");
    if (!inverse.value)
        return text + paragraph(style, "not even the smallest of the declared range fits.");
    std::string answer;
    switch (asked.request.objective) {
    case Objective::LargestModel:
        answer = fmt::format("{} parameters: {} blocks, {} heads, hidden size {}",
                             spokenCount(inverse.scenario.model.parameters()), grouped(*inverse.value),
                             grouped(inverse.scenario.model.architecture.heads),
                             grouped(inverse.scenario.model.architecture.hidden));
        break;
    case Objective::LongestSequence: answer = fmt::format("{} tokens", grouped(*inverse.value)); break;
    default: answer = fmt::format("{} sequences per GPU and micro-step", grouped(*inverse.value)); break;
    }
    text += paint(style, Ink::Strong, wanted(asked.request.objective) + " that fits: " + answer) + '\n';
    if (inverse.atEnd)
        text += paragraph(style, "That is the end of the declared range: there may be more beyond.");
    else
        text +=
            paragraph(style, asked.request.objective == Objective::LargestModel
                                 ? "Nothing larger of the declared depths and widths fits in any way that the space "
                                   "declares."
                                 : "The next value of the declared range fits in no way that the space declares.");
    const Asked there{inverse.scenario, inverse.space, asked.request, asked.explainRejected};
    return text + "\nthe fastest ways there:\n\n" + listed(there, inverse.best, style);
}

} // namespace shardwright::search
