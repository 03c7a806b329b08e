#pragma once

// Megatron-LM (Megatron-Core): parameters and gradients in contiguous buffers, cut into buckets
// (megatron/core/distributed/param_and_grad_buffer.py); the optimizer's states whole or over the data-parallel group
// (megatron/core/optimizer/distrib_optimizer.py); micro-batches through the pipeline's schedule.
//
// Bytes a parameter, d data-parallel ranks (docs of Megatron-Core, dist_optimizer): bf16 with fp32 gradients 18, with
// the distributed optimizer 6 + 12/d; fp16 throughout 20, 4 + 16/d; fp32 16, 8 + 8/d.

#include <map>

#include "planner/activations/activation_model.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/parallelism/pipeline_schedule.hpp"

namespace shardwright {

class MegatronRules final : public FrameworkRules {
public:
    /// Of an input with a slice (sliceModel).
    explicit MegatronRules(const PlanInput& input);

    void resize(const PlanInput& input) override;
    std::string structureKey() const override;
    ModelStates modelStates() const override;
    double textbookPsi() const override { return 2; }
    Bytes hostInitPeakPerNode() const override;
    CheckpointSize checkpoint() const override;
    std::vector<Note> assumptions() const override;
    std::vector<Note> excluded() const override;
    const ActivationModel* activations() const override { return &m_activations; }
    int communicators() const override;
    Schedule emit() const override;

    /// What emit() reduces and gathers over data-parallel ranks in a step, and the sum of an embedding that two stages
    /// share: all its collectives but those of the layers' walks, whatever the micro-batches and the checkpoints.
    std::vector<Op> collectivesOfStep() const;

private:
    friend class MegatronEmission;

    /// Parameters of one kind: experts have data-parallel ranks of their own.
    struct Part {
        std::int64_t elements = 0; // bucket padding included
        std::int64_t stepped = 0;  // of them, by this rank's optimizer
        std::int64_t ranks = 1;
        GroupId group = -1;
        BufferClassId parameters = -1, gradients = -1, master = -1, moments = -1, mainGradients = -1;
        PayloadId zero = -1, step = -1;
    };
    struct Bucket {
        int part = 0;
        int chunk = 0;
        std::int64_t elements = 0;
        int opens = 0; // layer whose backward begins it (the last in forward order)
        int closes = 0;
        PayloadId reduce = -1, gather = -1;
    };

    bool mixed() const { return m_compute != DType::Fp32; }
    DType gradientDtype() const;
    DType mainGradientDtype() const;
    bool castsGradients() const { return gradientDtype() != mainGradientDtype(); }
    Bytes masterBytes(std::int64_t elements) const;
    void assignBuckets();
    void definePart(Part& part, std::string_view name, std::int64_t ranks);
    void defineBuckets();
    void defineTemporaries();
    Bytes stateBytes(std::int64_t elements) const;

    const Model& m_model;
    const ModelSlice& m_slice;
    MegatronOptions m_options;
    Parallelism m_parallelism;
    DType m_compute;
    ActivationModel m_activations;
    Training m_training;
    const Cluster* m_cluster = nullptr;
    std::int64_t m_ranks = 1;
    std::int64_t m_expertRanks = 1; // that hold the same experts
    Part m_parts[2];                // dense, experts
    std::vector<Bucket> m_buckets;
    std::vector<std::vector<BufferClassId>> m_gradientTemporaries; // by layer type and module
    GroupId m_embeddingGroup = -1;
    PayloadId m_tied = -1;
};

} // namespace shardwright
