#pragma once

// What FSDP1 and FSDP2 have in common: dtypes, units, groups, the states a rank keeps.

#include "planner/activations/activation_model.hpp"
#include "planner/frameworks/fsdp/units.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/parallelism/pipeline_schedule.hpp"

namespace shardwright {

/// Options that mean the same in both.
struct FsdpOptions {
    std::optional<DType> paramDtype;
    std::optional<DType> reduceDtype;
    bool upcastTrainable = true;
    bool offloadParams = false;
    bool cpuRamEfficientLoading = true;
};

/// Everything about a sharded model but the sizes of its units' buffers.
struct FsdpShape {
    FsdpShape(const PlanInput& input, const FsdpOptions& fsdpOptions, const UnitPolicy& policy,
              ActivationVariant variant);

    const Model& model;
    const ModelSlice* slice; // where `model` is a part
    FsdpOptions options;
    DType compute; // of unsharded parameters and of the gradients that autograd makes
    DType trained; // of the shards that the optimizer steps, their gradients and moments
    DType frozen;  // of parameters without a gradient: they are not upcast
    DType reduce;  // of gradients on the wire
    ActivationModel activations;
    UnitMap units;

    // Of the candidate at hand.
    Training training;
    PipelineShape pipeline;
    const Cluster* cluster = nullptr;
    std::int64_t shardRanks = 1;
    Group replicas;
    GroupId shardGroup = -1;
    GroupId replicaGroup = -1;
    std::vector<std::vector<BufferClassId>> gradientOfModule; // [layer type][module], -1 without a gradient
    // Copies that autograd makes: a gradient added to what no_sync left, and to a tied weight's other use.
    std::vector<std::vector<PayloadId>> accumulationOfModule; // [layer type][module], -1 without a gradient
    std::vector<std::vector<PayloadId>> tiedSumOfModule;
    BufferClassId foreach = -1;
    BufferClassId receive = -1; // buffers for what other pipeline stages send
    PayloadId clip = -1, step = -1;

    bool sharded() const { return shardRanks > 1; }
    bool pipelined() const { return slice != nullptr && slice->stages > 1; }
    const UnitType& typeOf(int unit) const { return units.typeOf(unit); }
    /// Whether several blocks make one checkpoint.
    bool checkpointsSegments() const
    {
        return training.checkpointing == Checkpointing::Full && training.checkpointSegment > 1;
    }
};

class FsdpRules : public FrameworkRules {
public:
    ModelStates modelStates() const override;
    Bytes hostInitPeakPerNode() const override;
    CheckpointSize checkpoint() const override;
    std::vector<Note> excluded() const override;
    int communicators() const override;
    const ActivationModel* activations() const override { return &m_shape.activations; }

protected:
    /// What a rank keeps of one unit.
    struct Kept {
        Bytes parameters;
        std::int64_t gradients = 0; // elements that have a gradient
        std::int64_t stepped = 0;   // of those, what the optimizer steps
    };

    explicit FsdpRules(FsdpShape shape) : m_shape(std::move(shape)) {}

    /// Takes over a candidate's numbers: activations, groups; then `defineUnit` for every unit type, in order; then
    /// the modules' gradients.
    void resizeShape(const PlanInput& input, std::int64_t shardRanks);
    virtual Kept defineUnit(std::size_t type) = 0;

    Bytes stateBytes(std::int64_t elements) const;
    /// bitsandbytes packs the frozen linear layers of blocks into this dtype (QLoRA); nothing: `parameter` is not
    /// packed.
    std::optional<DType> packedDtype(const UnitType& type, const ParameterSpec& parameter) const;

    FsdpShape m_shape;

private:
    Kept keptByRank() const;

    std::vector<Kept> m_kept; // by unit type
};

} // namespace shardwright
