#include "planner/published/physics.hpp"

#include <algorithm>

#include <fmt/format.h>

namespace shardwright {

namespace {

/// Sources round: a figure within this of a bound is not held to pass it.
constexpr double kRounding = 0.01;

/// A bandwidth that is measured or assumed may be beaten by a better machine or a better measurement; a vendor's
/// figure may not.
constexpr double kUnsureBandwidth = 1.25;

constexpr double kTera = 1e12;
constexpr double kBillion = 1e9;

double bandwidthBound(const Figure& figure)
{
    return figure.tag == Provenance::Vendor ? figure.value : figure.value * kUnsureBandwidth;
}

/// Parameters that one token is multiplied with: lookups of embeddings cost nothing, a tied one is the head's matrix.
struct MatrixParameters {
    double all = 0;
    double trainable = 0;
    double inBlocks = 0;
};

MatrixParameters matrixParameters(const Model& model)
{
    MatrixParameters sum;
    const Architecture& architecture = model.architecture;
    for (const int index : model.layers) {
        const LayerType& type = model.layerTypes[static_cast<std::size_t>(index)];
        for (const ParameterSpec& parameter : type.parameters) {
            if (parameter.role == ParameterRole::Position || parameter.role == ParameterRole::Norm ||
                (parameter.role == ParameterRole::Embedding && !architecture.tiedEmbedding))
                continue;
            double instances = static_cast<double>(parameter.repeat);
            if (parameter.role == ParameterRole::Expert)
                instances *= static_cast<double>(architecture.expertsPerToken) /
                             static_cast<double>(std::max<std::int64_t>(architecture.experts, 1));
            const double numel = static_cast<double>(parameter.numel) * instances;
            sum.all += numel;
            sum.trainable += parameter.trainable ? numel : 0;
            sum.inBlocks += type.kind == LayerKind::Block ? numel : 0;
        }
    }
    return sum;
}

bool recomputes(Checkpointing checkpointing)
{
    return checkpointing == Checkpointing::Full || checkpointing == Checkpointing::Partitioned ||
           checkpointing == Checkpointing::Cpu;
}

void consider(TransferBound& bound, double bytes, double bandwidth, const std::string& link)
{
    if (bytes <= 0 || bandwidth <= 0 || bytes / bandwidth <= bound.seconds)
        return;
    bound.seconds = bytes / bandwidth;
    bound.link = fmt::format("{}: {:.3g} GB per step at {:.3g} GB/s", link, bytes / kGB, bandwidth / kGB);
}

bool onHost(Place place)
{
    return place == Place::HostPinned || place == Place::HostPageable;
}

/// Bytes per rank that hold model states on the host.
double hostStates(const Plan& plan)
{
    double bytes = 0;
    for (const LiveItem& item : plan.host.items)
        if (onHost(item.place) &&
            (item.category == Category::Parameters || item.category == Category::MasterParameters ||
             item.category == Category::OptimizerStates))
            bytes += item.bytes().asDouble();
    return bytes;
}

/// What must be live on the GPU when the figure was taken.
double leastGpuBytes(const PublishedFigure& figure, const ModelStates& states)
{
    if (figure.window == MeasuredWindow::AfterInit)
        return 0;
    double bytes = (states.parameters + states.masterParameters).asDouble();
    if (figure.window == MeasuredWindow::SteadyState)
        bytes += states.optimizerStates.asDouble();
    if (figure.kind != MeasuredKind::GpuHeld) // gradients are gone between steps, but not when the optimizer steps
        bytes += states.gradients.asDouble();
    return bytes;
}

void checkGpuBytes(const PublishedFigure& figure, const Plan& plan, std::vector<std::string>& reasons)
{
    const double least = leastGpuBytes(figure, plan.states);
    if (figure.value < least * (1 - kRounding))
        reasons.push_back(
            fmt::format("{:.2f} GiB are less than the {:.2f} GiB that the model states alone take on each "
                        "GPU",
                        figure.value / kGiB, least / kGiB));
}

void checkHostBytes(const PublishedFigure& figure, const Plan& plan, const Cluster& cluster,
                    std::vector<std::string>& reasons)
{
    const double least = hostStates(plan) * cluster.gpusPerNode;
    if (figure.value < least * (1 - kRounding))
        reasons.push_back(fmt::format("{:.0f} GB of host memory are less than the {:.0f} GB of model states that "
                                      "the framework keeps there on a node",
                                      figure.value / kGB, least / kGB));
}

/// Replicas of the model, each of which takes micro-batches of its own.
std::int64_t replicas(const Scenario& scenario, const PublishedFigure& figure)
{
    const auto strategy = std::find_if(scenario.strategies.begin(), scenario.strategies.end(),
                                       [&](const Strategy& candidate) { return candidate.name == figure.strategy; });
    const std::int64_t gpus = scenario.cluster.gpus();
    if (strategy == scenario.strategies.end())
        return gpus;
    return std::max<std::int64_t>(1, gpus / strategy->parallelism.modelRanks());
}

void checkStepSeconds(const Scenario& scenario, const PublishedFigure& figure, const Plan& plan,
                      std::vector<std::string>& reasons)
{
    const double gpus = static_cast<double>(scenario.cluster.gpus());
    const auto peak = peakFlops(scenario.cluster.gpu, scenario.training.precision);
    const double implied =
        stepWork(scenario.model, scenario.training, replicas(scenario, figure)).least / figure.value / gpus;
    if (peak && implied > *peak * (1 + kRounding))
        reasons.push_back(fmt::format("{:.3g} s per step would be {:.0f} TFLOP/s per GPU, more than its peak of {:.0f}",
                                      figure.value, implied / kTera, *peak / kTera));
    const TransferBound bound = slowestTransfer(plan, scenario.cluster);
    if (figure.value < bound.seconds * (1 - kRounding))
        reasons.push_back(fmt::format("{:.3g} s per step are less than the {:.3g} s that its traffic takes over {}",
                                      figure.value, bound.seconds, bound.link));
}

void checkTeraflops(const Scenario& scenario, const PublishedFigure& figure, const Plan& plan,
                    std::vector<std::string>& reasons)
{
    const auto peak = peakFlops(scenario.cluster.gpu, scenario.training.precision);
    if (peak && figure.value * kTera > *peak * (1 + kRounding))
        reasons.push_back(
            fmt::format("{:.0f} TFLOP/s per GPU are more than its peak of {:.0f}", figure.value, *peak / kTera));
    const double longest = stepWork(scenario.model, scenario.training, replicas(scenario, figure)).most /
                           (figure.value * kTera * static_cast<double>(scenario.cluster.gpus()));
    const TransferBound bound = slowestTransfer(plan, scenario.cluster);
    if (longest < bound.seconds * (1 - kRounding))
        reasons.push_back(fmt::format("{:.0f} TFLOP/s per GPU leave at most {:.3g} s per step, less than the {:.3g} s "
                                      "that its traffic takes over {}",
                                      figure.value, longest, bound.seconds, bound.link));
}

/// States grow with the parameters; those of the scenario's own model are scaled.
void checkLargestModel(const Scenario& scenario, const PublishedFigure& figure, const Plan& plan,
                       std::vector<std::string>& reasons)
{
    const double scale = figure.value / static_cast<double>(scenario.model.parameters());
    const double onGpu = plan.states.total().asDouble() * scale;
    if (onGpu > plan.gpu.capacity.asDouble() * (1 + kRounding))
        reasons.push_back(
            fmt::format("the model states of {:.4g} billion parameters take {:.1f} GiB on a GPU that has {:.1f}",
                        figure.value / kBillion, onGpu / kGiB, plan.gpu.capacity.asDouble() / kGiB));
    const double onHost = hostStates(plan) * scenario.cluster.gpusPerNode * scale;
    const double host = scenario.cluster.hostMemory.value;
    if (host > 0 && onHost > host * (1 + kRounding))
        reasons.push_back(
            fmt::format("the model states of {:.4g} billion parameters take {:.0f} GB of host memory on a "
                        "node that has {:.0f}",
                        figure.value / kBillion, onHost / kGB, host / kGB));
}

} // namespace

FlopBounds stepWork(const Model& model, const Training& training, std::int64_t replicas)
{
    const Architecture& a = model.architecture;
    const double tokens = static_cast<double>(training.tokensPerMicroBatch()) *
                          static_cast<double>(training.gradientAccumulation) * static_cast<double>(replicas);
    const MatrixParameters matrices = matrixParameters(model);
    // Scores (query x key) and their product with the values, 2 operations per multiply-add, for every earlier token:
    // 4 s H per token and layer of the forward pass where both heads are equally wide; Korthikanti et al., arXiv
    // 2205.05198, appendix A.
    const double scores = 2.0 * static_cast<double>(a.layers) * static_cast<double>(a.heads) *
                          static_cast<double>(a.headDim + a.valueHeadDim) *
                          static_cast<double>(training.sequenceLength);
    const double causal =
        training.attention == Attention::Eager || training.attention == Attention::MaskedSdpa ? 1.0 : 0.5;

    // Forward, and backward once for the inputs and once for the weights that are trained.
    const double leastForward = 2 * matrices.inBlocks + causal * scores;
    double least = 4 * matrices.all + 2 * matrices.trainable + 3 * causal * scores;
    if (recomputes(training.checkpointing))
        least += leastForward / training.checkpointEvery;

    const double active = static_cast<double>(model.activeParameters());
    double most = 6 * active + 3 * scores;
    if (training.checkpointing != Checkpointing::None)
        most *= 4.0 / 3.0;
    return {least * tokens, std::max(most, least) * tokens};
}

std::optional<double> peakFlops(const Gpu& gpu, const Precision& precision)
{
    const DType dtype = precision.mixed.value_or(precision.load);
    double peak = 0;
    const auto take = [&](DType wanted, double share) {
        const auto found = gpu.peakFlops.find(wanted);
        if (found != gpu.peakFlops.end())
            peak = std::max(peak, found->second.value * share);
    };
    take(dtype, 1);
    if (precision.fp8)
        take(DType::Fp8, 1);
    // TF32 tensor cores of Ampere and later run at half the 16-bit rate (NVIDIA A100 data sheet).
    if (dtype == DType::Fp32 && gpu.computeCapability >= 80)
        take(DType::Bf16, 0.5);
    return peak > 0 ? std::optional<double>(peak) : std::nullopt;
}

TransferBound slowestTransfer(const Plan& plan, const Cluster& cluster)
{
    TransferBound bound;
    const Traffic& traffic = plan.traffic;
    consider(bound, traffic.interNodeBytesPerNode.asDouble(), bandwidthBound(cluster.interNode.bandwidth),
             "the network between nodes");
    // NVSwitch of Hopper and later reduces in the switch: a GPU sends half of what a ring sends.
    const bool reducesInSwitch = cluster.intraNode.kind == LinkKind::NvSwitch && cluster.gpu.computeCapability >= 90;
    consider(bound, traffic.intraNodeBytesPerGpu.asDouble() * (reducesInSwitch ? 0.5 : 1.0),
             bandwidthBound(cluster.intraNode.bandwidth), "the links between the GPUs of a node");
    const double pcie = bandwidthBound(cluster.pcieBandwidth);
    consider(bound, traffic.hostToDeviceBytes.asDouble(), pcie, "PCIe from the host");
    consider(bound, traffic.deviceToHostBytes.asDouble(), pcie, "PCIe to the host");
    consider(bound, plan.nvme.readBytesPerStep.asDouble(), bandwidthBound(cluster.nvmeReadBandwidth), "NVMe reads");
    consider(bound, plan.nvme.writeBytesPerStep.asDouble(), bandwidthBound(cluster.nvmeWriteBandwidth), "NVMe writes");
    return bound;
}

std::optional<std::string> passObjection(const Cluster& cluster, const PublishedFigure& figure,
                                         const CollectivePass& pass)
{
    const double link = cluster.intraNode.bandwidth.value;
    if (!pass.withinNodes || link <= 0 || figure.value <= 0 || pass.receivedBytes / figure.value <= link)
        return std::nullopt;
    return fmt::format("each GPU receives {:.1f} GB in it: in {:.3g} ms that is {:.0f} GB/s, and the link among the "
                       "node's GPUs carries {:.0f}",
                       pass.receivedBytes / kGB, figure.value * 1e3, pass.receivedBytes / figure.value / kGB,
                       link / kGB);
}

std::vector<std::string> objections(const Scenario& scenario, const PublishedFigure& figure, const Plan& plan)
{
    std::vector<std::string> reasons;
    if (plan.verdict == Verdict::NotPossible) // nothing is known about it
        return reasons;
    switch (figure.kind) {
    case MeasuredKind::GpuAllocated:
    case MeasuredKind::GpuReserved:
    case MeasuredKind::GpuUsed:
    case MeasuredKind::GpuHeld: checkGpuBytes(figure, plan, reasons); break;
    case MeasuredKind::HostUsed: checkHostBytes(figure, plan, scenario.cluster, reasons); break;
    case MeasuredKind::StepSeconds: checkStepSeconds(scenario, figure, plan, reasons); break;
    case MeasuredKind::TflopsPerGpu:
    case MeasuredKind::HardwareTflopsPerGpu: checkTeraflops(scenario, figure, plan, reasons); break;
    case MeasuredKind::LargestModel: checkLargestModel(scenario, figure, plan, reasons); break;
    case MeasuredKind::Fits:
        if (plan.states.total() > plan.gpu.capacity)
            reasons.push_back(fmt::format("the model states alone take {:.1f} GiB on each GPU of {:.1f}",
                                          plan.states.total().asDouble() / kGiB, plan.gpu.capacity.asDouble() / kGiB));
        break;
    case MeasuredKind::GpuStates:
    case MeasuredKind::OutOfMemory:
    case MeasuredKind::InterNodeBytes: // a definition, a failure and a traffic bound: nothing to pass
    case MeasuredKind::Speedup:
    case MeasuredKind::ForwardGatherSeconds: // passObjection
    case MeasuredKind::BackwardGatherSeconds:
    case MeasuredKind::ReduceScatterSeconds:
    case MeasuredKind::HostOptimizerSeconds:
    case MeasuredKind::ActivationRatio:
    case MeasuredKind::SlowerPerGpu:
    case MeasuredKind::MoreGpuMemory: break;
    }
    return reasons;
}

} // namespace shardwright
