#pragma once

// The closed form: memory and traffic of a candidate without building its schedule.
//
// A schedule's structure is compiled once. Live bytes at any moment are a sum over quantities of (coefficient) x
// (value): the quantities are the tokens T, T x sequence length, and the size of each buffer class that is no
// activation. Of all moments only those can be the peak whose counts are not all below another moment's, and not the
// mean of two others (the steps through equal layers lie on straight lines): a handful, whatever the model's depth. For
// a candidate of the same structure, sizes are recomputed and those few sums are compared: exactly the replay's peak.

#include <memory>
#include <vector>

#include "planner/frameworks/rules.hpp"

namespace shardwright {

struct ClosedFormResult {
    Bytes peakAllocated;
    Bytes initPeak;
    Bytes hostPinned; // per rank
    Bytes hostPageable;
    Bytes nvme;
    Bytes sentBytesPerGpu;
    Bytes intraNodeBytesPerGpu;
    Bytes interNodeBytesPerGpu;
    Bytes interNodeBytesPerNode;
    double psi = 0;
};

class ClosedForm {
public:
    /// Compiles the structure that `input` has. The model of `input` must outlive this.
    explicit ClosedForm(const PlanInput& input);
    /// Likewise of rules that are there already.
    explicit ClosedForm(std::unique_ptr<FrameworkRules> rules, const Model& model);
    ~ClosedForm();

    /// The figures of a candidate of the same model and structure (FrameworkRules::structureKey). Equal to
    /// replayMemory and sumTraffic of its schedule, byte for byte. Not thread-safe: one ClosedForm a thread.
    ClosedFormResult evaluate(const PlanInput& candidate);
    /// The same of the candidate that the rules were resized to last: by fits(), or when they were made.
    ClosedFormResult figures(const PlanInput& candidate);

    /// The structure it was compiled for.
    const std::string& structureKey() const { return m_key; }
    /// Resizes the rules to a candidate of the same model and options but for numbers, and says whether it still has
    /// the structure that was compiled. If not, evaluate() must not be asked about it.
    bool fits(const PlanInput& candidate);

    /// The rules, with the sizes of the candidate last evaluated.
    const FrameworkRules& rules() const { return *m_rules; }
    /// Moments that may be the peak, over all places.
    std::size_t moments() const;

private:
    struct Term {
        std::int32_t quantity;
        std::int64_t coefficient;
    };
    /// A moment, as differences to what all moments of the place share.
    struct Moment {
        std::uint32_t firstTerm;
        std::uint32_t termCount;
    };
    struct PlaceForm {
        std::vector<Term> always; // what all moments share
        std::vector<Moment> moments;
    };
    struct TrafficTerm {
        OpKind kind;
        PayloadId payload;
        GroupId group;
        std::int64_t once;   // per step, outside repeated segments
        std::int64_t middle; // per repetition of the middle micro-steps
    };

    void compileMemory(const Schedule& schedule);
    void compileTraffic(const Schedule& schedule);
    PlaceForm formOf(const std::vector<std::vector<std::int64_t>>& moments);
    Bytes peakOf(const PlaceForm& form) const;

    std::unique_ptr<FrameworkRules> m_rules;
    std::string m_key;
    std::int64_t m_parameters;
    std::vector<Term> m_terms;
    std::vector<std::int64_t> m_values; // of the quantities, for the candidate at hand
    std::size_t m_activationClasses = 0;
    PlaceForm m_gpu;
    PlaceForm m_init;
    PlaceForm m_pinned;
    PlaceForm m_pageable;
    PlaceForm m_nvme;
    std::vector<TrafficTerm> m_traffic;
};

} // namespace shardwright
