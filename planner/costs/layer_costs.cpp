#include "planner/costs/layer_costs.hpp"

#include <algorithm>
#include <cassert>

#include "planner/costs/step_costs.hpp"

namespace shardwright {

namespace {

/// Sums over the stages before each position of a pass: the cost of [first, end) is one difference.
using StageSums = std::vector<Cost>;

StageSums sumsOf(const StepCosts& costs, const ProgramPass& pass, const LayerProgram& program, int layerType,
                 bool backward)
{
    StageSums sums(1);
    sums.reserve(pass.size() + 1);
    for (const ProgramStage& stage : pass) {
        Cost sum = sums.back();
        for (const StepWork& work : stage.work)
            sum += costs.of(work, program, layerType, backward);
        sums.push_back(sum);
    }
    return sums;
}

Cost between(const StageSums& sums, int first, int end)
{
    const auto last = static_cast<int>(sums.size()) - 1;
    const Cost& before = sums[static_cast<std::size_t>(std::clamp(first < 0 ? 0 : first, 0, last))];
    const Cost& after = sums[static_cast<std::size_t>(std::clamp(end < 0 ? last : end, 0, last))];
    return {after.seconds - before.seconds, after.flops - before.flops, after.kernels - before.kernels};
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
    const StepCosts costs(input, activations);
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
        known.push_back({program, sumsOf(costs, program->forwardPass(), *program, type, false),
                         sumsOf(costs, program->recomputePass(), *program, type, false),
                         sumsOf(costs, program->backwardPass(), *program, type, true)});
    }
    const LayerProgram& loss = activations.loss();
    m_tables->loss = {&loss, sumsOf(costs, loss.forwardPass(), loss, -1, false), StageSums(1),
                      sumsOf(costs, loss.backwardPass(), loss, -1, true)};
    const LayerProgram& metrics = activations.metrics();
    m_tables->metrics = sumsOf(costs, metrics.forwardPass(), metrics, -1, false);
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
