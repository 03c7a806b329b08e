#pragma once

// Activations of a model under one training setup: which tensors each layer makes, keeps and frees. Which ones they are
// belongs to the implementation that trains the model (Training::implementation), apart from the framework that shards
// it.

#include <memory>
#include <vector>

#include "planner/activations/block_program.hpp"

namespace shardwright {

enum class Pass : std::uint8_t { Forward, Recompute, Backward };

/// What a framework hooks around the stages of a layer: a stage is what one leaf module computes, with the
/// parameterless steps after it. An observer may start operations of its own on the builder; the layer then goes on in
/// a new one.
class StageObserver {
public:
    virtual ~StageObserver() = default;
    /// `layer`: position in Model::layers of the module's owner. A tied head names the embedding's module.
    virtual void beforeStage(Pass pass, int layer, int module);
    virtual void afterStage(Pass pass, int layer, int module);
    /// In a backward recorded for execution, before the module's kernel runs: a buffer that gradients of its parameters
    /// go to; what it lacks goes to others made with it (Kernel). afterStage follows for the same module.
    virtual BufferId gradientBuffer(int layer, int module);
    /// After the loss is computed, before its gradients are: where a model that computes its own loss returns.
    virtual void betweenLossPasses();
};

/// Programs of all layer types under one training setup. The structure is fixed; sizes follow the tokens.
class ActivationModel {
public:
    ActivationModel(const Model& model, const Training& training, DType compute, ActivationVariant variant = {});

    /// Adds its classes and payloads to `sizes`, which must be empty: the programs' class ids count from the beginning.
    void defineSizes(SizeTable& sizes, const Training& training) const;

    const std::vector<LeafModule>& modules(int layerType) const
    {
        return m_modules[static_cast<std::size_t>(layerType)];
    }
    const Model& model() const { return *m_model; }
    /// Tokens of one micro-batch that this rank computes: its part of the sequence under context parallelism.
    std::int64_t tokens(const Training& training) const
    {
        return ceilDivide(training.tokensPerMicroBatch(), m_local.context);
    }
    const LocalShape& local() const { return m_local; }
    /// Its buffer classes, in the order of defineSizes.
    const std::vector<ScaledClass>& classes() const { return m_classes; }
    DType compute() const { return m_compute; }
    /// What goes from one pipeline stage to the next for a micro-batch, as one rank sends it.
    Bytes boundaryBytes(const Training& training) const;
    /// Of the layer at this position of Model::layers.
    bool checkpointed(int layer) const;
    const LayerProgram& program(int layer) const;
    const LayerProgram& loss() const { return m_loss; }
    /// What the trainer computes of the logits after backward, for its log; nothing for most.
    const LayerProgram& metrics() const { return m_metrics; }

private:
    friend class ActivationWalk;

    const Model* m_model;
    DType m_compute;
    LocalShape m_local;
    Checkpointing m_checkpointing;
    int m_checkpointEvery;
    int m_segment;             // blocks of a checkpoint
    int m_embeddingLayer = -1; // none: a later pipeline stage
    bool m_holdsLogits;
    std::vector<std::vector<LeafModule>> m_modules; // by layer type
    std::vector<LayerProgram> m_keeping;            // by layer type: everything is kept
    std::vector<LayerProgram> m_checkpointed;       // by layer type: under the run's checkpointing
    std::vector<LayerProgram> m_handingOn;          // by layer type: within a segment, not its last block
    std::vector<int> m_segmentStart;                // by layer: the first layer of its segment
    std::vector<int> m_segmentEnd;                  // by layer: the last
    LayerProgram m_loss;
    LayerProgram m_metrics;
    BufferClassId m_batch = -1;          // token ids and labels
    BufferClassId m_heldLogits = -1;     // logits that the caller keeps until the next forward
    BufferClassId m_hostCheckpoint = -1; // a block's input kept in host memory
    PayloadId m_checkpointCopy = -1;
    BufferClassId m_partition = -1; // a block's input, split over the tensor-parallel ranks
    int m_partitionGather = -1;     // collectives
    int m_lossReduction = -1;
    int m_boundary = -1;           // what goes from pipeline stage to pipeline stage
    BufferClassId m_received = -1; // hidden states that another stage sent, or a buffer that is there already
    std::vector<ScaledClass> m_classes;
    std::vector<LayerCollective> m_collectives;

    void findSegments();
    PayloadId payloadOf(int collective) const { return collective + (m_checkpointCopy >= 0 ? 1 : 0); }
    GroupId groupOf(LocalGroup group) const; // those of more than one rank stand first in the size table
};

/// Emits the forward and backward of one step, micro-step by micro-step, into a builder:
///
///   ActivationWalk walk(activations);
///   walk.carryOver(builder);                      // during initialisation: what the step before left alive
///   walk.beginMicroStep(builder);
///   for (layer = 0 .. n-1) walk.forward(builder, layer, observer);
///   walk.loss(builder, observer);
///   for (layer = n-1 .. 0) walk.backward(builder, layer, observer);
///   walk.endMicroStep(builder);
///
/// A pipeline stage has one walk for each micro-batch in flight, and between its chunks of layers receives and sends.
class ActivationWalk {
public:
    explicit ActivationWalk(const ActivationModel& activations);

    void carryOver(ScheduleBuilder& builder);
    void beginMicroStep(ScheduleBuilder& builder);
    void forward(ScheduleBuilder& builder, int layer, StageObserver& observer);
    void loss(ScheduleBuilder& builder);
    void loss(ScheduleBuilder& builder, StageObserver& observer);
    void lossForward(ScheduleBuilder& builder);
    void lossBackward(ScheduleBuilder& builder);
    /// Recomputes first where the layer is checkpointed.
    void backward(ScheduleBuilder& builder, int layer, StageObserver& observer);
    void endMicroStep(ScheduleBuilder& builder);

    /// Hidden states from the stage before, awaited; and to the stage behind, after which nobody here needs them
    /// (megatron/core/pipeline_parallel/schedules.py deallocate_output_tensor).
    void receiveInput(ScheduleBuilder& builder);
    void sendOutput(ScheduleBuilder& builder);
    /// The same of their gradients, on the way back.
    void receiveGradient(ScheduleBuilder& builder);
    void sendGradient(ScheduleBuilder& builder);
    /// The backward of a chunk of layers has returned: what it had sent (or the logits) goes, where it was kept.
    void releaseOutput(ScheduleBuilder& builder);

private:
    struct LayerState {
        std::vector<BufferId> slots;
        BufferId hostCopy = -1;
        BufferId partition = -1;
    };
    BufferId receive(ScheduleBuilder& builder, Phase phase) const;
    void send(ScheduleBuilder& builder, Phase phase, BufferId& sent) const;
    void recompute(ScheduleBuilder& builder, int layer, StageObserver& observer);
    void playLoss(ScheduleBuilder& builder, const ProgramPass& pass);
    Stream besideStream(int collective) const;
    OpId emitCollective(ScheduleBuilder& builder, int collective, Stream stream, Phase phase, int layer) const;
    void compute(ScheduleBuilder& builder, const StepWork& work, const std::vector<BufferId>& slots, int layer,
                 int module, BufferId gradient) const;
    void run(ScheduleBuilder& builder, const LayerProgram& program, const ProgramPass& pass, Pass kind, int layer,
             StageObserver& observer);
    void startOp(ScheduleBuilder& builder, Pass kind, int layer, int module);

    const ActivationModel* m_activations;
    std::vector<LayerState> m_layers;
    LayerState m_lossState;
    BufferId m_carried = -1;     // hidden states handed from layer to layer
    BufferId m_gradCarried = -1; // their gradient on the way back
    BufferId m_batch = -1;
    BufferId m_heldLogits = -1;
    std::vector<BufferId> m_outputs; // of chunks whose backward is still to come
    OpId m_copying = -1;             // a checkpoint on its way to or from the host
};

} // namespace shardwright
