#include "planner/costs/layer_costs.hpp"

#include <algorithm>
#include <cassert>
#include <utility>

#include "planner/costs/host_costs.hpp"
#include "planner/costs/step_costs.hpp"

namespace shardwright {

namespace {

/// Sums over the stages before each position of a pass: the cost of [first, end) is one difference.
using StageSums = std::vector<Cost>;

enum class PassKind { Forward, Recompute, Backward };

/// Whose kernels Megatron wraps into a torch.autograd.Function of its own: linear layers
/// (core/tensor_parallel/layers.py LinearWithGradAccumulationAndAsyncCommunication), norms
/// (fusions/fused_layer_norm.py) and the softmax (fusions/fused_softmax.py) or the fused attention.
bool isFunction(const StepWork& work)
{
    switch (work.kind) {
    case WorkKind::Attention:
    case WorkKind::AttentionScores: return true;
    case WorkKind::ByModule: return work.module >= 0;
    default: return false;
    }
}

class PassSums {
public:
    PassSums(const PlanInput& input, const ActivationModel& activations)
        : m_training(input.training), m_model(activations.model()), m_costs(input, activations), m_host(input)
    {
    }

    /// `layerType`: -1 for the loss.
    StageSums of(PassKind kind, const ProgramPass& pass, const LayerProgram& program, int layerType) const
    {
        const bool block =
            layerType >= 0 && m_model.layerTypes[static_cast<std::size_t>(layerType)].kind == LayerKind::Block;
        // torch.compile of each block. Recomputation is part of the graph of its backward.
        const bool compiled =
            block ? m_training.compile : layerType < 0 && m_training.loss == LossKind::Compiled && m_training.compile;
        const bool wraps = block && m_training.implementation == Implementation::Megatron;
        const double perKernel = compiled ? m_host.compiledKernel() : m_host.kernel();
        double entering = 0;
        if (compiled)
            entering = kind == PassKind::Recompute ? 0 : m_host.compiledGraph();
        else if (kind == PassKind::Recompute)
            entering = m_host.checkpoint();
        StageSums sums(1);
        sums.reserve(pass.size() + 1);
        for (const ProgramStage& stage : pass) {
            Cost sum = sums.back();
            for (const StepWork& work : stage.work) {
                Cost cost = m_costs.of(work, program, layerType, kind == PassKind::Backward);
                cost.hostSeconds = perKernel * cost.kernels + std::exchange(entering, 0.0);
                if (wraps && isFunction(work))
                    cost.hostSeconds += m_host.function();
                sum += cost;
            }
            sums.push_back(sum);
        }
        return sums;
    }

private:
    const Training& m_training;
    const Model& m_model;
    const StepCosts m_costs;
    const HostCosts m_host;
};

Cost between(const StageSums& sums, int first, int end)
{
    const auto last = static_cast<int>(sums.size()) - 1;
    const Cost& before = sums[static_cast<std::size_t>(std::clamp(first < 0 ? 0 : first, 0, last))];
    const Cost& after = sums[static_cast<std::size_t>(std::clamp(end < 0 ? last : end, 0, last))];
    return {after.seconds - before.seconds, after.flops - before.flops, after.kernels - before.kernels,
            after.hostSeconds - before.hostSeconds};
}

struct ProgramSums {
    const LayerProgram* program = nullptr;
    StageSums forward, recompute, backward;
};

} // namespace

struct LayerCosts::Tables {
    std::vector<ProgramSums> programs;  // one a layer type, two where some of its layers are checkpointed
    std::vector<std::size_t> programOf; // by layer
    ProgramSums loss;
    StageSums metrics; // of a LossForward after backward

    Cost of(const Op& op) const
    {
        switch (op.kind) {
        case OpKind::LossForward: return (op.phase == Phase::Loss ? loss.forward : metrics).back();
        case OpKind::LossBackward: return loss.backward.back();
        default: break;
        }
        if (op.layer < 0)
            return {};
        const ProgramSums& sums = programs[programOf[static_cast<std::size_t>(op.layer)]];
        switch (op.kind) {
        case OpKind::Forward: return between(sums.forward, op.firstPart, op.endPart);
        case OpKind::Recompute: return between(sums.recompute, op.firstPart, op.endPart);
        case OpKind::Backward: return between(sums.backward, op.firstPart, op.endPart);
        default: return {};
        }
    }
};

LayerCosts::LayerCosts(const PlanInput& input, const ActivationModel& activations)
    : m_tables(std::make_unique<Tables>())
{
    const PassSums sumsOf(input, activations);
    const std::vector<int>& layers = activations.model().layers;
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
        const LayerProgram* program = &activations.program(static_cast<int>(layer));
        std::vector<ProgramSums>& known = m_tables->programs;
        const auto found =
            std::find_if(known.begin(), known.end(), [&](const ProgramSums& sums) { return sums.program == program; });
        m_tables->programOf.push_back(static_cast<std::size_t>(found - known.begin()));
        if (found != known.end())
            continue;
        const int type = layers[layer];
        known.push_back({program, sumsOf.of(PassKind::Forward, program->forwardPass(), *program, type),
                         sumsOf.of(PassKind::Recompute, program->recomputePass(), *program, type),
                         sumsOf.of(PassKind::Backward, program->backwardPass(), *program, type)});
    }
    const LayerProgram& loss = activations.loss();
    m_tables->loss = {&loss, sumsOf.of(PassKind::Forward, loss.forwardPass(), loss, -1), StageSums(1),
                      sumsOf.of(PassKind::Backward, loss.backwardPass(), loss, -1)};
    const LayerProgram& metrics = activations.metrics();
    m_tables->metrics = sumsOf.of(PassKind::Forward, metrics.forwardPass(), metrics, -1);
}

LayerCosts::~LayerCosts() = default;

double LayerCosts::seconds(const Op& op) const
{
    return m_tables->of(op).seconds;
}

int LayerCosts::kernels(const Op& op) const
{
    return m_tables->of(op).kernels;
}

double LayerCosts::hostSeconds(const Op& op) const
{
    return m_tables->of(op).hostSeconds;
}

double LayerCosts::flops(const Op& op) const
{
    return m_tables->of(op).flops;
}

double modelFlopsPerToken(const Model& model, std::int64_t sequenceLength)
{
    const Architecture& arch = model.architecture;
    double flops = 0;
    for (const int index : model.layers) {
        const LayerType& type = model.layerTypes[static_cast<std::size_t>(index)];
        for (const ParameterSpec& parameter : type.parameters) {
            if (parameter.shape.size() < 2 || type.kind == LayerKind::Embedding)
                continue; // vectors count for nothing; a lookup multiplies nothing
            auto met = static_cast<double>(parameter.numel);
            if (parameter.role == ParameterRole::Expert)
                met *= static_cast<double>(std::min(parameter.repeat, std::max<std::int64_t>(1, arch.expertsPerToken)));
            else
                met *= static_cast<double>(parameter.repeat);
            flops += (parameter.trainable ? 6 : 4) * met;
        }
        if (type.kind == LayerKind::Head && type.parameters.empty()) // borrows the embedding's table
            flops += 6 * static_cast<double>(arch.vocab) * static_cast<double>(arch.hidden);
        if (type.kind == LayerKind::Block)
            flops += 6 * static_cast<double>(arch.heads) * static_cast<double>(arch.headDim + arch.valueHeadDim) *
                     static_cast<double>(sequenceLength);
    }
    return flops;
}

} // namespace shardwright
