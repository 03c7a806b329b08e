#pragma once

// Published figures against plans: predicted beside measured with the signed error, and what cannot be right.

#include <optional>
#include <string>
#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"
#include "planner/published/collective_passes.hpp"

namespace shardwright {

/// What became of a figure.
enum class FigureOutcome : std::uint8_t { Predicted, ToldRight, ToldWrong, NotPredicted, NotPossible };
template <> struct EnumNames<FigureOutcome> {
    static constexpr std::array<std::pair<FigureOutcome, std::string_view>, 5> table{
        {{FigureOutcome::Predicted, "predicted"},        // a number beside the published number
         {FigureOutcome::ToldRight, "told-right"},       // "fits", "out of memory", "slower", "more", as it says
         {FigureOutcome::ToldWrong, "told-wrong"},       // or not
         {FigureOutcome::NotPredicted, "not-predicted"}, // plans have no such figure
         {FigureOutcome::NotPossible, "not-possible"}}}; // the framework's rules refuse the combination
};

struct FigureComparison {
    std::string scenario;
    std::string strategy;
    std::string source;
    MeasuredKind kind = MeasuredKind::GpuAllocated;
    MeasuredWindow window = MeasuredWindow::SteadyState;
    double published = 0;            // bytes, seconds, TFLOP/s, parameters or a ratio, by kind; 0 for verdicts
    std::optional<double> predicted; // likewise
    std::optional<double> error;     // (predicted - published) / published
    FigureOutcome outcome = FigureOutcome::NotPredicted;
    std::vector<std::string> objections; // why the figure cannot be right: from physics, or its source contradicts it
    std::string note;                    // of the figure, or why there is no prediction

    /// Counts in the statistics of its source.
    bool counts() const { return error.has_value() && objections.empty(); }
};

/// What else some kinds of figures are about.
struct FigureContext {
    const Plan* over = nullptr;          // of a figure about two plans: the other
    std::optional<CollectivePass> pass;  // of figures of collectives
    std::optional<double> hostOptimizer; // seconds, of figures of the host's optimizer
};

/// One figure beside the plan of its strategy.
FigureComparison compareFigure(const Scenario& scenario, const PublishedFigure& figure, const Plan& plan,
                               const FigureContext& context = {});

/// Every figure of the scenario, in its order; each strategy that has figures is planned once.
std::vector<FigureComparison> comparePublished(const Scenario& scenario);

/// How well the figures of one source are met. Errors are of the figures that count().
struct SourceSummary {
    std::string source;
    std::int64_t figures = 0;
    std::int64_t compared = 0;
    std::optional<double> medianError; // of absolute errors
    std::optional<double> worstError;  // largest absolute error
    std::optional<double> bias;        // mean of signed errors
    std::int64_t verdicts = 0;         // "fits", "out of memory", "slower"
    std::int64_t verdictsRight = 0;
    std::int64_t notPredicted = 0;
    std::int64_t objected = 0; // cannot be right
};

/// One per source, in order of first appearance.
std::vector<SourceSummary> summarise(const std::vector<FigureComparison>& figures);

/// All figures as one, under the name "all".
SourceSummary summariseAll(const std::vector<FigureComparison>& figures);

} // namespace shardwright
