#include "planner/published/comparison.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "planner/published/physics.hpp"
#include "planner/published/statistics.hpp"

namespace shardwright {

namespace {

/// The most of them that are live at once, whatever stands beside them then.
Bytes activationsOf(const Plan& plan)
{
    Bytes most;
    for (const CurvePoint& point : plan.gpu.curve)
        most = std::max(most, point.byCategory[static_cast<std::size_t>(Category::Activations)]);
    return most;
}

Bytes overheads(const Plan& plan)
{
    Bytes sum;
    for (const Overhead& overhead : plan.gpu.overheads)
        sum += overhead.bytes;
    return sum;
}

std::optional<Bytes> predictedBytes(const PublishedFigure& figure, const Plan& plan)
{
    const GpuMemory& gpu = plan.gpu;
    const bool steady = figure.window == MeasuredWindow::SteadyState;
    const bool afterInit = figure.window == MeasuredWindow::AfterInit;
    switch (figure.kind) {
    case MeasuredKind::GpuAllocated:
        return steady ? gpu.peakAllocated : afterInit ? gpu.initPeak : gpu.peakBeforeFirstStep;
    case MeasuredKind::GpuReserved: // the allocator keeps what initialisation freed
        if (steady || afterInit)
            return steady ? gpu.peakReserved : gpu.initPeak;
        return std::nullopt;
    case MeasuredKind::GpuUsed:
        if (steady || afterInit)
            return steady ? gpu.peakUsed : gpu.initPeak + overheads(plan);
        return std::nullopt;
    case MeasuredKind::GpuHeld:
        if (afterInit)
            return std::nullopt;
        return steady ? gpu.held : gpu.heldBeforeFirstStep;
    case MeasuredKind::GpuStates: return gpu.modelStates;
    case MeasuredKind::HostUsed: return plan.host.bytesPerNode;
    case MeasuredKind::InterNodeBytes: return plan.traffic.interNodeBytesPerNode;
    case MeasuredKind::StepSeconds:
    case MeasuredKind::TflopsPerGpu:
    case MeasuredKind::HardwareTflopsPerGpu:
    case MeasuredKind::Fits:
    case MeasuredKind::OutOfMemory:
    case MeasuredKind::LargestModel:
    case MeasuredKind::Speedup:
    case MeasuredKind::ForwardGatherSeconds:
    case MeasuredKind::BackwardGatherSeconds:
    case MeasuredKind::ReduceScatterSeconds:
    case MeasuredKind::HostOptimizerSeconds:
    case MeasuredKind::ActivationRatio:
    case MeasuredKind::SlowerPerGpu:
    case MeasuredKind::MoreGpuMemory: break;
    }
    return std::nullopt;
}

/// Of a step's speed; nothing where the cluster names no peak to tell recomputation's share by.
std::optional<double> teraflops(MeasuredKind kind, const StepTime& step)
{
    if (kind == MeasuredKind::TflopsPerGpu)
        return step.tflopsPerGpu;
    return step.mfu > 0 ? std::optional(step.tflopsPerGpu * step.hfu / step.mfu) : std::nullopt;
}

/// Of a figure about two plans that are both possible.
std::optional<double> ratio(MeasuredKind kind, const Plan& plan, const Plan& over)
{
    if (kind == MeasuredKind::ActivationRatio) {
        const Bytes of = activationsOf(over);
        return of > Bytes(0) ? std::optional(activationsOf(plan).asDouble() / of.asDouble()) : std::nullopt;
    }
    if (kind == MeasuredKind::MoreGpuMemory)
        return plan.gpu.peakUsed.asDouble() / over.gpu.peakUsed.asDouble();
    if (!plan.step || !over.step)
        return std::nullopt;
    return kind == MeasuredKind::Speedup ? over.step->seconds / plan.step->seconds
                                         : plan.step->tokensPerSecondPerGpu / over.step->tokensPerSecondPerGpu;
}

void predict(const PublishedFigure& figure, const FigureContext& context, const Plan& plan, FigureComparison& row)
{
    if (plan.verdict == Verdict::NotPossible) {
        row.outcome = FigureOutcome::NotPossible;
        row.note = fmt::format("{}", fmt::join(plan.reasons, "; "));
        return;
    }
    if (isOverAnother(figure.kind)) {
        if (context.over != nullptr && context.over->verdict != Verdict::NotPossible)
            row.predicted = ratio(figure.kind, plan, *context.over);
    } else if (isVerdict(figure.kind)) {
        const bool right = plan.fits() == (figure.kind == MeasuredKind::Fits);
        row.outcome = right ? FigureOutcome::ToldRight : FigureOutcome::ToldWrong;
        row.predicted = plan.gpu.peakUsed.asDouble();
        return;
    } else if (figure.kind == MeasuredKind::StepSeconds && plan.step)
        row.predicted = plan.step->seconds;
    else if ((figure.kind == MeasuredKind::TflopsPerGpu || figure.kind == MeasuredKind::HardwareTflopsPerGpu) &&
             plan.step)
        row.predicted = teraflops(figure.kind, *plan.step);
    else if (context.hostOptimizer)
        row.predicted = context.hostOptimizer;
    else if (context.pass)
        row.predicted = context.pass->seconds;
    else if (const auto bytes = predictedBytes(figure, plan))
        row.predicted = bytes->asDouble();
    if (!row.predicted)
        return;
    if (isVerdict(figure.kind)) {
        const bool right = figure.kind == MeasuredKind::MoreGpuMemory ? *row.predicted > 1 : *row.predicted < 1;
        row.outcome = right ? FigureOutcome::ToldRight : FigureOutcome::ToldWrong;
        return;
    }
    row.outcome = FigureOutcome::Predicted;
    row.error = (*row.predicted - figure.value) / figure.value;
}

SourceSummary summaryOf(const std::string& name, const std::vector<const FigureComparison*>& figures)
{
    SourceSummary summary;
    summary.source = name;
    std::vector<double> absolute;
    double signedSum = 0;
    for (const FigureComparison* figure : figures) {
        ++summary.figures;
        summary.objected += figure->objections.empty() ? 0 : 1;
        if (isVerdict(figure->kind)) {
            ++summary.verdicts;
            summary.verdictsRight += figure->outcome == FigureOutcome::ToldRight ? 1 : 0;
        } else if (!figure->predicted) {
            ++summary.notPredicted;
        }
        if (figure->counts()) {
            absolute.push_back(std::abs(*figure->error));
            signedSum += *figure->error;
        }
    }
    summary.compared = static_cast<std::int64_t>(absolute.size());
    if (!absolute.empty()) {
        summary.medianError = medianOf(absolute);
        summary.worstError = *std::max_element(absolute.begin(), absolute.end());
        summary.bias = signedSum / static_cast<double>(absolute.size());
    }
    return summary;
}

} // namespace

FigureComparison compareFigure(const Scenario& scenario, const PublishedFigure& figure, const Plan& plan,
                               const FigureContext& context)
{
    FigureComparison row;
    row.scenario = scenario.name;
    row.strategy = figure.strategy;
    row.source = figure.source;
    row.kind = figure.kind;
    row.window = figure.window;
    row.published = isVerdict(figure.kind) ? 0 : figure.value;
    row.note = figure.note;
    predict(figure, context, plan, row);
    row.objections = objections(scenario, figure, plan);
    if (context.pass)
        if (const auto reason = passObjection(scenario.cluster, figure, *context.pass))
            row.objections.push_back(*reason);
    if (!figure.disputed.empty())
        row.objections.push_back(figure.disputed);
    return row;
}

std::vector<SourceSummary> summarise(const std::vector<FigureComparison>& figures)
{
    std::vector<std::string> order;
    std::map<std::string, std::vector<const FigureComparison*>> bySource;
    for (const FigureComparison& figure : figures) {
        auto& group = bySource[figure.source];
        if (group.empty())
            order.push_back(figure.source);
        group.push_back(&figure);
    }
    std::vector<SourceSummary> summaries;
    for (const std::string& source : order)
        summaries.push_back(summaryOf(source, bySource[source]));
    return summaries;
}

SourceSummary summariseAll(const std::vector<FigureComparison>& figures)
{
    std::vector<const FigureComparison*> all;
    for (const FigureComparison& figure : figures)
        all.push_back(&figure);
    return summaryOf("all", all);
}

} // namespace shardwright
