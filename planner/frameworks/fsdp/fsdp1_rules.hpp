#pragma once

#include "planner/frameworks/fsdp/fsdp_rules.hpp"

namespace shardwright {

/// Sizes of one type of unit under FullyShardedDataParallel.
struct Fsdp1Unit {
    bool trains = false;
    bool padded = false; // its gradient is copied to be padded to N
    bool casts = false;  // stored in another dtype than it is gathered in
    BufferClassId persistent = -1, moments = -1, hostGradient = -1, upload = -1, lowPrecision = -1, unsharded = -1;
    BufferClassId zeroGradient = -1, flatGradient = -1, reduceCast = -1, reducePadded = -1, reduceOutput = -1;
    BufferClassId gradientShard = -1, initModule = -1, initFlat = -1;
    PayloadId gather = -1, scatter = -1, replicate = -1, uploadCopy = -1, downloadCopy = -1;
    // Copies within the GPU.
    PayloadId cast = -1, flatten = -1, flattenAdding = -1, reduceInput = -1, settle = -1, settleAdding = -1;
};

class Fsdp1Rules final : public FsdpRules {
public:
    explicit Fsdp1Rules(const PlanInput& input);

    void resize(const PlanInput& input) override;
    std::string structureKey() const override;
    double textbookPsi() const override;
    std::string psiDifference() const override;
    std::vector<Note> assumptions() const override;
    Schedule emit() const override; // fsdp1_emission.cpp

private:
    friend class Fsdp1Emission;

    Kept defineUnit(std::size_t type) override;
    void defineUnitCopies(Fsdp1Unit& unit, std::int64_t flat, std::int64_t trainableFlat, Bytes casting);
    std::int64_t flatNumel(const UnitType& type, bool trainableOnly) const;
    /// Elements: with use_orig_params every tensor begins at a multiple of it.
    std::int64_t alignment() const;
    bool reshardsAfterForward() const;
    std::string paddingKey() const;

    Fsdp1Options m_options;
    std::int64_t m_processGroup = 1; // ranks that flat parameters are padded to: the world under NO_SHARD
    std::vector<Fsdp1Unit> m_units;  // by unit type
};

} // namespace shardwright
