#include "planner/step_time.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "planner/published/physics.hpp"
#include "planner/step_band.hpp"

namespace shardwright {

namespace {

constexpr double kTera = 1e12;

/// Sequences of one step over the whole job: one stream of them for each replica of the model.
double sequencesOf(const PlanInput& input)
{
    return static_cast<double>(checkedMultiply(checkedMultiply(input.training.microBatch, input.replicas()),
                                               input.training.gradientAccumulation));
}

std::string bandText(const StepBand& band, const StepSetting& setting)
{
    const std::string range = fmt::format("{:.2f} to {:.2f} times the predicted seconds", band.low, band.high);
    switch (band.origin) {
    case BandOrigin::Own:
        return fmt::format("band: {}, from {} published measurements of such runs ({})", range, band.rows,
                           nameOf(setting));
    case BandOrigin::Similar:
        return fmt::format("band: {}, from {} published measurements of similar runs; none is known of {}", range,
                           band.rows, nameOf(setting));
    case BandOrigin::All:
        return fmt::format("band: {}, from all {} published measurements; none is known of {}", range, band.rows,
                           nameOf(setting));
    case BandOrigin::Assumed: break;
    }
    return fmt::format("band: {}, without any measurement of such runs ({})", range, nameOf(setting));
}

void fillAssumptions(const StepBand& band, const StepSetting& setting, bool peakKnown, StepTime& step)
{
    step.assumptions.push_back({"steady state: data loading, logging, evaluation, checkpoints and the first steps "
                                "(compilation, autotuning, memory growth) are left out",
                                Provenance::Assumed, ""});
    step.assumptions.push_back({"all ranks run at the same pace: no stragglers, no other jobs on the network, full "
                                "clocks",
                                Provenance::Assumed, ""});
    const bool measured = band.origin != BandOrigin::Assumed;
    step.assumptions.push_back({bandText(band, setting), measured ? Provenance::Measured : Provenance::Assumed,
                                measured ? "shardplan ledger" : ""});
    if (!peakKnown)
        step.assumptions.push_back(
            {"the cluster names no peak for the compute dtype: utilisation is not computed", Provenance::Assumed, ""});
}

bool finite(const OpTimes& times)
{
    return std::all_of(times.seconds.begin(), times.seconds.end(), [](double s) { return std::isfinite(s); });
}

/// What a step on the host takes for granted and launchers break.
void warnOfThreads(const PlanInput& input, const Schedule& schedule, StepTime& step)
{
    const bool onHost = std::any_of(schedule.ops.begin(), schedule.ops.end(),
                                    [](const Op& op) { return op.kind == OpKind::HostOptimizerStep; });
    if (onHost && input.training.hostThreads == 0)
        step.assumptions.push_back({"the optimizer on the host has all cores of the node: torchrun and accelerate "
                                    "launch give a rank one thread unless OMP_NUM_THREADS says more (host_threads: 1)",
                                    Provenance::Assumed, "torch/distributed/run.py, accelerate/utils/launch.py"});
}

} // namespace

void fillRates(const PlanInput& input, double seconds, double executedFlops, StepTime& step)
{
    const auto gpus = static_cast<double>(input.cluster.gpus());
    const double sequences = sequencesOf(input);
    const double tokens = sequences * static_cast<double>(input.training.sequenceLength);
    const double modelFlops = modelFlopsPerToken(input.wholeModel(), input.training.sequenceLength) * tokens / gpus;
    step.seconds = seconds;
    step.tokensPerSecond = tokens / seconds;
    step.tokensPerSecondPerGpu = step.tokensPerSecond / gpus;
    step.samplesPerSecond = sequences / seconds;
    step.tflopsPerGpu = modelFlops / seconds / kTera;
    const auto peak = peakFlops(input.cluster.gpu, input.training.precision);
    if (peak) {
        step.mfu = modelFlops / seconds / *peak;
        step.hfu = executedFlops / seconds / *peak;
    }
    const StepSetting setting = stepSettingOf(input.strategy, input.cluster);
    const StepBand& band = stepBand(setting);
    step.lowSeconds = seconds * band.low;
    step.highSeconds = seconds * band.high;
    fillAssumptions(band, setting, peak.has_value(), step);
    if (input.training.launchBlocking)
        step.assumptions.push_back({"CUDA_LAUNCH_BLOCKING=1: the host's time for each kernel adds to the GPU's; what "
                                    "runs on other streams is still counted beside computing",
                                    Provenance::Assumed, ""});
}

StepLoad loadOf(const Schedule& schedule, const OpTimes& times)
{
    StepLoad load;
    for (const Segment& segment : schedule.segments)
        for (std::uint32_t op = segment.firstOp; op < segment.endOp; ++op)
            if (schedule.ops[op].phase != Phase::Init)
                load.add(schedule.ops[op], times.seconds[op] * static_cast<double>(segment.repeat));
    return load;
}

void warnOfLostSeconds(double lost, StepTime& step)
{
    constexpr double kWorthAWord = 0.005;
    if (lost > kWorthAWord * step.seconds)
        step.assumptions.push_back({fmt::format("computing beside collectives lacks the multiprocessors that their "
                                                "kernels hold: {:.1f} % of the step",
                                                100 * lost / step.seconds),
                                    Provenance::Assumed, "channels of NCCL over multiprocessors of the GPU"});
}

double executedFlops(const Schedule& schedule, const LayerCosts& layers)
{
    double flops = 0;
    for (const Segment& segment : schedule.segments) {
        double once = 0;
        for (std::uint32_t i = segment.firstOp; i < segment.endOp; ++i)
            once += layers.flops(schedule.ops[i]);
        flops += once * static_cast<double>(segment.repeat);
    }
    return flops;
}

double stepSeconds(const PlanInput& input, const Schedule& schedule, const OpTimes& times)
{
    if (!finite(times))
        return std::numeric_limits<double>::infinity();
    const double seconds = input.cluster.gpu.isHostProcessor() ? simulatedSeconds(inOrderOfIssue(schedule), times)
                                                               : simulatedSeconds(schedule, times);
    return seconds + lostBesideCollectives(input.cluster, loadOf(schedule, times), seconds);
}

std::optional<StepTime> stepTime(const PlanInput& input, const FrameworkRules& rules, const Schedule& schedule)
{
    const OpCosts costs(input, *rules.activations(), schedule.sizes);
    const OpTimes times = opTimes(schedule, costs);
    if (!finite(times))
        return std::nullopt;
    // A rank of a host is one thread, which does itself what streams would do beside each other.
    const Timeline timeline =
        input.cluster.gpu.isHostProcessor() ? simulate(inOrderOfIssue(schedule), times) : simulate(schedule, times);
    StepTime step;
    const double lost = lostBesideCollectives(input.cluster, loadOf(schedule, times), timeline.seconds);
    step.breakdown = timeline.breakdown;
    step.breakdown.other += lost;
    step.hiddenCommunicationSeconds = timeline.hiddenCommunicationSeconds;
    fillRates(input, timeline.seconds + lost, executedFlops(schedule, costs.layers()), step);
    warnOfThreads(input, schedule, step);
    warnOfLostSeconds(lost, step);
    return step;
}

} // namespace shardwright
