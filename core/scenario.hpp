#pragma once

// A scenario: one question. Model, cluster, training, the strategies to compare, and what somebody measured, if
// anybody.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/cluster.hpp"
#include "core/model.hpp"
#include "core/strategy.hpp"
#include "core/training.hpp"

namespace shardwright {

/// What a published figure says it measured. "Allocated": torch max_memory_allocated; "reserved": max_memory_reserved;
/// "used": nvidia-smi; "held": memory_allocated between steps; "states": model states alone. Gather and reduce-scatter
/// seconds: what a profiler adds up of a step's collectives of that sort, hidden or not; host optimizer seconds: the
/// optimizer's own time on the host. Speedup: the step time of another strategy (`over`) by that of this one;
/// activation ratio: the activations at the peak by those of `over`; slower per GPU: fewer tokens a second and GPU than
/// `over`; more GPU memory: used at the peak, than `over`. TFLOP/s count the FLOPs of the model; hardware TFLOP/s those
/// that recomputation repeats besides.
enum class MeasuredKind : std::uint8_t {
    GpuAllocated,
    GpuReserved,
    GpuUsed,
    GpuHeld,
    GpuStates,
    HostUsed,
    StepSeconds,
    TflopsPerGpu,
    Fits,
    OutOfMemory,
    LargestModel,
    InterNodeBytes,
    Speedup,
    ForwardGatherSeconds,
    BackwardGatherSeconds,
    ReduceScatterSeconds,
    HostOptimizerSeconds,
    ActivationRatio,
    SlowerPerGpu,
    HardwareTflopsPerGpu,
    MoreGpuMemory
};
template <> struct EnumNames<MeasuredKind> {
    static constexpr std::array<std::pair<MeasuredKind, std::string_view>, 21> table{
        {{MeasuredKind::GpuAllocated, "gpu-allocated"},
         {MeasuredKind::GpuReserved, "gpu-reserved"},
         {MeasuredKind::GpuUsed, "gpu-used"},
         {MeasuredKind::GpuHeld, "gpu-held"},
         {MeasuredKind::GpuStates, "gpu-states"},
         {MeasuredKind::HostUsed, "host-used"},
         {MeasuredKind::StepSeconds, "step-seconds"},
         {MeasuredKind::TflopsPerGpu, "tflops-per-gpu"},
         {MeasuredKind::Fits, "fits"},
         {MeasuredKind::OutOfMemory, "out-of-memory"},
         {MeasuredKind::LargestModel, "largest-model-parameters"},
         {MeasuredKind::InterNodeBytes, "inter-node-bytes-per-node"},
         {MeasuredKind::Speedup, "speedup"},
         {MeasuredKind::ForwardGatherSeconds, "forward-all-gather-seconds"},
         {MeasuredKind::BackwardGatherSeconds, "backward-all-gather-seconds"},
         {MeasuredKind::ReduceScatterSeconds, "reduce-scatter-seconds"},
         {MeasuredKind::HostOptimizerSeconds, "host-optimizer-seconds"},
         {MeasuredKind::ActivationRatio, "activation-ratio"},
         {MeasuredKind::SlowerPerGpu, "slower-per-gpu"},
         {MeasuredKind::HardwareTflopsPerGpu, "hardware-tflops-per-gpu"},
         {MeasuredKind::MoreGpuMemory, "more-gpu-memory"}}};
};

/// Says yes or no, without a value.
constexpr bool isVerdict(MeasuredKind kind)
{
    return kind == MeasuredKind::Fits || kind == MeasuredKind::OutOfMemory || kind == MeasuredKind::SlowerPerGpu ||
           kind == MeasuredKind::MoreGpuMemory;
}

/// Is about two plans.
constexpr bool isOverAnother(MeasuredKind kind)
{
    return kind == MeasuredKind::Speedup || kind == MeasuredKind::ActivationRatio ||
           kind == MeasuredKind::SlowerPerGpu || kind == MeasuredKind::MoreGpuMemory;
}

/// When in the run the figure was taken.
enum class MeasuredWindow : std::uint8_t { SteadyState, BeforeFirstOptimizerStep, AfterInit };
template <> struct EnumNames<MeasuredWindow> {
    static constexpr std::array<std::pair<MeasuredWindow, std::string_view>, 3> table{
        {{MeasuredWindow::SteadyState, "steady-state"},
         {MeasuredWindow::BeforeFirstOptimizerStep, "before-first-optimizer-step"},
         {MeasuredWindow::AfterInit, "after-init"}}};
};

struct Scenario;

/// Somebody's figure for one strategy of the scenario.
struct PublishedFigure {
    std::string strategy;
    std::string over; // of a figure about two plans: the strategy of the other one
    // Where the other plan is of another scenario: this one with these changes (a JSON merge patch, RFC 7386).
    std::string overChanges;
    std::shared_ptr<const Scenario> overScenario;
    MeasuredKind kind = MeasuredKind::GpuAllocated;
    MeasuredWindow window = MeasuredWindow::SteadyState;
    double value =
        0; // bytes, seconds, FLOP/s x 1e12, parameters or a ratio, by kind; unused for fits and out-of-memory
    std::string source;
    std::string note;     // what the source is silent about
    std::string disputed; // why the figure contradicts its own source under the printed settings; empty = it does not
};

struct Scenario {
    std::string name;
    std::string question;    // one sentence
    std::string file;        // where it was read from
    Model model;             // with adapters applied when training.lora is set
    std::string modelConfig; // the Hugging Face config's text when it stands inline in the scenario, else empty
    Cluster cluster;
    Training training;
    std::vector<Strategy> strategies;
    std::vector<PublishedFigure> published;
};

} // namespace shardwright
