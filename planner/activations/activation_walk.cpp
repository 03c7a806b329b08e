// ActivationWalk of activation_model.hpp: a step's forward and backward as operations.

#include <utility>

#include "planner/activations/activation_model.hpp"

namespace shardwright {

namespace {

/// Kernels whose last operand is the batch.
bool readsTokens(Kernel kernel)
{
    return kernel == Kernel::Embedding || kernel == Kernel::EmbeddingBackward || kernel == Kernel::CrossEntropy ||
           kernel == Kernel::CrossEntropyBackward;
}

} // namespace

void StageObserver::beforeStage(Pass, int, int) {}
void StageObserver::afterStage(Pass, int, int) {}
void StageObserver::betweenLossPasses() {}
BufferId StageObserver::gradientBuffer(int, int)
{
    return -1;
}

ActivationWalk::ActivationWalk(const ActivationModel& activations)
    : m_activations(&activations), m_layers(activations.model().layers.size())
{
}

void ActivationWalk::carryOver(ScheduleBuilder& builder)
{
    if (m_activations->m_heldLogits >= 0)
        m_heldLogits = builder.allocate(m_activations->m_heldLogits);
}

void ActivationWalk::beginMicroStep(ScheduleBuilder& builder)
{
    builder.op(OpKind::Allocate, Stream::Compute, Phase::Forward);
    m_batch = builder.allocate(m_activations->m_batch);
    builder.act(Verb::LoadBatch, {}, {m_batch});
}

void ActivationWalk::startOp(ScheduleBuilder& builder, Pass kind, int layer, int module)
{
    const OpKind op = kind == Pass::Forward     ? OpKind::Forward
                      : kind == Pass::Recompute ? OpKind::Recompute
                                                : OpKind::Backward;
    builder.op(op, Stream::Compute, kind == Pass::Forward ? Phase::Forward : Phase::Backward, layer,
               static_cast<std::int16_t>(module));
    builder.blockHost(std::exchange(m_copying, -1));
}

void ActivationWalk::run(ScheduleBuilder& builder, const LayerProgram& program, const ProgramPass& pass, Pass kind,
                         int layer, StageObserver& observer)
{
    const auto position = static_cast<std::size_t>(layer);
    std::vector<BufferId>& slots = m_layers[position].slots;
    const bool tied = m_activations->model().layer(position).kind == LayerKind::Head &&
                      m_activations->model().layer(position).parameters.empty();
    OpId current = -1;
    OpId beforeCurrent = -1;
    std::vector<OpId> collectives; // by part
    for (std::size_t part = 0; part < pass.size(); ++part) {
        const ProgramStage& stage = pass[part];
        const int owner = tied ? m_activations->m_embeddingLayer : layer;
        const int module = stage.module;
        if (module >= 0 && stage.half != Half::Second)
            observer.beforeStage(kind, owner, tied ? 0 : module);
        if (stage.collective >= 0) {
            collectives.resize(pass.size(), -1);
            const bool beside = stage.beside != Beside::Nothing;
            const OpId before = stage.beside == Beside::Writer ? beforeCurrent : builder.lastOp();
            collectives[part] =
                emitCollective(builder, stage.collective, beside ? besideStream(stage.collective) : Stream::Compute,
                               kind == Pass::Forward ? Phase::Forward : Phase::Backward, layer);
            if (beside)
                builder.wait(before);
            current = -1;
        } else {
            if (current < 0 || builder.lastOp() != current || !stage.waitsFor.empty() || stage.apart) {
                beforeCurrent = builder.lastOp();
                startOp(builder, kind, layer, current < 0 && module < 0 ? -1 : module);
                current = builder.lastOp();
            }
            builder.cover(part);
        }
        for (const int earlier : stage.waitsFor)
            builder.wait(collectives[static_cast<std::size_t>(earlier)]);
        auto work = stage.work.begin();
        const auto computeUpTo = [&](std::size_t event) {
            for (; builder.records() && work != stage.work.end() && work->eventsBefore <= event; ++work) {
                const int weights = tied && work->module >= 0 ? 0 : work->module;
                const bool trains = kind == Pass::Backward && weights >= 0;
                compute(builder, *work, slots, owner, weights, trains ? observer.gradientBuffer(owner, weights) : -1);
            }
        };
        for (std::size_t i = 0; i < stage.events.size(); ++i) {
            computeUpTo(i);
            const SlotEvent& event = stage.events[i];
            const auto slot = static_cast<std::size_t>(event.slot);
            if (event.makes) {
                slots[slot] = builder.allocate(program.classOf(event.slot));
            } else {
                builder.free(slots[slot]);
                slots[slot] = -1;
            }
        }
        computeUpTo(stage.events.size());
        if (module >= 0 && stage.half != Half::First)
            observer.afterStage(kind, owner, tied ? 0 : module);
    }
}

void ActivationWalk::compute(ScheduleBuilder& builder, const StepWork& work, const std::vector<BufferId>& slots,
                             int layer, int module, BufferId gradient) const
{
    if (work.kernel == Kernel::None)
        return;
    Action action;
    action.verb = Verb::Compute;
    action.kernel = work.kernel;
    action.layer = layer;
    action.module = module;
    action.gradient = gradient;
    const auto buffersOf = [&](const std::vector<std::int16_t>& from) {
        std::vector<BufferId> buffers;
        for (const std::int16_t slot : from)
            buffers.push_back(slots[static_cast<std::size_t>(slot)]);
        return buffers;
    };
    std::vector<BufferId> reads = buffersOf(work.reads);
    if (readsTokens(work.kernel))
        reads.push_back(m_batch);
    builder.act(action, reads, buffersOf(work.writes));
}

/// A ring has a stream of its own; tensor-parallel collectives beside computing take the one of replicas, which no
/// framework that has such collectives uses otherwise.
Stream ActivationWalk::besideStream(int collective) const
{
    const LayerCollective& spec = m_activations->m_collectives[static_cast<std::size_t>(collective)];
    return spec.group == LocalGroup::Context ? Stream::Context : Stream::Replicate;
}

OpId ActivationWalk::emitCollective(ScheduleBuilder& builder, int collective, Stream stream, Phase phase,
                                    int layer) const
{
    const LayerCollective& spec = m_activations->m_collectives[static_cast<std::size_t>(collective)];
    const OpId op = builder.op(spec.kind, stream, phase, layer);
    builder.send(m_activations->payloadOf(collective), m_activations->groupOf(spec.group), spec.count);
    return op;
}

void ActivationWalk::forward(ScheduleBuilder& builder, int layer, StageObserver& observer)
{
    const LayerProgram& layerProgram = m_activations->program(layer);
    LayerState& state = m_layers[static_cast<std::size_t>(layer)];
    state.slots.assign(layerProgram.slots(), -1);
    state.slots[kInput] = m_carried;
    run(builder, layerProgram, layerProgram.forwardPass(), Pass::Forward, layer, observer);
    m_carried = state.slots[kOutput];
    state.slots[kOutput] = -1;
    if (m_activations->checkpointed(layer) && m_activations->m_segmentStart[static_cast<std::size_t>(layer)] !=
                                                  layer) { // made again from the segment's start
        builder.free(state.slots[kInput]);
        state.slots[kInput] = -1;
    }
    if (m_activations->m_hostCheckpoint >= 0 && m_activations->checkpointed(layer)) {
        // checkpointing.py copies with to(device): the host waits for it, down here and back up in backward.
        const OpId computed = builder.lastOp();
        m_copying = builder.op(OpKind::CopyToHost, Stream::DeviceToHost, Phase::Forward, layer);
        builder.move(m_activations->m_checkpointCopy);
        builder.wait(computed);
        state.hostCopy = builder.allocate(m_activations->m_hostCheckpoint);
        builder.act(Verb::Move, {state.slots[kInput]}, {state.hostCopy});
        builder.free(state.slots[kInput]);
        state.slots[kInput] = -1;
    }
    if (m_activations->m_partition >= 0 && m_activations->checkpointed(layer)) {
        builder.op(OpKind::Copy, Stream::Compute, Phase::Forward, layer);
        state.partition = builder.allocate(m_activations->m_partition);
        builder.free(state.slots[kInput]);
        state.slots[kInput] = -1;
    }
}

void ActivationWalk::loss(ScheduleBuilder& builder)
{
    StageObserver nobody;
    loss(builder, nobody);
}

void ActivationWalk::loss(ScheduleBuilder& builder, StageObserver& observer)
{
    lossForward(builder);
    observer.betweenLossPasses();
    lossBackward(builder);
}

void ActivationWalk::playLoss(ScheduleBuilder& builder, const ProgramPass& pass)
{
    for (const ProgramStage& stage : pass) {
        auto work = stage.work.begin();
        const auto computeUpTo = [&](std::size_t event) {
            for (; builder.records() && work != stage.work.end() && work->eventsBefore <= event; ++work)
                compute(builder, *work, m_lossState.slots, -1, -1, -1);
        };
        for (std::size_t i = 0; i < stage.events.size(); ++i) {
            computeUpTo(i);
            const SlotEvent& event = stage.events[i];
            BufferId& buffer = m_lossState.slots[static_cast<std::size_t>(event.slot)];
            if (event.makes) {
                buffer = builder.allocate(m_activations->m_loss.classOf(event.slot));
            } else {
                builder.free(buffer);
                buffer = -1;
            }
        }
        computeUpTo(stage.events.size());
    }
}

void ActivationWalk::lossForward(ScheduleBuilder& builder)
{
    const LayerProgram& lossProgram = m_activations->m_loss;
    m_lossState.slots.assign(lossProgram.slots(), -1);
    m_lossState.slots[kInput] = m_carried;
    builder.op(OpKind::LossForward, Stream::Compute, Phase::Loss);
    builder.blockHost(std::exchange(m_copying, -1));
    playLoss(builder, lossProgram.forwardPass());
    if (m_heldLogits >= 0)
        builder.free(m_heldLogits); // the caller's variable is assigned anew only now
    m_heldLogits = -1;
    if (m_activations->m_local.keepsBoundaries)
        m_outputs.push_back(m_lossState.slots[kInput]);
    else if (lossProgram.heldSlot() >= 0)
        m_heldLogits = m_lossState.slots[static_cast<std::size_t>(lossProgram.heldSlot())];
    if (m_activations->m_lossReduction >= 0)
        emitCollective(builder, m_activations->m_lossReduction, Stream::Compute, Phase::Loss, -1);
}

void ActivationWalk::lossBackward(ScheduleBuilder& builder)
{
    builder.op(OpKind::LossBackward, Stream::Compute, Phase::Backward);
    playLoss(builder, m_activations->m_loss.backwardPass());
    m_gradCarried = m_lossState.slots[static_cast<std::size_t>(m_activations->m_loss.gradientSlot())];
}

void ActivationWalk::backward(ScheduleBuilder& builder, int layer, StageObserver& observer)
{
    const LayerProgram& layerProgram = m_activations->program(layer);
    LayerState& state = m_layers[static_cast<std::size_t>(layer)];
    if (state.hostCopy >= 0) {
        m_copying = builder.op(OpKind::CopyToDevice, Stream::HostToDevice, Phase::Backward, layer);
        builder.move(m_activations->m_checkpointCopy);
        state.slots[kInput] = builder.allocate(layerProgram.classOf(kInput));
        builder.act(Verb::Move, {state.hostCopy}, {state.slots[kInput]});
        builder.free(state.hostCopy);
        state.hostCopy = -1;
    }
    if (state.partition >= 0) {
        emitCollective(builder, m_activations->m_partitionGather, Stream::Compute, Phase::Backward, layer);
        state.slots[kInput] = builder.allocate(layerProgram.classOf(kInput));
        builder.free(state.partition);
        state.partition = -1;
    }
    state.slots[kGradOutput] = m_gradCarried;
    recompute(builder, layer, observer);
    run(builder, layerProgram, layerProgram.backwardPass(), Pass::Backward, layer, observer);
    m_gradCarried = state.slots[kGradInput];
}

/// Before the backward of a segment's last layer, all of its layers are computed again.
void ActivationWalk::recompute(ScheduleBuilder& builder, int layer, StageObserver& observer)
{
    const auto at = static_cast<std::size_t>(layer);
    if (m_activations->program(layer).recomputePass().empty() || m_activations->m_segmentEnd[at] != layer)
        return;
    for (int each = m_activations->m_segmentStart[at]; each <= layer; ++each) {
        const LayerProgram& program = m_activations->program(each);
        std::vector<BufferId>& slots = m_layers[static_cast<std::size_t>(each)].slots;
        if (each > m_activations->m_segmentStart[at])
            slots[kInput] = std::exchange(m_layers[static_cast<std::size_t>(each) - 1].slots[kOutput], -1);
        run(builder, program, program.recomputePass(), Pass::Recompute, each, observer);
    }
}

void ActivationWalk::endMicroStep(ScheduleBuilder& builder)
{
    const LayerProgram& metrics = m_activations->metrics();
    if (!metrics.forwardPass().empty()) {
        builder.op(OpKind::LossForward, Stream::Compute, Phase::Backward);
        std::vector<BufferId> slots(metrics.slots(), -1);
        for (const ProgramStage& stage : metrics.forwardPass())
            for (const SlotEvent& event : stage.events) {
                BufferId& buffer = slots[static_cast<std::size_t>(event.slot)];
                if (event.makes)
                    buffer = builder.allocate(metrics.classOf(event.slot));
                else if (buffer >= 0) // the logits are the loss's to free
                    builder.free(buffer);
            }
    }
    builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
    builder.free(m_batch);
    m_batch = -1;
}

BufferId ActivationWalk::receive(ScheduleBuilder& builder, Phase phase) const
{
    const OpId arrived = builder.op(OpKind::Receive, Stream::Pipeline, phase);
    const BufferId buffer = builder.allocate(m_activations->m_received);
    builder.send(m_activations->payloadOf(m_activations->m_boundary), m_activations->groupOf(LocalGroup::Pipeline));
    builder.op(OpKind::Release, Stream::Compute, phase);
    builder.wait(arrived);
    return buffer;
}

void ActivationWalk::send(ScheduleBuilder& builder, Phase phase, BufferId& sent) const
{
    const OpId made = builder.op(OpKind::Release, Stream::Compute, phase); // not the reductions issued before
    builder.op(OpKind::Send, Stream::Pipeline, phase);
    builder.wait(made);
    builder.send(m_activations->payloadOf(m_activations->m_boundary), m_activations->groupOf(LocalGroup::Pipeline));
    if (sent >= 0)
        builder.free(sent);
    sent = -1;
}

void ActivationWalk::receiveInput(ScheduleBuilder& builder)
{
    m_carried = receive(builder, Phase::Forward);
}

void ActivationWalk::sendOutput(ScheduleBuilder& builder)
{
    if (m_activations->m_local.keepsBoundaries)
        m_outputs.push_back(std::exchange(m_carried, -1));
    send(builder, Phase::Forward, m_carried);
}

void ActivationWalk::releaseOutput(ScheduleBuilder& builder)
{
    if (m_outputs.empty())
        return;
    builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
    builder.free(m_outputs.back());
    m_outputs.pop_back();
}

void ActivationWalk::receiveGradient(ScheduleBuilder& builder)
{
    m_gradCarried = receive(builder, Phase::Backward);
}

void ActivationWalk::sendGradient(ScheduleBuilder& builder)
{
    send(builder, Phase::Backward, m_gradCarried);
}

} // namespace shardwright
