#include "planner/activations/activation_model.hpp"

#include <cassert>
#include <utility>

#include "planner/activations/shardrun_programs.hpp"

namespace shardwright {

namespace {

using C = Category;

constexpr BufferClassId kHiddenClass = 0; // the first that is defined

constexpr BufferSpec kHidden{"hidden states between layers", "c T H", "torch autograd", C::Activations};
constexpr BufferSpec kLogits{"logits", "c T V", "HF LlamaForCausalLM.forward", C::Logits};
constexpr BufferSpec kBatch{"token ids, labels and positions", "24 T", "int64 each", C::Activations};
constexpr BufferSpec kTokensAndLabels{"token ids and labels", "16 T", "int64 each", C::Activations};
constexpr BufferSpec kHeld{"logits of the micro-step before, held by the caller",
                           "c T V (4 T V with fp32 outputs)",
                           "outputs = model(**batch) keeps outputs.logits",
                           C::Logits,
                           Place::Gpu,
                           Stream::Compute,
                           Lifetime::FromFirstStep};
constexpr BufferSpec kHostInput{"checkpointed input in host memory",
                                "c T H",
                                "deepspeed.checkpointing cpu_checkpointing",
                                C::Activations,
                                Place::HostPageable,
                                Stream::DeviceToHost};

constexpr BufferSpec kReceived{"hidden states in a stage's receive buffer", "0: the buffer is counted by itself",
                               "torch/distributed/pipelining/stage.py args_recv_info", C::Activations};
constexpr BufferSpec kPartition{"checkpointed input, split over the tensor-parallel ranks", "c T H / t",
                                "deepspeed.checkpointing partition_activations; Megatron-LM "
                                "--distribute-saved-activations",
                                C::Activations};

/// What checkpointing runs again. torch.utils.checkpoint without reentrance stops once backward has what it asked for
/// (set_checkpoint_early_stop, torch 2.1): torchtitan, torchtune and llm-foundry wrap their blocks so. transformers'
/// gradient_checkpointing_enable, DeepSpeed's and Megatron's full recomputation run the whole block; a compiled block
/// and Megatron's recomputed attention core hold nothing that is not needed, nor do wrapped children, each of which
/// stops early. shardrun runs what its schedule says.
RecomputeRange recomputeRange(const Training& training, const ActivationVariant& variant)
{
    if (training.compile || variant.checkpointChildren || training.implementation == Implementation::Shardrun)
        return RecomputeRange::OnlyNeeded;
    switch (training.implementation) {
    case Implementation::Torchtitan:
    case Implementation::Torchtune:
    case Implementation::LlmFoundry:
        if (training.checkpointEarlyStop)
            return RecomputeRange::UntilLastNeeded;
        break;
    default: break;
    }
    return training.checkpointing == Checkpointing::Selective && training.implementation != Implementation::Torchtitan
               ? RecomputeRange::OnlyNeeded
               : RecomputeRange::Whole;
}
} // namespace

void StageObserver::beforeStage(Pass, int, int) {}
void StageObserver::afterStage(Pass, int, int) {}
void StageObserver::betweenLossPasses() {}
BufferId StageObserver::gradientBuffer(int, int)
{
    return -1;
}

namespace {

LayerProgram layerProgram(const ProgramContext& context, int layerType, const std::vector<LeafModule>& modules,
                          BufferClassId logits)
{
    switch (context.model.layerTypes[static_cast<std::size_t>(layerType)].kind) {
    case LayerKind::Embedding: return embeddingProgram(context, modules);
    case LayerKind::FinalNorm: return finalNormProgram(context, modules);
    case LayerKind::Head: return headProgram(context, modules, logits);
    case LayerKind::Block: break;
    }
    return blockProgram(context, layerType, modules);
}

/// Kernels whose last operand is the batch.
bool readsTokens(Kernel kernel)
{
    return kernel == Kernel::Embedding || kernel == Kernel::EmbeddingBackward || kernel == Kernel::CrossEntropy ||
           kernel == Kernel::CrossEntropyBackward;
}

} // namespace

ActivationModel::ActivationModel(const Model& model, const Training& training, DType compute, ActivationVariant variant)
    : m_model(&model), m_compute(compute), m_local(variant.local), m_checkpointing(training.checkpointing),
      m_checkpointEvery(training.checkpointEvery), m_segment(training.checkpointSegment),
      m_holdsLogits(training.holdsLogits)
{
    ProgramContext context{model,     training,      compute, variant, familyRules(model, training),
                           m_classes, m_collectives, -1};
    const Architecture& architecture = model.architecture;
    const bool fused = training.loss == LossKind::Fused; // head and loss run chunk by chunk: whole logits never exist
    const std::int64_t logitWidth =
        fused ? ceilDivide(architecture.vocab, lossChunks(architecture)) : architecture.vocab;
    context.hidden = context.alongSequence().add(kHidden, architecture.hidden, context.computeBytes());
    const BufferClassId logits = context.add(kLogits, logitWidth, context.computeBytes());
    const bool shardrun = training.implementation == Implementation::Shardrun;
    m_batch = shardrun ? context.add(kTokensAndLabels, 2, 8) : context.add(kBatch, 3, 8);
    if (m_holdsLogits && !fused)
        m_heldLogits =
            context.add(kHeld, logitWidth, training.loss == LossKind::ShiftedCopy ? 4 : context.computeBytes());
    if (m_checkpointing == Checkpointing::Cpu) {
        m_hostCheckpoint = context.add(kHostInput, architecture.hidden, context.computeBytes());
        m_checkpointCopy = 0;
    }

    if (m_checkpointing == Checkpointing::Partitioned && m_local.splitsTensors() && !m_local.splitsSequence()) {
        const std::int64_t states = checkedMultiply(architecture.hidden, context.computeBytes());
        m_partition = context.add(kPartition, ceilDivide(states, m_local.tensor), 1);
        m_partitionGather = context.addCollective({OpKind::AllGather, LocalGroup::Tensor, "checkpointed inputs",
                                                   "c T H", "partition_activations", states, compute});
    }
    // The maximum, the target's logit and the sum of exponentials of each token
    // (core/tensor_parallel/cross_entropy.py; torch.distributed.tensor.parallel.loss_parallel).
    if (m_local.splitsTensors() && m_local.splitsLoss)
        m_lossReduction = context.addCollective({OpKind::AllReduce, LocalGroup::Tensor, "statistics of the loss", "4 T",
                                                 "core/tensor_parallel/cross_entropy.py", 4, DType::Fp32, 3});
    if (m_local.stages > 1)
        m_boundary = context.addCollective(
            {OpKind::Send, LocalGroup::Pipeline, "hidden states between stages", "c T H, / t where they are split",
             "megatron/core/pipeline_parallel/schedules.py get_tensor_shapes; deepspeed/runtime/pipe/engine.py",
             ceilDivide(checkedMultiply(architecture.hidden, context.computeBytes()), m_local.boundarySplit), compute});
    if (m_local.keepsBoundaries) {
        m_received = static_cast<BufferClassId>(m_classes.size());
        m_classes.push_back({&kReceived, 0, false, -1});
    }
    const bool policy = m_checkpointing == Checkpointing::Selective || variant.checkpointChildren;
    const KeepMode mode = m_checkpointing == Checkpointing::None ? KeepMode::Keep
                          : policy                               ? KeepMode::Policy
                                                                 : KeepMode::Discard;
    for (std::size_t type = 0; type < model.layerTypes.size(); ++type) {
        const LayerType& layerType = model.layerTypes[type];
        m_modules.push_back(leafModules(layerType));
        const std::vector<LeafModule>& modules = m_modules.back();
        m_keeping.push_back(shardrun ? shardrunProgram(context, static_cast<int>(type), modules, logits)
                                     : layerProgram(context, static_cast<int>(type), modules, logits));
        m_checkpointed.push_back(m_keeping.back());
        if (m_segment > 1) {
            m_handingOn.push_back(m_keeping.back());
            m_handingOn.back().compile(layerType.kind == LayerKind::Block ? mode : KeepMode::Keep,
                                       RecomputeRange::Whole, true);
        }
        m_keeping.back().compile(KeepMode::Keep);
        m_checkpointed.back().compile(layerType.kind == LayerKind::Block ? mode : KeepMode::Keep,
                                      recomputeRange(training, variant));
    }
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer)
        if (model.layer(layer).kind == LayerKind::Embedding)
            m_embeddingLayer = static_cast<int>(layer);
    findSegments();
    m_loss = shardrun ? shardrunLossProgram(context, logits) : lossProgram(context, logits);
    if (m_local.keepsBoundaries)
        m_loss.handOver(kInput);
    m_loss.compile(KeepMode::Keep);
    m_metrics = metricsProgram(context, logits);
    m_metrics.compile(KeepMode::Keep);
}

void ActivationModel::defineSizes(SizeTable& sizes, const Training& training) const
{
    assert(sizes.buffers.empty() && sizes.payloads.empty() && sizes.groups.empty());
    for (const Group& group : {m_local.tensorGroup, m_local.contextGroup, m_local.expertGroup, m_local.pipelineGroup})
        if (group.ranks > 1)
            sizes.addGroup(group);
    const std::int64_t tokens = this->tokens(training);
    for (const ScaledClass& scaled : m_classes) {
        std::int64_t bytes = checkedMultiply(tokens, scaled.bytesPerToken);
        if (scaled.timesSequence)
            bytes = checkedMultiply(bytes, training.sequenceLength);
        sizes.addBuffer(*scaled.spec, Bytes(bytes), scaled.layerType);
    }
    if (m_checkpointCopy >= 0)
        sizes.addPayload({"checkpointed input", "c T H", "deepspeed.checkpointing",
                          sizes.buffers[static_cast<std::size_t>(m_hostCheckpoint)].bytes, m_compute});
    for (const LayerCollective& collective : m_collectives)
        sizes.addPayload({collective.name, collective.formula, collective.source,
                          Bytes(checkedMultiply(tokens, collective.bytesPerToken)), collective.native,
                          /*countsInPsi=*/false});
}

Bytes ActivationModel::boundaryBytes(const Training& training) const
{
    if (m_boundary < 0)
        return Bytes(0);
    return Bytes(checkedMultiply(tokens(training), m_collectives[static_cast<std::size_t>(m_boundary)].bytesPerToken));
}

GroupId ActivationModel::groupOf(LocalGroup group) const
{
    const int tensor = m_local.tensorGroup.ranks > 1 ? 1 : 0;
    const int context = m_local.contextGroup.ranks > 1 ? 1 : 0;
    switch (group) {
    case LocalGroup::Tensor: return 0;
    case LocalGroup::Context: return tensor;
    case LocalGroup::Expert: return tensor + context;
    case LocalGroup::Pipeline: break;
    }
    return tensor + context + (m_local.expertGroup.ranks > 1 ? 1 : 0);
}

bool ActivationModel::checkpointed(int layer) const
{
    if (m_checkpointing == Checkpointing::None ||
        m_model->layer(static_cast<std::size_t>(layer)).kind != LayerKind::Block)
        return false;
    return (layer - m_embeddingLayer - 1) % m_checkpointEvery == 0;
}

/// Segments of blocks from the first on; the last one has what is left.
void ActivationModel::findSegments()
{
    const auto layers = static_cast<int>(m_model->layers.size());
    int blocks = 0;
    for (int layer = 0; layer < layers; ++layer) {
        const bool block = m_model->layer(static_cast<std::size_t>(layer)).kind == LayerKind::Block;
        const bool opens = !block || blocks % m_segment == 0;
        m_segmentStart.push_back(opens ? layer : m_segmentStart.back());
        blocks += block ? 1 : 0;
    }
    m_segmentEnd.assign(m_segmentStart.size(), 0);
    for (int layer = layers - 1; layer >= 0; --layer) {
        const auto at = static_cast<std::size_t>(layer);
        const bool closes = layer + 1 == layers || m_segmentStart[at + 1] != m_segmentStart[at];
        m_segmentEnd[at] = closes ? layer : m_segmentEnd[at + 1];
    }
}

const LayerProgram& ActivationModel::program(int layer) const
{
    const auto type = static_cast<std::size_t>(m_model->layers[static_cast<std::size_t>(layer)]);
    if (m_segment > 1 && checkpointed(layer) && m_segmentEnd[static_cast<std::size_t>(layer)] != layer)
        return m_handingOn[type];
    return checkpointed(layer) ? m_checkpointed[type] : m_keeping[type];
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
    const BufferClassId received = m_activations->m_received;
    const BufferId buffer = builder.allocate(received >= 0 ? received : kHiddenClass);
    builder.send(m_activations->payloadOf(m_activations->m_boundary), m_activations->groupOf(LocalGroup::Pipeline));
    builder.op(OpKind::Release, Stream::Compute, phase);
    builder.wait(arrived);
    return buffer;
}

void ActivationWalk::send(ScheduleBuilder& builder, Phase phase, BufferId& sent) const
{
    const OpId made = builder.lastOp();
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
