#pragma once

#include "planner/activations/activation_model.hpp"
#include "planner/frameworks/rules.hpp"

namespace shardwright {

/// The textbook schedule, layer by layer.
class NativeRules final : public FrameworkRules {
public:
    explicit NativeRules(const PlanInput& input);

    void resize(const PlanInput& input) override;
    std::string structureKey() const override;
    ModelStates modelStates() const override;
    double textbookPsi() const override;
    Bytes hostInitPeakPerNode() const override;
    CheckpointSize checkpoint() const override;
    const ActivationModel* activations() const override { return &m_activations; }
    Schedule emit() const override; // native_emission.cpp

private:
    friend class NativeEmission;

    struct TypeSizes {
        std::int64_t all = 0, trainable = 0, shard = 0, trainableShard = 0; // elements
        BufferClassId parameters = -1, master = -1, moments = -1, gathered = -1, gradient = -1, gradientShard = -1;
        BufferClassId hostGradient = -1, steppedShard = -1;
        std::vector<BufferClassId> freshGradients; // by module, -1 without a gradient
        PayloadId gather = -1, reduce = -1, toHost = -1, toDevice = -1, addShard = -1;
        std::vector<PayloadId> accumulations; // by module
    };

    void defineType(int index, TypeSizes& sizes);
    bool mixed() const { return m_compute != DType::Fp32; }
    /// Whether fp32 copies are stepped instead of the parameters themselves.
    bool keepsMaster() const { return mixed() || m_options.offloadOptimizer; }
    bool keepsMoments() const { return m_training.optimizer != Optimizer::Sgd; }
    /// Elements of a layer's parameters between steps. With stages 1 and 2 every rank gathers them in place.
    std::int64_t keptParameters(const TypeSizes& sizes) const;
    std::int64_t optimizerElements(const TypeSizes& sizes) const
    {
        return m_options.stage >= 1 ? sizes.trainableShard : sizes.trainable;
    }
    Bytes stateBytes(std::int64_t elements) const;

    const Model& m_model;
    NativeOptions m_options;
    DType m_compute;
    ActivationModel m_activations;
    Training m_training;
    const Cluster* m_cluster = nullptr;
    std::int64_t m_ranks = 1;
    GroupId m_world = -1;
    std::vector<TypeSizes> m_types; // by layer type
    PayloadId m_clip = -1, m_step = -1;
};

} // namespace shardwright
