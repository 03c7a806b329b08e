#pragma once

#include "planner/frameworks/fsdp/fsdp_rules.hpp"

namespace shardwright {

/// What happens to a unit's parameters after its forward.
enum class Reshard : std::uint8_t { Never, ToAll, ToFewer };

/// Sizes of one type of unit under fully_shard.
struct Fsdp2Unit {
    std::int64_t trainable = 0; // elements a rank keeps, padded
    std::int64_t ranks = 1;     // that share the unit
    GroupId group = -1;
    bool sharded() const { return ranks > 1; }
    BufferClassId persistent = -1, moments = -1, hostGradient = -1, init = -1;
    BufferClassId upload = -1, cast = -1, gathered = -1, unsharded = -1;
    BufferClassId postForward = -1, postForwardCast = -1;
    BufferClassId reduceInput = -1, reduceOutput = -1, gradientShard = -1;
    PayloadId gather = -1, scatter = -1, replicate = -1, uploadCopy = -1, downloadCopy = -1;
    // Copies within the GPU.
    PayloadId copyIn = -1, copyInFromFewer = -1, copyOut = -1, toFewer = -1, copyWhole = -1;
    PayloadId widen = -1, reduceCopyIn = -1, reduceAlone = -1, settle = -1, settleAdding = -1;
};

class Fsdp2Rules final : public FsdpRules {
public:
    explicit Fsdp2Rules(const PlanInput& input);

    void resize(const PlanInput& input) override;
    std::string structureKey() const override;
    double textbookPsi() const override;
    std::string psiDifference() const override;
    std::vector<Note> assumptions() const override;
    std::vector<Note> excluded() const override;
    int communicators() const override;
    Schedule emit() const override; // fsdp2_emission.cpp

private:
    friend class Fsdp2Emission;

    Kept defineUnit(std::size_t type) override;
    void defineUnitCommunication(const UnitType& type, Fsdp2Unit& unit);
    struct UnitBytes {
        Bytes whole;        // gathered
        Bytes stored;       // shard as it is stored
        Bytes casting;      // read and written to cast it to the compute dtype
        Bytes reduced;      // gradient shard in the reduce dtype
        Bytes reducedWhole; // gradients in the reduce dtype, padded
    };
    void defineUnitCopies(Fsdp2Unit& unit, const UnitBytes& bytes);
    std::int64_t ranksOf(const UnitType& type) const;
    std::int64_t shardOf(const UnitType& type, const ParameterSpec& parameter) const;
    DType storedIn(const UnitType& type, const ParameterSpec& parameter) const;
    DType gatheredIn(const UnitType& type, const ParameterSpec& parameter) const;
    Reshard reshard() const;
    bool casts() const { return m_shape.compute != m_shape.trained || m_shape.compute != m_shape.frozen; }
    /// The tied tensor of Accelerate's group [final norm, embedding, head] lies in the root's place.
    bool tiedGroup() const { return m_options.separateHeadUnit && m_shape.model.architecture.tiedEmbedding; }

    Fsdp2Options m_options;
    Parallelism m_parallelism;
    std::int64_t m_expertRanks = 1; // that share one part of the experts
    GroupId m_experts = -1;
    GroupId m_fewer = -1;                                  // ranks of reshard_after_forward=int
    std::vector<Fsdp2Unit> m_units;                        // by unit type
    std::vector<std::vector<BufferClassId>> m_accumulated; // [layer type][module]: gradients kept by no_sync
};

} // namespace shardwright
