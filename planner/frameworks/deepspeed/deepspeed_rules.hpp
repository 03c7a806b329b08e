#pragma once

// What all stages of DeepSpeed share: dtypes, which optimizer wrapper runs, checkpoints, notes. "engine" is
// deepspeed/runtime/engine.py of DeepSpeed 0.19.6; other files by their path under deepspeed/.

#include "planner/activations/activation_model.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/parallelism/stage_emission.hpp"

namespace shardwright {

/// The dtypes that DeepSpeed settles on. The dtype that the weights were loaded in does not matter: engine
/// _configure_distributed_model casts the module to bf16, fp16 or fp32.
struct DeepSpeedDtypes {
    DType model = DType::Bf16;      // parameters and their gradients
    DType frozen = DType::Bf16;     // frozen base weights (QLoRA keeps its own)
    DType master = DType::Fp32;     // what the optimizer steps
    DType accumulate = DType::Bf16; // gradients across micro-steps
    DType wire = DType::Bf16;       // reductions
    DType states = DType::Fp32;     // moments
};

/// Who steps. Engine _do_optimizer_sanity_check, _configure_zero_optimizer.
enum class OptimizerWrapper : std::uint8_t { Plain, Fp16, Bf16, Zero12, Zero3 };

DType deepspeedModelDtype(const Training& training);
DeepSpeedDtypes deepspeedDtypes(const Training& training, const DeepSpeedOptions& options);
OptimizerWrapper optimizerWrapper(const Training& training, const DeepSpeedOptions& options);
bool isOneBit(Optimizer optimizer);
/// ZeRO-1 and 2: each rank's gradients of a bucket are reduced to it, rank by rank, instead of all-reduced together.
/// Only a bucket that is one buffer is cut up for it (stage_1_and_2.py reduce_ipg_grads).
bool reducesToOwners(const Training& training, const DeepSpeedOptions& options);

/// Bytes that an allocation of page-locked host memory takes: PyTorch's pinned allocator rounds each up to a power of
/// two (ATen CachingHostAllocator, PowerOf2Ceil).
Bytes hostBytes(Bytes exact, bool pinned);

class DeepSpeedRules : public FrameworkRules {
public:
    explicit DeepSpeedRules(const PlanInput& input);

    double textbookPsi() const override;
    std::string psiDifference() const override;
    Bytes hostInitPeakPerNode() const override;
    CheckpointSize checkpoint() const override;
    std::vector<Note> assumptions() const override;
    std::vector<Note> excluded() const override;
    const ActivationModel* activations() const override { return &m_activations; }

protected:
    /// Takes over the numbers of an input and starts the size table with the activations' classes.
    void take(const PlanInput& input);

    /// Elements that one rank steps, padding included.
    virtual std::int64_t steppedElements() const = 0;

    std::string commonKey() const { return optionsKey() + trainingKey(); }
    std::string optionsKey() const;
    std::string trainingKey() const; // what can change with the numbers of a training
    Bytes stateBytes(std::int64_t elements) const;
    std::int64_t frozenParameters() const { return m_model.parameters() - m_model.trainableParameters(); }
    bool offloadsOptimizer() const { return m_options.offloadOptimizer != OffloadDevice::None; }
    /// bf16 too since 0.19.3 (check_grad_overflow). The executor neither checks nor takes norms in double precision.
    bool checksOverflow() const { return is16Bit(m_dtypes.model) && !executes(); }
    bool normsInDouble() const { return !executes(); }
    bool executes() const { return m_training.implementation == Implementation::Shardrun; }
    bool reducesToOwners() const { return shardwright::reducesToOwners(m_training, m_options); }
    /// PyTorch's allocator of page-locked memory rounds; the executor's does not.
    bool roundsPinned(bool pinned) const { return pinned && !executes(); }
    Recording recording() const { return m_parallelism.none() ? recordingOf(m_training) : Recording::SizesOnly; }

    bool pipelined() const { return m_parallelism.pipeline > 1; }
    PipelineShape pipeline() const { return pipelineShape(m_parallelism, m_training.gradientAccumulation); }

    const Model& m_model;
    const ModelSlice* m_slice; // where model-parallel ranks share the model
    Parallelism m_parallelism;
    DeepSpeedOptions m_options;
    Training m_training;
    DeepSpeedDtypes m_dtypes;
    OptimizerWrapper m_wrapper;
    ActivationModel m_activations;
    const Cluster* m_cluster = nullptr;
    std::int64_t m_ranks = 1;
    GroupId m_world = -1;
};

// One per file of this room.
std::unique_ptr<FrameworkRules> makeUnshardedRules(const PlanInput& input);     // stage 0, fp32 or fp16
std::unique_ptr<FrameworkRules> makeBf16OptimizerRules(const PlanInput& input); // stage 0 or 1 with fp32 accumulation
std::unique_ptr<FrameworkRules> makeZero12Rules(const PlanInput& input);
std::unique_ptr<FrameworkRules> makeZero3Rules(const PlanInput& input);

} // namespace shardwright
