#pragma once

// The order in which both FSDPs' hooks fire over a step. What each hook does is the framework's own.

#include "planner/frameworks/fsdp/fsdp_rules.hpp"
#include "planner/frameworks/recording.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/parallelism/stage_emission.hpp"

namespace shardwright {

class FsdpEmission : public StageObserver {
public:
    FsdpEmission(const SizeTable& sizes, const FsdpShape& shape);

    Schedule run();

    void beforeStage(Pass pass, int layer, int module) final;
    void afterStage(Pass pass, int layer, int module) final;
    BufferId gradientBuffer(int layer, int module) final;
    void betweenLossPasses() final;

protected:
    static constexpr int kRootUnit = 0;

    virtual void initialise() = 0;
    /// The root's forward begins, in every micro-step; `compute` is the last operation of the compute stream.
    virtual void enterRootForward(OpId compute) = 0;
    /// `pass`: Recompute where a checkpoint of several blocks runs the forward of one again that is not the last of
    /// them (torch.utils.checkpoint without reentrance around several units): as a forward of its own. What the last
    /// one's recomputation needs its pre-backward hook has brought.
    virtual void preForward(int unit, Pass pass) = 0;
    virtual void postForward(int unit, Pass pass) = 0;
    /// The root module's forward has returned.
    virtual void leaveForward() = 0;
    /// Once a unit and micro-step, before its first gradient.
    virtual void preBackward(int unit) = 0;
    /// Its gradients are complete.
    virtual void postBackward(int unit, const MicroStep& step) = 0;
    /// The root's final callback.
    virtual void leaveBackward() = 0;
    /// The gradients of one chunk of a pipeline stage are complete after its last micro-batch.
    virtual void reduceChunk(const std::vector<int>& units);
    /// zero_grad(set_to_none=True).
    virtual void dropGradients() = 0;
    /// After the last micro-step.
    virtual Stepped stepped() const = 0;
    /// What a rank keeps of a unit's parameters.
    virtual Content shardOf(int unit) const = 0;
    /// Whether the hooks before the root's backward sit on the model's own loss or on its logits.
    virtual bool rootReturnsLoss() const;
    /// Whether a unit's post-backward hook waits for the backward of the unit before it.
    virtual bool postponesPostBackward() const { return false; }

    /// The unit that a backward prefetch from `unit` aims at: the one that ended its forward before. -1: none.
    int beforeInForward(int unit) const;
    int afterInForward(int unit) const;

    /// Gradients of a unit's modules, as autograd leaves them.
    struct ModuleGradient {
        int layer = 0;
        int module = 0;
        BufferId buffer = -1;
        int microStep = 0; // in which it came to be
    };
    std::vector<ModuleGradient>& gradientsOf(int unit) { return m_gradients[static_cast<std::size_t>(unit)]; }
    void freeGradients(int unit);
    /// The buffers of gradientsOf().
    std::vector<BufferId> gradientBuffers(int unit);

    ContentId content(const Content& content) { return builder().content(content); }
    /// The rank's part of a unit, in that dtype.
    ContentId shard(int unit, Quantity quantity, DType dtype)
    {
        return builder().records() ? content(as(shardOf(unit), quantity, dtype)) : -1;
    }
    ContentId allShards(int unit, Quantity quantity, DType dtype)
    {
        return builder().records() ? content(allPartsOf(as(shardOf(unit), quantity, dtype))) : -1;
    }
    /// A module's gradient.
    ContentId gradientContent(int layer, int module, DType dtype);
    Tensors tensorsOf(int unit) const;
    bool keepsMoments() const { return m_shape.training.optimizer != Optimizer::Sgd; }

    static Phase phaseOf(Pass pass) { return pass == Pass::Forward ? Phase::Forward : Phase::Backward; }
    bool empty(int unit) const { return m_shape.typeOf(unit).numel == 0; }
    bool isRoot(int unit) const { return unit == kRootUnit; }
    bool isExperts(int unit) const { return m_shape.typeOf(unit).experts; }
    bool inBackward(int unit) const { return m_inBackward[static_cast<std::size_t>(unit)]; }
    std::size_t unitType(int unit) const
    {
        return static_cast<std::size_t>(m_shape.units.units[static_cast<std::size_t>(unit)].type);
    }
    int unitCount() const { return static_cast<int>(m_shape.units.units.size()); }
    const FsdpShape& shape() const { return m_shape; }
    ScheduleBuilder& builder() { return m_builder; }
    OpId op(OpKind kind, Stream stream, Phase phase) { return m_builder.op(kind, stream, phase, m_layer); }
    /// A copy within the GPU.
    OpId copy(Stream stream, Phase phase, PayloadId payload)
    {
        const OpId id = op(OpKind::Copy, stream, phase);
        m_builder.move(payload);
        return id;
    }
    ActivationWalk& walk() { return m_walk; }

private:
    int unitOf(int layer, int module) const;
    bool lossInModel() const { return m_shape.training.implementation == Implementation::HuggingFace; }
    bool fedByTokens(int unit) const;
    void enterForward(int unit, Pass pass);
    int lastUnitOf(int layer) const;
    void closeOpenUnit();
    void closeExperts();
    void enterBackward(int unit);
    void finishBackward(int unit, const MicroStep& step);
    void microStep(const MicroStep& step);
    void beginForward(const StageChunk& chunk);
    void forwardLayers(ActivationWalk& walk, const StageChunk& chunk);
    void backwardLayers(ActivationWalk& walk, const StageChunk& chunk, const MicroStep& step);
    std::vector<int> unitsIn(const StageChunk& chunk) const;
    void runPipeline();
    void pipelineForward(const PipelineAction& action);
    void pipelineBackward(const PipelineAction& action, std::int64_t lastMicroBatch);
    void optimizerStep();

    const FsdpShape& m_shape;
    ScheduleBuilder m_builder;
    ActivationWalk m_walk;
    ModuleTensors m_tensors;
    std::vector<std::vector<ModuleGradient>> m_gradients; // by unit
    BufferId m_fresh = -1;                                // gradient of the module in backward
    std::vector<bool> m_inForward;                        // units whose forward has begun in this micro-step
    std::vector<bool> m_inBackward;
    std::vector<int> m_forwardOrder;                // units with parameters; the root begins first and ends last
    std::map<std::int64_t, ActivationWalk> m_walks; // of a pipeline's micro-batches in flight
    int m_open = -1;
    int m_openExperts = -1; // within it
    Pass m_openPass = Pass::Forward;
    int m_postponed = -1; // unit whose post-backward hook is still to come
    int m_layer = -1;
    int m_microStep = 0; // of those that are written out
};

} // namespace shardwright
