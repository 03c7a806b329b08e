#include "planner/frameworks/fsdp/fsdp_emission.hpp"

#include <algorithm>

namespace shardwright {

FsdpEmission::FsdpEmission(const SizeTable& sizes, const FsdpShape& shape)
    : m_shape(shape), m_builder(sizes, recordingOf(shape.training)), m_walk(shape.activations),
      m_tensors(shape.activations), m_gradients(shape.units.units.size())
{
}

Schedule FsdpEmission::run()
{
    m_builder.beginSegment("initialisation");
    initialise();
    if (m_shape.pipelined()) {
        m_builder.allocate(m_shape.receive);
        runPipeline();
    } else {
        m_walk.carryOver(m_builder);
        for (const MicroStep& step : microSteps(m_shape.training.gradientAccumulation)) {
            m_builder.beginSegment(step.name, step.repeat);
            microStep(step);
        }
    }
    m_builder.beginSegment("optimizer step");
    optimizerStep();
    return m_builder.finish();
}

int FsdpEmission::unitOf(int layer, int module) const
{
    return m_shape.units.unitOf[static_cast<std::size_t>(layer)][static_cast<std::size_t>(module)];
}

bool FsdpEmission::rootReturnsLoss() const
{
    return lossInModel();
}

int FsdpEmission::beforeInForward(int unit) const
{
    if (isRoot(unit))
        return m_forwardOrder.back() == kRootUnit ? -1 : m_forwardOrder.back();
    const auto at = std::find(m_forwardOrder.begin(), m_forwardOrder.end(), unit);
    return at == m_forwardOrder.begin() || isRoot(*(at - 1)) ? -1 : *(at - 1);
}

int FsdpEmission::afterInForward(int unit) const
{
    const auto at = std::find(m_forwardOrder.begin(), m_forwardOrder.end(), unit);
    return at == m_forwardOrder.end() || at + 1 == m_forwardOrder.end() ? -1 : *(at + 1);
}

/// Hooks after a module's backward hang on its inputs; token ids have no gradient, so those units wait for the root's
/// final callback.
bool FsdpEmission::fedByTokens(int unit) const
{
    const Unit& where = m_shape.units.units[static_cast<std::size_t>(unit)];
    return m_shape.model.layer(static_cast<std::size_t>(where.firstLayer)).kind == LayerKind::Embedding;
}

void FsdpEmission::beforeStage(Pass pass, int layer, int module)
{
    const bool apart = pass == Pass::Recompute && layer != m_layer; // for the backward of a later block
    if (apart) {
        if (const int last = lastUnitOf(m_layer); last >= 0)
            enterBackward(last);
    } else if (pass != Pass::Forward) {
        closeOpenUnit();
    }
    const int unit = unitOf(layer, module);
    if (empty(unit))
        return;
    if (pass == Pass::Forward || apart)
        enterForward(unit, pass);
    else
        enterBackward(unit);
}

/// The unit whose output is the layer's: its pre-backward hook is the first of the layer.
int FsdpEmission::lastUnitOf(int layer) const
{
    const std::vector<int>& units = m_shape.units.unitOf[static_cast<std::size_t>(layer)];
    const auto last =
        std::find_if(units.rbegin(), units.rend(), [this](int unit) { return !isExperts(unit) && !empty(unit); });
    return last == units.rend() ? -1 : *last;
}

BufferId FsdpEmission::gradientBuffer(int layer, int module)
{
    const auto type = static_cast<std::size_t>(m_shape.model.layers[static_cast<std::size_t>(layer)]);
    const BufferClassId gradientClass = m_shape.gradientOfModule[type][static_cast<std::size_t>(module)];
    if (gradientClass >= 0 && m_fresh < 0)
        m_fresh = m_builder.allocate(gradientClass, gradientContent(layer, module, m_shape.compute));
    return m_fresh;
}

ContentId FsdpEmission::gradientContent(int layer, int module, DType dtype)
{
    if (!m_builder.records())
        return -1;
    return content(wholeContent(Quantity::Gradients, dtype, m_tensors.ofModule(layer, module)));
}

Tensors FsdpEmission::tensorsOf(int unit) const
{
    const Unit& where = m_shape.units.units[static_cast<std::size_t>(unit)];
    Tensors tensors;
    for (int layer = where.firstLayer; layer <= where.lastLayer; ++layer) {
        const std::vector<int>& units = m_shape.units.unitOf[static_cast<std::size_t>(layer)];
        for (std::size_t module = 0; module < units.size(); ++module)
            if (units[module] == unit)
                for (const std::int32_t tensor : m_tensors.ofModule(layer, static_cast<int>(module)))
                    tensors.push_back(tensor);
    }
    return tensors;
}

void FsdpEmission::afterStage(Pass pass, int layer, int module)
{
    if (pass != Pass::Backward)
        return;
    const int type = m_shape.model.layers[static_cast<std::size_t>(layer)];
    const auto of = [type, module](const auto& table) {
        return table[static_cast<std::size_t>(type)][static_cast<std::size_t>(module)];
    };
    const BufferClassId gradientClass = of(m_shape.gradientOfModule);
    if (gradientClass < 0)
        return;
    std::vector<ModuleGradient>& gradients = gradientsOf(unitOf(layer, module));
    const BufferId fresh = gradientBuffer(layer, module);
    m_fresh = -1;
    const auto known = std::find_if(gradients.begin(), gradients.end(), [&](const ModuleGradient& gradient) {
        return gradient.layer == layer && gradient.module == module;
    });
    if (known == gradients.end()) {
        gradients.push_back({layer, module, fresh, m_microStep});
        return;
    }
    if (known->microStep != m_microStep) {
        copy(Stream::Compute, Phase::Backward, of(m_shape.accumulationOfModule));
        m_builder.act(Verb::Add, {fresh}, {known->buffer});
        m_builder.free(fresh); // added in place to what no_sync left (AccumulateGrad)
        return;
    }
    // A tied weight's gradients meet in autograd's input buffer, which makes a new tensor of their sum.
    copy(Stream::Compute, Phase::Backward, of(m_shape.tiedSumOfModule));
    const BufferId sum = m_builder.allocate(gradientClass, gradientContent(layer, module, m_shape.compute));
    m_builder.act(Verb::Move, {known->buffer}, {sum});
    m_builder.act(Verb::Add, {fresh}, {sum});
    m_builder.free(known->buffer);
    m_builder.free(fresh);
    known->buffer = sum;
}

std::vector<BufferId> FsdpEmission::gradientBuffers(int unit)
{
    std::vector<BufferId> buffers;
    for (const ModuleGradient& gradient : gradientsOf(unit))
        buffers.push_back(gradient.buffer);
    return buffers;
}

void FsdpEmission::freeGradients(int unit)
{
    for (const ModuleGradient& gradient : gradientsOf(unit))
        m_builder.free(gradient.buffer);
    gradientsOf(unit).clear();
}

void FsdpEmission::enterForward(int unit, Pass pass)
{
    if (isExperts(unit)) {
        if (m_openExperts == unit)
            return;
        m_openExperts = unit;
        preForward(unit, pass);
        return;
    }
    closeExperts();
    if (m_open != unit)
        closeOpenUnit();
    if (!isRoot(unit))
        m_open = unit;
    m_openPass = pass;
    if (m_inForward[static_cast<std::size_t>(unit)])
        return;
    m_inForward[static_cast<std::size_t>(unit)] = true;
    preForward(unit, pass);
}

void FsdpEmission::closeExperts()
{
    if (m_openExperts >= 0)
        postForward(m_openExperts, m_openPass);
    m_openExperts = -1;
}

void FsdpEmission::closeOpenUnit()
{
    closeExperts();
    if (m_open < 0)
        return;
    const int unit = m_open;
    m_open = -1;
    m_inForward[static_cast<std::size_t>(unit)] = false; // a later stage of it would gather again
    postForward(unit, m_openPass);
}

void FsdpEmission::enterBackward(int unit)
{
    if (inBackward(unit))
        return;
    m_inBackward[static_cast<std::size_t>(unit)] = true;
    preBackward(unit);
}

void FsdpEmission::betweenLossPasses()
{
    if (!lossInModel())
        return;
    leaveForward();
    if (rootReturnsLoss() && !empty(kRootUnit))
        enterBackward(kRootUnit);
}

void FsdpEmission::finishBackward(int unit, const MicroStep& step)
{
    if (!postponesPostBackward()) {
        postBackward(unit, step);
        return;
    }
    if (m_postponed >= 0)
        postBackward(m_postponed, step);
    m_postponed = unit;
}

std::vector<int> FsdpEmission::unitsIn(const StageChunk& chunk) const
{
    std::vector<int> units;
    for (int unit = 0; unit < unitCount(); ++unit) {
        const int first = m_shape.units.units[static_cast<std::size_t>(unit)].firstLayer;
        if (!empty(unit) && (isRoot(unit) || (first >= chunk.first && first < chunk.end)))
            units.push_back(unit);
    }
    return units;
}

/// The root module of `chunk` is called.
void FsdpEmission::beginForward(const StageChunk& chunk)
{
    m_forwardOrder = unitsIn(chunk);
    m_inForward.assign(m_gradients.size(), false);
    enterRootForward(m_builder.lastOp());
    if (!empty(kRootUnit))
        enterForward(kRootUnit, Pass::Forward);
}

void FsdpEmission::forwardLayers(ActivationWalk& walk, const StageChunk& chunk)
{
    for (m_layer = chunk.first; m_layer < chunk.end; ++m_layer) {
        walk.forward(m_builder, m_layer, *this);
        if (m_open >= 0 && m_shape.units.units[static_cast<std::size_t>(m_open)].lastLayer == m_layer)
            closeOpenUnit();
    }
    m_layer = -1;
    if (!lossInModel())
        leaveForward();
}

void FsdpEmission::backwardLayers(ActivationWalk& walk, const StageChunk& chunk, const MicroStep& step)
{
    const std::vector<int> units = unitsIn(chunk); // in the order of their first layers
    auto unit = units.rbegin();
    for (m_layer = chunk.end - 1; m_layer >= chunk.first; --m_layer) {
        walk.backward(m_builder, m_layer, *this);
        for (; unit != units.rend() && !isRoot(*unit) &&
               m_shape.units.units[static_cast<std::size_t>(*unit)].firstLayer == m_layer;
             ++unit)
            if (!fedByTokens(*unit))
                finishBackward(*unit, step);
    }
    m_layer = -1;
    if (m_postponed >= 0)
        postBackward(m_postponed, step);
    m_postponed = -1;
    for (const int late : units)
        if (isRoot(late) || fedByTokens(late))
            postBackward(late, step);
}

void FsdpEmission::microStep(const MicroStep& step)
{
    const StageChunk whole{0, static_cast<int>(m_shape.model.layers.size())};
    ++m_microStep;
    m_inBackward.assign(m_gradients.size(), false);
    m_walk.beginMicroStep(m_builder);
    beginForward(whole);
    forwardLayers(m_walk, whole);
    m_walk.loss(m_builder, *this);
    if (!empty(kRootUnit))
        enterBackward(kRootUnit);
    backwardLayers(m_walk, whole, step);
    leaveBackward();
    m_walk.endMicroStep(m_builder);
}

void FsdpEmission::optimizerStep()
{
    OpId onHost = -1;
    const GroupId clipGroup = m_shape.sharded() ? m_shape.shardGroup : -1;
    if (m_shape.options.offloadParams) {
        m_builder.op(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer);
        m_builder.move(m_shape.clip);
        clip(m_builder, m_shape.training, clipGroup, stepped());
        onHost = m_builder.op(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer);
        m_builder.move(m_shape.step);
        update(m_builder, stepped());
    } else {
        copy(Stream::Compute, Phase::Optimizer, m_shape.clip);
        clip(m_builder, m_shape.training, clipGroup, stepped());
        m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
        m_builder.move(m_shape.step);
        if (!m_builder.records())
            m_builder.free(m_builder.allocate(m_shape.foreach));
        update(m_builder, stepped());
    }
    m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
    m_builder.blockHost(onHost); // the host steps itself
    dropGradients();
}

} // namespace shardwright
