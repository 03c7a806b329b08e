#pragma once

#include "planner/activations/activation_model.hpp"
#include "planner/frameworks/recording.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/frameworks/sharding.hpp"

namespace shardwright {

class DdpRules final : public FrameworkRules {
public:
    explicit DdpRules(const PlanInput& input);

    void resize(const PlanInput& input) override;
    std::string structureKey() const override;
    ModelStates modelStates() const override;
    double textbookPsi() const override { return 2; }
    Bytes hostInitPeakPerNode() const override;
    CheckpointSize checkpoint() const override;
    std::vector<Note> assumptions() const override;
    std::vector<Note> excluded() const override;
    const ActivationModel* activations() const override { return &m_activations; }
    Schedule emit() const override; // ddp_emission.cpp

private:
    friend class DdpEmission;

    struct TypeSizes {
        BufferClassId parameters = -1, moments = -1, buckets = -1;
        std::vector<BufferClassId> gradients;                         // by module
        std::vector<BufferClassId> casts;                             // by module
        std::vector<BufferClassId> unpacked;                          // by module
        std::vector<PayloadId> castCopies, unpackings, accumulations; // by module, -1 where there is no such buffer
        PayloadId castBack = -1, copyIn = -1;
    };
    struct Bucket {
        PayloadId payload = -1;
        BufferClassId buffer = -1; // where a schedule is recorded and gradients do not lie in buckets
        Tensors tensors;           // where a schedule is recorded
    };

    bool recorded() const { return recordingOf(m_training) == Recording::ForExecution; }
    bool packs() const { return m_training.lora && m_training.lora->baseDtype; }
    bool packed(const LayerType& type, const ParameterSpec& parameter) const;
    DType storedIn(const LayerType& type, const ParameterSpec& parameter) const;
    Bytes storedBytes(const LayerType& type, bool trainableOnly) const;
    void defineType(int index, TypeSizes& sizes);
    void defineCopies(const LayerType& type, const LeafModule& module, int index, TypeSizes& sizes);
    void assignBuckets();

    const Model& m_model;
    DdpOptions m_options;
    DType m_compute;
    DType m_trained; // of adapters, or of everything
    ActivationModel m_activations;
    Training m_training;
    const Cluster* m_cluster = nullptr;
    GroupId m_world = -1;
    std::vector<TypeSizes> m_types;             // by layer type
    std::vector<std::vector<Bucket>> m_buckets; // by layer in whose backward they fill up
    BufferClassId m_foreach = -1;
    PayloadId m_copyBack = -1, m_clip = -1, m_step = -1;
};

} // namespace shardwright
