#include "planner/activations/activation_model.hpp"

#include <cassert>

#include "planner/activations/shardrun_programs.hpp"

namespace shardwright {

namespace {

using C = Category;

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
    m_received = context.hidden;
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
        const KeepMode ofType = layerType.kind == LayerKind::Block ? mode : KeepMode::Keep;
        if (m_segment > 1) {
            m_handingOn.push_back(m_keeping.back());
            m_handingOn.back().compile(ofType, RecomputeRange::Whole, true);
        }
        if (ofType != KeepMode::Keep) {
            m_checkpointed.push_back(m_keeping.back());
            m_checkpointed.back().compile(ofType, recomputeRange(training, variant));
        }
        m_keeping.back().compile(KeepMode::Keep);
        if (ofType == KeepMode::Keep)
            m_checkpointed.push_back(m_keeping.back());
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

} // namespace shardwright
